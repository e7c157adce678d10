"""Name layers by attribute, not by order of construction.

Unnamed layers of a compact module are numbered as they are made:
`Dense_0`, `Dense_1`. nnx has no automatic names, so a table says
which name each of them takes; the same table names them in Linen.
"""

# --8<-- [start:imports]
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# --8<-- [end:imports]
from linen2nnx import arguments


# --8<-- [start:model]
class MLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        x = nn.relu(nn.Dense(self.hidden)(x))  # (1)!
        return nn.Dense(self.features)(x)


# --8<-- [end:model]


# --8<-- [start:nested]
class NestedMLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        return nn.Dense(self.features)(  # (1)!
            nn.relu(nn.Dense(self.hidden)(x))
        )


# --8<-- [end:nested]


# --8<-- [start:loop]
class LoopMLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        for _ in range(self.num_layers):
            x = nn.relu(nn.Dense(self.features)(x))  # (1)!
        return x


# --8<-- [end:loop]


# --8<-- [start:load]
class NamedMLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.features, name="output")(x)


NAMES = {"Dense_0": "hidden", "Dense_1": "output"}
NESTED_NAMES = {"Dense_0": "output", "Dense_1": "hidden"}


def loop_names(num_layers: int) -> dict:
    return {f"Dense_{i}": f"layers_{i}" for i in range(num_layers)}


def load_params(params: dict, names: dict) -> dict:
    return {names[name]: layer for name, layer in params.items()}


# --8<-- [end:load]


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
