"""The environment that a result was measured in: versions and device."""

import platform
from importlib.metadata import version

PACKAGES = ("flax", "jax", "jaxlib", "numpy", "optax", "linen2nnx")


def environment() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`, the platform, and the device of JAX."""
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"{device.platform}: {device.device_kind}",
    }
