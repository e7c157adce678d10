"""Small packages in place of flax and jax, and a suite that uses them.

Wheels are written by hand: no network, no build. What the tests need besides (pytest
and numpy) an environment takes from the one that runs this, through a `.pth` file.
"""

import site
import zipfile
from pathlib import Path

from linen2nnx.releases import environments

NNX = """
import os
class Param:
    pass
class Optimizer:
    def update(self, model, gradients):
        pass
class Linear:
    def __init__(self, features, kernel=0.5):
        self.kernel = kernel
    def apply(self, x):
        return x * self.kernel
def warm_start():
    pass
"""

TREE_MODE = """
import contextlib
def set_graph_mode(on):
    return contextlib.nullcontext()
"""

JAX = """
class Device:
    platform = "cpu"
    device_kind = "fake"
def devices():
    return [Device()]
"""

TESTS = {
    "surgery/linear": """
        from flax import nnx
        class ParityError(AssertionError):
            pass
        def test_linear(nnx_mode):
            if nnx.Linear(3).apply(2.0) != 1.0:
                raise ParityError("outputs: 1 of 1 leaves differ\\n    kernel (2,) "
                    "float32: 2 of 2 values differ by up to 0.25 at [0]")
    """,
    "state/after": """
        from flax import nnx
        def test_after(nnx_mode):
            nnx.warm_start()
    """,
}


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel of those files."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = files | {f"{info}/METADATA": metadata, f"{info}/WHEEL": tag}
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(file, content)
    return path


def write_flax(folder: Path, version: str, nnx: str = NNX, init: str = "") -> Path:
    """A wheel of a flax that has what the tests above use."""
    packages = "\n".join(site.getsitepackages())
    files = {
        "flax/__init__.py": init,
        "flax/linen.py": "class Dense:\n    pass\n",
        "flax/nnx.py": nnx,
        "of_the_tests.pth": packages,
    }
    return write_wheel(folder, "flax", version, files)


def offline(monkeypatch, folder: Path, cache: Path) -> None:
    """Let uv install from a folder only, and keep everything in `cache`."""
    monkeypatch.setattr(environments, "NEEDED", ())
    monkeypatch.setattr(environments.Uv, "can_count_bytecodes", False)
    monkeypatch.setenv("LINEN2NNX_CACHE", str(cache))
    for name, value in {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "UV_OFFLINE": "1",
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(folder),
        "UV_CACHE_DIR": str(cache / "uv"),
        "UV_DEFAULT_INDEX": "",
    }.items():
        monkeypatch.setenv(name, value)
