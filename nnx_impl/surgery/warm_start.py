"""Start a deeper model from a trained shallow one.

Each old layer's kernel and bias are assigned to the big model's
layer of the same index. In Linen the params take them over by key:
the nnx path `layers/2` is the Linen key `layers_2`.
"""

import jax.numpy as jnp
from flax import nnx

from linen2nnx import arguments


# region: model - The model
class MLP(nnx.Module):
    def __init__(
        self,
        din: int,
        num_layers: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [din] + [features] * num_layers
        # nnx: Each layer becomes an item of the list. A plain
        # Python list raises an error.
        self.layers = nnx.List(
            nnx.Linear(widths[i], features, rngs=rngs)
            for i in range(num_layers)
        )

    def __call__(self, x):  # (n,) -> (m,)
        for layer in self.layers:
            x = layer(x)
        return x


# region: edit - The edit
def copy_layers(small: nnx.Module, big: nnx.Module) -> None:
    for i, layer in enumerate(small.layers):
        # nnx: A new Param per leaf. Assigning the old Param itself
        # would tie the models.
        big.layers[i].kernel = nnx.Param(layer.kernel[...])
        big.layers[i].bias = nnx.Param(layer.bias[...])


# region: identity
def grow_by_identity(small: MLP, big: MLP) -> None:
    copy_layers(small, big)
    for layer in big.layers[len(small.layers) :]:
        bias = layer.bias[...]
        # nnx: An identity kernel in the dtype of the layer; the
        # bias is zeroed below.
        kernel = jnp.eye(len(bias), dtype=bias.dtype)
        layer.kernel = nnx.Param(kernel)
        layer.bias = nnx.Param(jnp.zeros_like(bias))


# region: residual
class ResidualMLP(nnx.Module):
    def __init__(
        self,
        din: int,
        num_layers: int,
        num_blocks: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        mlp = MLP(din, num_layers, features, rngs=rngs)
        self.layers = mlp.layers
        self.blocks = nnx.List(
            nnx.Linear(features, features, rngs=rngs)
            for _ in range(num_blocks)
        )

    def __call__(self, x):  # (n,) -> (m,)
        for layer in self.layers:
            x = layer(x)
        for branch in self.blocks:
            # nnx: A branch whose kernel and bias are zero adds
            # zero.
            x = x + branch(nnx.relu(x))
        return x


def grow_by_residual(small: MLP, big: ResidualMLP) -> None:
    copy_layers(small, big)
    for branch in big.blocks:
        kernel, bias = branch.kernel[...], branch.bias[...]
        branch.kernel = nnx.Param(jnp.zeros_like(kernel))
        # nnx: The big model is changed in place; nothing is
        # returned.
        branch.bias = nnx.Param(jnp.zeros_like(bias))


# region: end


def add_layer_warm_start(
    seed, x, num_old_layers, num_extra_layers, features
):
    """Apply a deep linear MLP started from a shallow one.

    Args:
        seed: whole number; seeds the small MLP, + 1000 the big.
        x: input, numeric, shape (din,).
        num_old_layers: whole number from 1; the small MLP's.
        num_extra_layers: whole number from 0; the big adds.
        features: whole number from 1; width of every layer.

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
    din = x.shape[0]
    small = MLP(din, old, features, rngs=nnx.Rngs(seed))
    rngs = nnx.Rngs(seed + 1000)
    big = MLP(din, old + extra, features, rngs=rngs)
    copy_layers(small, big)
    return big(x)


if __name__ == "__main__":
    print(add_layer_warm_start(0, jnp.arange(3.0), 2, 1, 2))
