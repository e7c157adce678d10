"""Zero every leaf whose path names `kernel`.

Variables are a pytree as they are: map over them with the path. In
nnx the model is split first and merged afterwards. The path
`params, kernel` is `kernel` there, and then the Variable's value.

Plain dicts (what `init` returns since flax 0.7) map the same way,
and give plain dicts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze

from linen2nnx import arguments


# region: bias
def set_bias_to_ones(variables: FrozenDict) -> FrozenDict:
    params = variables["params"]
    bias = jnp.ones_like(params["bias"])
    return freeze({**variables, "params": {**params, "bias": bias}})


# region: edit
def zero_kernels(variables: FrozenDict) -> FrozenDict:
    def zero_kernel(path, leaf):
        # Linen: Every entry of a Linen path is a dict key.
        names = [key.key for key in path]
        return jnp.zeros_like(leaf) if "kernel" in names else leaf

    return jax.tree_util.tree_map_with_path(zero_kernel, variables)


# region: by_type
def zero_params(variables: FrozenDict) -> FrozenDict:
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    # Linen: The collection is the type. The others are carried
    # over.
    return freeze({**variables, "params": params})


# region: end


def state_zero_kernel(seed, x, features, *, variables=None):
    """Apply a linear layer, bias ones, with its kernel zeroed.

    Args:
        seed: whole number; seeds the layer.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        variables: {"params": {"kernel", "bias"}} to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    model = nn.Dense(features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(zero_kernels(set_bias_to_ones(variables)), x)


if __name__ == "__main__":
    print(state_zero_kernel(0, jnp.arange(3.0), 2))
