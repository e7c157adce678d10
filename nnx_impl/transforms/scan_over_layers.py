"""Scan one block over a stack of layers.

`nnx.vmap` over the constructor makes the stack, each layer from a
key of its own, and `nnx.scan` runs it. In Linen `nn.scan` does
both; `layers.dense.kernel` is `params/layers/dense/kernel` there,
of the same shape.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


# region: block
class Block(nnx.Module):
    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x):  # (n,) -> (n,)
        return x + nnx.relu(self.dense(x))


# region: model - The model
class ScannedMLP(nnx.Module):
    def __init__(
        self,
        din: int,
        num_layers: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        # nnx: Each layer gets a key of its own. After the call,
        # `rngs` has its one key again.
        @nnx.split_rngs(splits=num_layers)
        # nnx: One call of the constructor makes all layers, whose
        # Variables are stacked along axis 0.
        @nnx.vmap(in_axes=0, out_axes=0)
        def create_layers(rngs):
            return Block(features, rngs=rngs)

        self.proj = nnx.Linear(din, features, rngs=rngs)
        self.layers = create_layers(rngs)

    def __call__(self, x):  # (din,) -> (n,)
        # nnx: The activation is carried from layer to layer, and
        # axis 0 of the block's state is scanned.
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return block(x)

        return forward(self.proj(x), self.layers)


# region: stack
def stack_layers(layers: Sequence) -> nnx.Module:
    graphdef = nnx.graphdef(layers[0])
    # nnx: The stack is in the order of the list.
    states = [nnx.state(layer) for layer in layers]
    stack = jax.tree.map(lambda *leaf: jnp.stack(leaf), *states)
    return nnx.merge(graphdef, stack)


def unstack_layers(stack: nnx.Module) -> Sequence:
    graphdef, state = nnx.split(stack)
    num_layers = len(jax.tree.leaves(state)[0])

    def layer(i):
        return jax.tree.map(lambda leaf: leaf[i], state)

    return nnx.List(
        nnx.merge(graphdef, layer(i)) for i in range(num_layers)
    )


# region: training
class DropoutBlock(nnx.Module):
    def __init__(
        self, features: int, rate: float, *, rngs: nnx.Rngs
    ):
        self.dense = nnx.Linear(features, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):  # (b, n) -> (b, n)
        return x + self.dropout(self.norm(self.dense(x)))


class DropoutStack(nnx.Module):
    def __init__(
        self,
        num_layers: int,
        features: int,
        rate: float,
        *,
        rngs: nnx.Rngs,
    ):
        # nnx: The keys are split for the constructor, and so for
        # all calls of the model.
        @nnx.split_rngs(splits=num_layers)
        # nnx: The key of each layer's dropout is stacked as its
        # params are.
        @nnx.vmap(in_axes=0, out_axes=0)
        def create_layers(rngs):
            return DropoutBlock(features, rate, rngs=rngs)

        self.layers = create_layers(rngs)

    def __call__(self, x):  # (b, n) -> (b, n)
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return block(x)

        return forward(x, self.layers)


# region: end


if __name__ == "__main__":
    x = jnp.arange(3.0)
    rngs = nnx.Rngs(0)
    model = ScannedMLP(din=3, num_layers=2, features=4, rngs=rngs)
    print(model(x))
