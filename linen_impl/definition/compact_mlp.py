"""Name layers by attribute, not by order of construction.

Unnamed layers of a compact module are numbered as they are made:
`Dense_0`, `Dense_1`. nnx has no automatic names, so a table says
which name each of them takes; the same table names them in Linen.
"""

import flax.linen as nn
import jax.numpy as jnp


# region: model
class MLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x):  # (n,) -> (m,)
        # Linen: `Dense_0` is the layer that is made first;
        # `Dense_1` is made in the next line.
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.features)(x)


# region: nested
class NestedMLP(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x):  # (n,) -> (m,)
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
    def __call__(self, x):  # (n,) -> (m,)
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
    def __call__(self, x):  # (n,) -> (m,)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.features, name="output")(x)


def loop_names(num_layers: int) -> dict:
    return {f"Dense_{i}": f"layers_{i}" for i in range(num_layers)}


def load_params(params: dict, names: dict) -> dict:
    return {names[name]: layer for name, layer in params.items()}


# region: end


if __name__ == "__main__":
    layer = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    old = {"Dense_0": layer, "Dense_1": layer}
    model = NamedMLP(hidden=3, features=3)
    params = load_params(old, NAMES)
    print(model.apply({"params": params}, jnp.arange(3.0)))
