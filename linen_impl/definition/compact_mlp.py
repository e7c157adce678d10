"""Name layers by attribute, not by order of construction.

Unnamed layers of a compact module are numbered as they are made:
`Dense_0`, `Dense_1`. nnx has no automatic names, so a table says
which name each of them takes; the same table names them in Linen.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from linen2nnx import arguments


# region: model
class MLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        # Linen: `Dense_0` is the layer that is made first;
        # `Dense_1` is made in the next line.
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.features)(x)


# region: nested
class NestedMLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        # Linen: Python evaluates the outer `nn.Dense` before its
        # argument, so the output layer is `Dense_0` and the hidden
        # layer `Dense_1`.
        return nn.Dense(self.features)(
            nn.relu(nn.Dense(self.hidden)(x))
        )


# region: loop
class LoopMLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        for _ in range(self.num_layers):
            # Linen: `Dense_0`, `Dense_1` and so on, one more at
            # each turn.
            x = nn.relu(nn.Dense(self.features)(x))
        return x


# region: load
NAMES = {"Dense_0": "hidden", "Dense_1": "output"}
NESTED_NAMES = {"Dense_0": "output", "Dense_1": "hidden"}


class NamedMLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.features, name="output")(x)


def loop_names(num_layers: int) -> dict:
    return {f"Dense_{i}": f"layers_{i}" for i in range(num_layers)}


def load_params(params: dict, names: dict) -> dict:
    return {names[name]: layer for name, layer in params.items()}


# region: end


def compact_mlp(
    seed, x, hidden, features, *, variables=None
) -> Float[Array, "features"]:
    """Apply an MLP of two layers with a relu between them.

    Args:
        seed: whole number; seeds the layers.
        x: input, numeric, shape (din,).
        hidden: whole number from 1; width of the first layer.
        features: whole number from 1; size of the output.
        variables: params `Dense_0`, `Dense_1` to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    hidden = arguments.size("hidden", hidden)
    features = arguments.size("features", features)
    model = MLP(hidden, features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(variables, x)


if __name__ == "__main__":
    print(compact_mlp(0, jnp.arange(3.0), 4, 2))
