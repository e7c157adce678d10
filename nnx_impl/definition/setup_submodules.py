"""Hold submodules in lists and dicts.

A list of layers is an `nnx.List` and a dict of heads an `nnx.Dict`,
with the paths `layers/0` and `heads/value`. Linen assigns plain
lists and dicts in `setup`, and says `layers_0` and `heads_value`.
"""

import jax
import jax.numpy as jnp
from flax import nnx


# region: model - The model
class GatedMLP(nnx.Module):
    def __init__(
        self,
        din: int,
        num_layers: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [din] + [features] * num_layers
        # nnx: The paths are `layers/0`, `layers/1` and so on. Each
        # layer takes the size of its input.
        self.layers = nnx.List(
            nnx.Linear(widths[i], features, rngs=rngs)
            for i in range(num_layers)
        )
        # nnx: The paths are `heads/value` and `heads/gate`. Both
        # heads are made now, called or not.
        self.heads = nnx.Dict(
            value=nnx.Linear(features, features, rngs=rngs),
            gate=nnx.Linear(features, features, rngs=rngs),
        )

    def body(self, x):  # (n,) -> (m,)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x

    def __call__(self, x):  # (n,) -> (m,)
        x = self.body(x)
        gate = nnx.sigmoid(self.heads["gate"](x))
        return self.heads["value"](x) * gate


# region: head - Variation: choose a head by name
def apply_head(
    model: GatedMLP, x: jax.Array, name: str
) -> jax.Array:  # (n,) -> (m,)
    # nnx: The heads are there at any time.
    return model.heads[name](model.body(x))


# region: iterate - Variation: iterate over the layers
def activations(
    model: GatedMLP, x: jax.Array
) -> list:  # of arrays (m,)
    outputs = []
    for layer in model.layers:
        x = nnx.relu(layer(x))
        outputs.append(x)
    return outputs


# region: extend - Variation: add a layer after construction
def add_layer(model: GatedMLP, layer: nnx.Linear) -> None:
    # nnx: In place. An optimizer that was made before has no state
    # for the new Params.
    model.layers.append(layer)


# region: data - Variation: arrays in a plain list
class Scales(nnx.Module):
    def __init__(self, num_layers: int, features: int):
        # nnx: `nnx.data` says that this plain list holds Variables.
        # It stays a plain list, and the paths are `scales/0`,
        # `scales/1` and so on.
        self.scales = nnx.data(
            [
                nnx.Param(jnp.ones(features))
                for _ in range(num_layers)
            ]
        )

    def __call__(self, x):  # (n,) -> (n,)
        for scale in self.scales:
            x = nnx.relu(x * scale[...])
        return x


# region: end


if __name__ == "__main__":
    x = jnp.arange(3.0)
    rngs = nnx.Rngs(0)
    model = GatedMLP(din=3, num_layers=2, features=4, rngs=rngs)
    print(model(x))
