"""Replace the kernel of a layer.

Variables are immutable: the edit builds new ones, naming the path
to the kernel and spreading every other leaf. In nnx it is one
assignment: `variables["params"]["kernel"]` is `model.kernel`.

Plain dicts (what `init` returns since flax 0.7) spread the same
way without `freeze`; nothing then stops an in-place edit.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict, freeze

from linen2nnx import arguments


# region: edit
def set_kernel(variables: FrozenDict, value: float) -> FrozenDict:
    kernel = jnp.full_like(variables["params"]["kernel"], value)
    params = {**variables["params"], "kernel": kernel}
    # Linen: New variables. The two spreads carry every other leaf
    # over.
    return freeze({**variables, "params": params})


# region: copy
def copy_kernel(
    donor: FrozenDict, variables: FrozenDict
) -> FrozenDict:
    # Linen: Both variables hold the same array. Arrays are
    # immutable, so neither can change the other.
    kernel = donor["params"]["kernel"]
    params = {**variables["params"], "kernel": kernel}
    return freeze({**variables, "params": params})


# region: end


def replace_kernel(
    seed, x, features, replacement_value, *, variables=None
):
    """Apply a linear layer whose kernel is one value.

    Args:
        seed: whole number; seeds the layer.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        replacement_value: finite number; every kernel entry.
        variables: {"params": {"kernel", "bias"}} to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    value = arguments.number("replacement_value", replacement_value)
    model = nn.Dense(features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(set_kernel(variables, value), x)


if __name__ == "__main__":
    print(replace_kernel(0, jnp.arange(3.0), 2, 0.5))
