"""Zero every leaf whose path names `kernel`.

Split the model into its graphdef and its state, map over the state
with the path, and merge both into a new model. In Linen the
variables are mapped as they are. The path `params, kernel` there is
`kernel` here, and then the Variable's value.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from linen2nnx import arguments


# region: bias
def set_bias_to_ones(model: nnx.Linear) -> None:
    model.bias = nnx.Param(jnp.ones_like(model.bias[...]))


# region: edit - The edit
def zero_kernels(model: nnx.Module) -> nnx.Module:
    def zero_kernel(path, leaf):
        # nnx: Not every entry has a `key`: the last one is the
        # attribute `.value`.
        names = [getattr(key, "key", None) for key in path]
        return jnp.zeros_like(leaf) if "kernel" in names else leaf

    graphdef, state = nnx.split(model)
    state = jax.tree_util.tree_map_with_path(zero_kernel, state)
    return nnx.merge(graphdef, state)


# region: by_type
def zero_params(model: nnx.Module) -> nnx.Module:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(jnp.zeros_like, params)
    # nnx: The `rest` was not mapped. `copy=True` gives the new
    # model its own Variables.
    return nnx.merge(graphdef, params, rest, copy=True)


# region: end


def state_zero_kernel(seed, x, features):
    """Apply a linear layer, bias ones, with its kernel zeroed.

    Args:
        seed: whole number; seeds the layer.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    model = nnx.Linear(x.shape[0], features, rngs=nnx.Rngs(seed))
    set_bias_to_ones(model)
    return zero_kernels(model)(x)


if __name__ == "__main__":
    print(state_zero_kernel(0, jnp.arange(3.0), 2))
