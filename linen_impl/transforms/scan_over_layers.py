"""Scan one block over a stack of layers.

`nn.scan` lifts the block: params gain a leading axis of layers, and
each layer is initialised from a key of its own. In nnx `nnx.vmap`
makes the stack and `nnx.scan` runs it; `params/layers/dense/kernel`
is `layers.dense.kernel` there, of the same shape.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


# region: block
class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):  # (n,) -> (n,)
        return x + nn.relu(nn.Dense(self.features, name="dense")(x))


# region: model
class ScannedMLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x):  # (din,) -> (n,)
        def forward(block, x, _):
            return block(x), None

        scan = nn.scan(
            forward,
            # Linen: Params are stacked along axis 0: every leaf
            # gains a leading axis of layers.
            variable_axes={"params": 0},
            # Linen: Each layer gets a key of its own. With False
            # all layers start identical.
            split_rngs={"params": True},
            length=self.num_layers,
        )
        x = nn.Dense(self.features, name="proj")(x)
        block = Block(self.features, name="layers")
        return scan(block, x, None)[0]


# region: stack
def stack_layers(params: dict) -> dict:
    names = [k for k in params if not k.startswith("layers_")]
    rest = {name: params[name] for name in names}
    indices = range(len(params) - len(rest))
    # Linen: They are stacked by index: in the order of names
    # `layers_10` comes before `layers_2`.
    layers = [params[f"layers_{i}"] for i in indices]
    stack = jax.tree.map(lambda *leaf: jnp.stack(leaf), *layers)
    return {**rest, "layers": stack}


def unstack_layers(params: dict) -> dict:
    rest = {k: p for k, p in params.items() if k != "layers"}
    num_layers = len(jax.tree.leaves(params["layers"])[0])

    def layer(i):
        return jax.tree.map(lambda leaf: leaf[i], params["layers"])

    return {
        **rest,
        **{f"layers_{i}": layer(i) for i in range(num_layers)},
    }


# region: training
class DropoutBlock(nn.Module):
    features: int
    rate: float

    @nn.compact
    def __call__(self, x, train: bool):  # (b, n) -> (b, n)
        h = nn.Dense(self.features, name="dense")(x)
        norm = nn.BatchNorm(
            use_running_average=not train, name="norm"
        )
        dropout = nn.Dropout(self.rate, deterministic=not train)
        return x + dropout(norm(h))


class DropoutStack(nn.Module):
    num_layers: int
    features: int
    rate: float

    @nn.compact
    def __call__(self, x, train: bool):  # (b, n) -> (b, n)
        def forward(block, x, _):
            return block(x, train), None

        scan = nn.scan(
            forward,
            # Linen: Statistics are stacked as params are. `apply`
            # takes `mutable=["batch_stats"]`.
            variable_axes={"params": 0, "batch_stats": 0},
            # Linen: The stream `dropout` has to be named, or
            # training raises an error.
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
        )
        block = DropoutBlock(
            self.features, self.rate, name="layers"
        )
        return scan(block, x, None)[0]


# region: end


if __name__ == "__main__":
    x = jnp.arange(3.0)
    model = ScannedMLP(num_layers=2, features=4)
    variables = model.init(jax.random.key(0), x)
    print(model.apply(variables, x))
