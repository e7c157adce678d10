"""Start a deeper model from a trained shallow one.

The big model's params take over the small one's by key. In nnx
each layer's kernel and bias are assigned; the Linen key `layers_2`
is the nnx path `layers/2`.

Plain dicts (what `init` returns since flax 0.7) spread the same
way without `freeze`; nothing then stops an in-place edit.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze

from linen2nnx import arguments


# region: model
class MLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x):  # (n,) -> (m,)
        # Linen: Each layer becomes a key of `params`: `layers_0`,
        # `layers_1` and so on.
        for i in range(self.num_layers):
            x = nn.Dense(self.features, name=f"layers_{i}")(x)
        return x


# region: edit
def copy_layers(small: FrozenDict, big: FrozenDict) -> FrozenDict:
    # Linen: The later spread wins: the small model's layers replace
    # the big one's.
    params = {**big["params"], **small["params"]}
    return freeze({**big, "params": params})


# region: identity
def grow_by_identity(
    small: FrozenDict, big: FrozenDict
) -> FrozenDict:
    params = dict(copy_layers(small, big)["params"])
    for name in params.keys() - small["params"].keys():
        layer = jax.tree.map(jnp.zeros_like, params[name])
        width, dtype = len(layer["bias"]), layer["bias"].dtype
        eye = jnp.eye(width, dtype=dtype)
        # Linen: An identity kernel in the dtype of the layer; the
        # bias is already zeroed.
        params[name] = {**layer, "kernel": eye}
    return freeze({**big, "params": params})


# region: residual
class ResidualMLP(nn.Module):
    num_layers: int
    num_blocks: int
    features: int

    @nn.compact
    def __call__(self, x):  # (n,) -> (m,)
        for i in range(self.num_layers):
            x = nn.Dense(self.features, name=f"layers_{i}")(x)
        for i in range(self.num_blocks):
            branch = nn.Dense(self.features, name=f"blocks_{i}")
            # Linen: A branch whose kernel and bias are zero adds
            # zero.
            x = x + branch(nn.relu(x))
        return x


def grow_by_residual(
    small: FrozenDict, big: FrozenDict
) -> FrozenDict:
    params = dict(copy_layers(small, big)["params"])
    for name in params.keys() - small["params"].keys():
        params[name] = jax.tree.map(jnp.zeros_like, params[name])
    # Linen: The copied layers and the zeroed branches, in new
    # variables.
    return freeze({**big, "params": params})


# region: end


def add_layer_warm_start(
    seed,
    x,
    num_old_layers,
    num_extra_layers,
    features,
    *,
    small_variables=None,
    big_variables=None,
):
    """Apply a deep linear MLP started from a shallow one.

    Args:
        seed: whole number; seeds the small MLP, + 1000 the big.
        x: input, numeric, shape (din,).
        num_old_layers: whole number from 1; the small MLP's.
        num_extra_layers: whole number from 0; the big adds.
        features: whole number from 1; width of every layer.
        small_variables: params `layers_0`, ... of the small MLP.
        big_variables: the same of the big MLP.

    Returns:
        The big MLP's output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    old = arguments.size("num_old_layers", num_old_layers)
    extra = arguments.count("num_extra_layers", num_extra_layers)
    features = arguments.size("features", features)
    small = MLP(old, features)
    big = MLP(old + extra, features)
    small_variables = arguments.starting_variables(
        "small_variables", small_variables, small, seed, x
    )
    big_variables = arguments.starting_variables(
        "big_variables", big_variables, big, seed + 1000, x
    )
    return big.apply(copy_layers(small_variables, big_variables), x)


if __name__ == "__main__":
    print(add_layer_warm_start(0, jnp.arange(3.0), 2, 1, 2))
