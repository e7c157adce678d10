"""Replace the kernel of a layer.

A model is a Python object and its kernel an attribute: the edit is
one assignment, and nothing else has to be carried over. In Linen,
`model.kernel` is `variables["params"]["kernel"]`.
"""

import jax.numpy as jnp
from flax import nnx

from linen2nnx import arguments


# region: edit - The edit
def set_kernel(model: nnx.Linear, value: float) -> None:
    kernel = jnp.full_like(model.kernel[...], value)
    # nnx: In place. Keep `nnx.Param(...)`: a bare array is no
    # longer trained.
    model.kernel = nnx.Param(kernel)


# region: copy - Variation: the kernel of another model
def copy_kernel(donor: nnx.Linear, model: nnx.Linear) -> None:
    # nnx: `[...]` takes the array out. The new Param is a Variable
    # of its own, so the models stay apart.
    model.kernel = nnx.Param(donor.kernel[...])


# region: end


def replace_kernel(seed, x, features, replacement_value):
    """Apply a linear layer whose kernel is one value.

    Args:
        seed: whole number; seeds the layer.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        replacement_value: finite number; every kernel entry.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    value = arguments.number("replacement_value", replacement_value)
    model = nnx.Linear(x.shape[0], features, rngs=nnx.Rngs(seed))
    set_kernel(model, value)
    return model(x)


if __name__ == "__main__":
    print(replace_kernel(0, jnp.arange(3.0), 2, 0.5))
