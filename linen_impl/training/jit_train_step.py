"""Jit a whole training step.

A step takes a `TrainState` of parameters, statistics, key and
moments and returns a new one. In nnx it updates the model in place;
held as a pure dict and merged inside `jax.jit`, it costs the same.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state


# region: model
class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train: bool):  # (b, n) -> (b, m)
        x = nn.Dense(self.features, name="linear")(x)
        norm = nn.BatchNorm(
            use_running_average=not train, name="norm"
        )
        x = nn.relu(norm(x))
        return nn.Dropout(0.1, deterministic=not train)(x)


class MLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x, train: bool = True):  # (b, n) -> (b, m)
        for i in range(self.num_layers):
            block = Block(self.features, name=f"blocks_{i}")
            x = block(x, train)
        return nn.Dense(self.features, name="head")(x)


# region: step
class TrainState(train_state.TrainState):
    params: Mapping
    batch_stats: Mapping
    key: jax.Array


def train_step(
    state: TrainState, x: jax.Array, y: jax.Array
) -> tuple[TrainState, jax.Array]:
    rngs = {"dropout": jax.random.fold_in(state.key, state.step)}

    def loss_fn(params):
        output, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            # Linen: The new statistics come out as a second result,
            # which the gradient function hands on.
            mutable=["batch_stats"],
            rngs=rngs,
        )
        return jnp.mean((output - y) ** 2), updates

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, updates), grads = grad_fn(state.params)
    return state.apply_gradients(grads=grads, **updates), loss


# region: train
def train(
    state: TrainState, batches: list
) -> tuple[TrainState, jax.Array]:  # losses (steps,)
    # Linen: `donate_argnums=0` lets XLA reuse the memory of the
    # old state.
    step = jax.jit(train_step)
    losses = []
    for x, y in batches:
        state, loss = step(state, x, y)
        losses.append(loss)
    return state, jnp.stack(losses)


# region: end


if __name__ == "__main__":
    x, adam = jnp.eye(4), optax.adam(1e-2)
    model = MLP(num_layers=2, features=4)
    state = TrainState.create(
        apply_fn=model.apply,
        tx=adam,
        key=jax.random.key(1),
        **model.init(jax.random.key(0), x, train=False),
    )
    print(train(state, [(x, x)] * 3)[1])
