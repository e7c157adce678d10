"""Hold submodules in lists and dicts.

`setup` assigns plain lists and dicts of layers, whose names become
`layers_0` and `heads_value`. In nnx they are an `nnx.List` and an
`nnx.Dict`, with the paths `layers/0` and `heads/value`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


# region: model
class GatedMLP(nn.Module):
    num_layers: int
    features: int

    def setup(self):
        # Linen: The params are `layers_0`, `layers_1` and so on.
        self.layers = [
            nn.Dense(self.features) for _ in range(self.num_layers)
        ]
        # Linen: The params are `heads_value` and `heads_gate`.
        self.heads = {
            "value": nn.Dense(self.features),
            "gate": nn.Dense(self.features),
        }

    def body(self, x):  # (n,) -> (m,)
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x

    def __call__(self, x):  # (n,) -> (m,)
        x = self.body(x)
        gate = nn.sigmoid(self.heads["gate"](x))
        return self.heads["value"](x) * gate


# region: head
def apply_head(
    module: GatedMLP, variables: dict, x: jax.Array, name: str
) -> jax.Array:  # (n,) -> (m,)
    # Linen: Submodules exist inside `apply` only, so the choice is
    # made in a method.
    return module.apply(
        variables, x, method=lambda m, x: m.heads[name](m.body(x))
    )


# region: iterate
def activations(
    module: GatedMLP, variables: dict, x: jax.Array
) -> list:  # of arrays (m,)
    outputs = []
    # Linen: A bound module holds its variables, and its layers can
    # be called from outside.
    for layer in module.bind(variables).layers:
        x = nn.relu(layer(x))
        outputs.append(x)
    return outputs


# region: extend
def add_layer(
    module: GatedMLP, variables: dict, layer: dict
) -> tuple[GatedMLP, dict]:
    name = f"layers_{module.num_layers}"
    params = {**variables["params"], name: layer}
    deeper = module.clone(num_layers=module.num_layers + 1)
    # Linen: A new module and new variables. The layer's params are
    # those of an `nn.Dense`.
    return deeper, {**variables, "params": params}


# region: data
class Scales(nn.Module):
    num_layers: int
    features: int

    def setup(self):
        ones, shape = nn.initializers.ones, (self.features,)
        # Linen: Each param is named; the list is for `__call__`
        # alone.
        self.scales = [
            self.param(f"scales_{i}", ones, shape)
            for i in range(self.num_layers)
        ]

    def __call__(self, x):  # (n,) -> (n,)
        for scale in self.scales:
            x = nn.relu(x * scale)
        return x


# region: end


if __name__ == "__main__":
    x = jnp.arange(3.0)
    model = GatedMLP(num_layers=2, features=4)
    variables = model.init(jax.random.key(0), x)
    print(model.apply(variables, x))
