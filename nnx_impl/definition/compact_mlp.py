"""Name layers by attribute, not by order of construction.

nnx has no automatic names: a layer's path is its attribute. Linen's
unnamed layers are numbered as they are made, `Dense_0`, `Dense_1`;
a table says which attribute takes the params of which.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict


# region: model - The model
class MLP(nnx.Module):
    def __init__(
        self,
        din: int,
        hidden: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        # nnx: The kernel's path is `hidden/kernel`. The layer takes
        # the size of its input; nothing is inferred from `x`.
        self.hidden = nnx.Linear(din, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x):  # (n,) -> (m,)
        x = nnx.relu(self.hidden(x))
        return self.output(x)


# region: nested
class NestedMLP(nnx.Module):
    def __init__(
        self,
        din: int,
        hidden: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.hidden = nnx.Linear(din, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x):  # (n,) -> (m,)
        # nnx: Nested or not, the names are the same: nothing is
        # made here.
        return self.output(nnx.relu(self.hidden(x)))


# region: loop - Layers made in a loop
class LoopMLP(nnx.Module):
    def __init__(
        self,
        din: int,
        num_layers: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [din] + [features] * num_layers
        # nnx: The path of the third kernel is `layers/2/kernel`,
        # and 2 is an integer there.
        self.layers = nnx.List(
            nnx.Linear(widths[i], features, rngs=rngs)
            for i in range(num_layers)
        )

    def __call__(self, x):  # (n,) -> (m,)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


# region: load
NAMES = {"Dense_0": ("hidden",), "Dense_1": ("output",)}
NESTED_NAMES = {"Dense_0": ("output",), "Dense_1": ("hidden",)}


def loop_names(num_layers: int) -> dict:
    return {f"Dense_{i}": ("layers", i) for i in range(num_layers)}


def load_params(
    model: nnx.Module, params: dict, names: dict
) -> None:
    new = unflatten_dict(
        {
            # nnx: A layer that the table does not name is a
            # `KeyError`.
            (*names[name], leaf): array
            for (name, leaf), array in flatten_dict(params).items()
        }
    )
    old = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, old):
        # nnx: `nnx.update` itself checks neither paths nor shapes.
        # Nothing is loaded unless all fits.
        raise ValueError("a path or a shape differs")
    nnx.update(model, new)


# region: end


if __name__ == "__main__":
    layer = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    old = {"Dense_0": layer, "Dense_1": layer}
    model = MLP(din=3, hidden=3, features=3, rngs=nnx.Rngs(0))
    load_params(model, old, NAMES)
    print(model(jnp.arange(3.0)))
