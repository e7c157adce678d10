"""Train and evaluate a model with BatchNorm.

The statistics are a collection that `apply` returns when it is
mutable, and that the state keeps. In nnx they are Variables of the
model, and each call in train mode updates them in place.
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state


# region: model
class MLP(nn.Module):
    width: int
    dout: int

    @nn.compact
    def __call__(self, x, train: bool = True):  # (b, n) -> (b, m)
        x = nn.Dense(self.width, name="hidden")(x)
        norm = nn.BatchNorm(name="norm")
        # Linen: The mode is an argument of the call.
        x = norm(x, use_running_average=not train)
        return nn.Dense(self.dout, name="head")(nn.relu(x))


# region: optimizer
class TrainState(train_state.TrainState):
    params: Mapping
    batch_stats: Mapping


# Linen: One object for the same arguments. jax compares
# transformations by identity, and compiles the step again for
# another one.
@functools.cache
def create_tx(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.9)


def create_optimizer(
    model: nn.Module,
    variables: Mapping,
    tx: optax.GradientTransformation,
) -> TrainState:
    # Linen: Params and statistics: the variables have one key for
    # each field.
    return TrainState.create(
        apply_fn=model.apply, tx=tx, **variables
    )


# region: step
@jax.jit
def train_step(
    state: TrainState, x: jax.Array, y: jax.Array
) -> tuple[TrainState, jax.Array]:
    def loss_fn(params):
        old = {"params": params, "batch_stats": state.batch_stats}
        prediction, updates = state.apply_fn(
            old, x, mutable=["batch_stats"]
        )
        # Linen: `apply` returns the updated statistics, and the
        # loss hands them on beside its value.
        return jnp.mean((prediction - y) ** 2), updates

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, updates), grads = grad_fn(state.params)
    # Linen: `updates` is `{"batch_stats": ...}`. What is not put
    # into the state is lost.
    state = state.apply_gradients(grads=grads, **updates)
    return state, loss


# region: evaluate
@jax.jit
def evaluate(
    state: TrainState, x: jax.Array, y: jax.Array
) -> jax.Array:
    variables = {
        "params": state.params,
        "batch_stats": state.batch_stats,
    }
    # Linen: Nothing is mutable: the statistics are read only.
    prediction = state.apply_fn(variables, x, train=False)
    return jnp.mean((prediction - y) ** 2)


# region: end


if __name__ == "__main__":
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    model = MLP(width=4, dout=3)
    variables = model.init(jax.random.key(1), x)
    state = create_optimizer(model, variables, create_tx(0.1))
    losses = []
    for _ in range(5):
        state, loss = train_step(state, x, y)
        losses.append(loss)
    print(jnp.stack(losses))
