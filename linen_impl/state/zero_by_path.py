"""Zero every leaf whose path names `kernel`.

Variables are a pytree as they are: map over them with the path. In
nnx the model is split first and merged afterwards. The path
`params, kernel` is `kernel` there, and then the Variable's value.

Plain dicts (what `init` returns since flax 0.7) map the same way,
and give plain dicts.
"""

# --8<-- [start:imports]
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze
from jaxtyping import Array, Float

# --8<-- [end:imports]
from linen2nnx import arguments


# --8<-- [start:model]
def create_model(features: int) -> nn.Dense:
    return nn.Dense(features)


def set_bias_to_ones(variables: FrozenDict) -> FrozenDict:
    params = variables["params"]
    bias = jnp.ones_like(params["bias"])
    return freeze({**variables, "params": {**params, "bias": bias}})


# --8<-- [end:model]


# --8<-- [start:edit]
def zero_kernels(variables: FrozenDict) -> FrozenDict:
    def zero_kernel(path, leaf):
        names = [key.key for key in path]  # (1)!
        return jnp.zeros_like(leaf) if "kernel" in names else leaf

    return jax.tree_util.tree_map_with_path(zero_kernel, variables)


# --8<-- [end:edit]


# --8<-- [start:by_type]
def zero_params(variables: FrozenDict) -> FrozenDict:
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    return freeze({**variables, "params": params})  # (1)!


# --8<-- [end:by_type]


def state_zero_kernel(
    seed, x, features, *, variables=None
) -> Float[Array, "features"]:
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
    model = create_model(features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(zero_kernels(set_bias_to_ones(variables)), x)


if __name__ == "__main__":
    print(state_zero_kernel(0, jnp.arange(3.0), 2))
