"""Name layers by attribute, not by order of construction.

nnx has no automatic names: a layer's path is its attribute. Linen's
unnamed layers are numbered as they are made, `Dense_0`, `Dense_1`;
a table says which attribute takes the params of which.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from linen2nnx import arguments


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
        # nnx: The path of this kernel is `hidden/kernel`. The layer
        # takes the size of its input; nothing is inferred from `x`.
        self.hidden = nnx.Linear(din, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
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

    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
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

    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
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


def compact_mlp(
    seed, x, hidden, features
) -> Float[Array, "features"]:
    """Apply an MLP of two layers with a relu between them.

    Args:
        seed: whole number; seeds the layers.
        x: input, numeric, shape (din,).
        hidden: whole number from 1; width of the first layer.
        features: whole number from 1; size of the output.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    hidden = arguments.size("hidden", hidden)
    features = arguments.size("features", features)
    rngs = nnx.Rngs(int(seed))
    return MLP(x.shape[0], hidden, features, rngs=rngs)(x)


if __name__ == "__main__":
    print(compact_mlp(0, jnp.arange(3.0), 4, 2))
