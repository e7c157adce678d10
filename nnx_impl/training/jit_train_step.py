"""Jit a whole training step.

A step updates model and optimizer in place: parameters, statistics,
RNG state, moments. Held as a pure dict and merged inside `jax.jit`,
they cost what a `TrainState` does in Linen.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx


# region: model - The model
class Block(nnx.Module):
    def __init__(self, din: int, features: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(din, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, x, rngs: nnx.RngStream):  # (b, n) -> (b, m)
        x = nnx.relu(self.norm(self.linear(x)))
        return self.dropout(x, rngs=rngs)


class MLP(nnx.Module):
    def __init__(
        self,
        din: int,
        num_layers: int,
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [din] + [features] * num_layers
        self.blocks = nnx.List(
            Block(widths[i], features, rngs=rngs)
            for i in range(num_layers)
        )
        self.head = nnx.Linear(features, features, rngs=rngs)
        # nnx: One stream for all dropout layers: one key and one
        # count in the state.
        self.dropout_rngs = rngs.dropout.fork()

    def __call__(self, x):  # (b, n) -> (b, m)
        for block in self.blocks:
            x = block(x, self.dropout_rngs)
        return self.head(x)


# region: step - The step
def train_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, rest):
        # nnx: The merged model shares its Variables with `model`:
        # new statistics and the advanced RNG count are there
        # afterwards. Only the Params are differentiated.
        model = nnx.merge(graphdef, params, rest)
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(params, rest)
    optimizer.update(model, grads)
    return loss


# region: train - The loop
def train(
    model: nnx.Module, optimizer: nnx.Optimizer, batches: list
) -> jax.Array:  # losses (steps,)
    graphdef, state = nnx.split((model, optimizer))
    # nnx: Nested dicts of arrays, which `jax.jit` takes apart
    # faster than an `nnx.State`.
    state = nnx.to_pure_dict(state)

    @jax.jit
    def step(state, x, y):
        model, optimizer = nnx.merge(graphdef, state)
        loss = train_step(model, optimizer, x, y)
        state = nnx.state((model, optimizer))
        return nnx.to_pure_dict(state), loss

    losses = []
    for x, y in batches:
        state, loss = step(state, x, y)
        losses.append(loss)
    # nnx: Until here the model and the optimizer hold what they
    # held before the loop.
    nnx.update((model, optimizer), state)
    return jnp.stack(losses)


# region: nnx_in_place
def train_by_nnx_jit(model, optimizer, batches):
    step = nnx.jit(train_step)
    return [step(model, optimizer, x, y) for x, y in batches]


def train_by_cached_partial(model, optimizer, batches):
    step = nnx.cached_partial(nnx.jit(train_step), model, optimizer)
    return [step(x, y) for x, y in batches]


def train_by_jit_partial(model, optimizer, batches):
    step = nnx.jit_partial(
        train_step, model, optimizer, graph=False
    )
    return [step(x, y) for x, y in batches]


# region: end


if __name__ == "__main__":
    x, adam = jnp.eye(4), optax.adam(1e-2)
    rngs = nnx.Rngs(params=0, dropout=1)
    model = MLP(din=4, num_layers=2, features=4, rngs=rngs)
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    print(train(model, optimizer, [(x, x)] * 3))
