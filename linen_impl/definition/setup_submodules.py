"""Hold submodules in lists and dicts.

`setup` assigns plain lists and dicts of layers, whose names become
`layers_0` and `heads_value`. In nnx they are an `nnx.List` and an
`nnx.Dict`, with the paths `layers/0` and `heads/value`.
"""

# --8<-- [start:imports]
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# --8<-- [end:imports]
from linen2nnx import arguments


# --8<-- [start:model]
class GatedMLP(nn.Module):
    num_layers: int
    features: int

    def setup(self):
        self.layers = [  # (1)!
            nn.Dense(self.features) for _ in range(self.num_layers)
        ]
        self.heads = {  # (2)!
            "value": nn.Dense(self.features),
            "gate": nn.Dense(self.features),
        }

    def body(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x

    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "m"]:
        x = self.body(x)
        gate = nn.sigmoid(self.heads["gate"](x))
        return self.heads["value"](x) * gate


# --8<-- [end:model]


# --8<-- [start:head]
def apply_head(
    module: GatedMLP,
    variables: dict,
    x: Float[Array, "n"],
    name: str,
) -> Float[Array, "m"]:
    return module.apply(  # (1)!
        variables, x, method=lambda m, x: m.heads[name](m.body(x))
    )


# --8<-- [end:head]


# --8<-- [start:iterate]
def activations(
    module: GatedMLP, variables: dict, x: Float[Array, "n"]
) -> list:
    outputs = []
    for layer in module.bind(variables).layers:  # (1)!
        x = nn.relu(layer(x))
        outputs.append(x)
    return outputs


# --8<-- [end:iterate]


# --8<-- [start:extend]
def add_layer(
    module: GatedMLP, variables: dict, layer: dict
) -> tuple[GatedMLP, dict]:
    name = f"layers_{module.num_layers}"
    params = {**variables["params"], name: layer}
    deeper = module.clone(num_layers=module.num_layers + 1)
    return deeper, {**variables, "params": params}  # (1)!


# --8<-- [end:extend]


# --8<-- [start:data]
class Scales(nn.Module):
    num_layers: int
    features: int

    def setup(self):
        ones, shape = nn.initializers.ones, (self.features,)
        self.scales = [  # (1)!
            self.param(f"scales_{i}", ones, shape)
            for i in range(self.num_layers)
        ]

    def __call__(self, x: Float[Array, "n"]) -> Float[Array, "n"]:
        for scale in self.scales:
            x = nn.relu(x * scale)
        return x


# --8<-- [end:data]


def setup_submodules(
    seed, x, num_layers, features, *, variables=None
) -> Float[Array, "features"]:
    """Apply an MLP with two heads: the value times the gate.

    Args:
        seed: whole number; seeds the layers and heads.
        x: input, numeric, shape (din,).
        num_layers: whole number from 1; layers below the heads.
        features: whole number from 1; width of every layer.
        variables: params `layers_0`, ..., `heads_value`,
            `heads_gate` to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    num_layers = arguments.size("num_layers", num_layers)
    features = arguments.size("features", features)
    model = GatedMLP(num_layers, features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(variables, x)


if __name__ == "__main__":
    print(setup_submodules(0, jnp.arange(3.0), 2, 2))
