"""Zero the kernel of the last layer.

Layers are an `nnx.List`, which has an order: the last one is
`model.layers[-1]`, and every other leaf stays where it is. The nnx
path `layers/2` is the Linen key `layers_2`.
"""

import jax
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
def zero_last_kernel(model: nnx.Module) -> None:
    # nnx: The last layer by index. The edit is in place and names
    # no other leaf.
    last = model.layers[-1]
    last.kernel = nnx.Param(jnp.zeros_like(last.kernel[...]))


# region: ablation
def ablation_sweep(
    model: MLP, x: jax.Array
) -> jax.Array:  # (num_layers,)
    intact = model(x)
    moved = []
    for layer in model.layers:
        kernel, bias = layer.kernel, layer.bias
        layer.kernel = nnx.Param(jnp.zeros_like(kernel[...]))
        layer.bias = nnx.Param(jnp.zeros_like(bias[...]))
        moved.append(jnp.linalg.norm(model(x) - intact))
        # nnx: The edit is in place, so the old Params are put back.
        layer.kernel, layer.bias = kernel, bias
    return jnp.stack(moved)


# region: end


def zero_last_layer_kernel(seed, x, num_layers, features):
    """Apply a linear MLP whose last kernel is zero.

    Args:
        seed: whole number; seeds the layers.
        x: input, numeric, shape (din,).
        num_layers: whole number from 1.
        features: whole number from 1; width of every layer.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    num_layers = arguments.size("num_layers", num_layers)
    features = arguments.size("features", features)
    rngs = nnx.Rngs(seed)
    model = MLP(x.shape[0], num_layers, features, rngs=rngs)
    zero_last_kernel(model)
    return model(x)


if __name__ == "__main__":
    print(zero_last_layer_kernel(0, jnp.arange(3.0), 4, 2))
