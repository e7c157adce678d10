"""Zero the kernel of the last layer.

Layers are keys of a dict and have no order: the last one is found
by its number. In nnx it is `model.layers[-1]`: the Linen key
`layers_2` is the nnx path `layers/2`.

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
def zero_last_kernel(variables: FrozenDict) -> FrozenDict:
    params = variables["params"]
    # Linen: The keys have no order: the last layer is found by its
    # number.
    name = f"layers_{len(params) - 1}"
    layer = params[name]
    layer = {**layer, "kernel": jnp.zeros_like(layer["kernel"])}
    return freeze({**variables, "params": {**params, name: layer}})


# region: ablation
def ablation_sweep(
    model: MLP, variables: FrozenDict, x: jax.Array
) -> jax.Array:  # (num_layers,)
    intact = model.apply(variables, x)
    params = variables["params"]
    moved = []
    for i in range(model.num_layers):
        zeroed = jax.tree.map(jnp.zeros_like, params[f"layers_{i}"])
        # Linen: A new dict for each layer. The original is left as
        # it was.
        ablated = {**params, f"layers_{i}": zeroed}
        y = model.apply({**variables, "params": ablated}, x)
        moved.append(jnp.linalg.norm(y - intact))
    return jnp.stack(moved)


# region: end


def zero_last_layer_kernel(
    seed, x, num_layers, features, *, variables=None
):
    """Apply a linear MLP whose last kernel is zero.

    Args:
        seed: whole number; seeds the layers.
        x: input, numeric, shape (din,).
        num_layers: whole number from 1.
        features: whole number from 1; width of every layer.
        variables: {"params": {"layers_0": {"kernel", "bias"}, ...}}
            to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    num_layers = arguments.size("num_layers", num_layers)
    features = arguments.size("features", features)
    model = MLP(num_layers, features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(zero_last_kernel(variables), x)


if __name__ == "__main__":
    print(zero_last_layer_kernel(0, jnp.arange(3.0), 4, 2))
