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
from jaxtyping import Array, Float

from linen2nnx import arguments


# region: model
class MLP(nn.Module):
    width: int
    dout: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n"], train: bool = True
    ) -> Float[Array, "b m"]:
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
    state: TrainState,
    x: Float[Array, "b n"],
    y: Float[Array, "b m"],
) -> tuple[TrainState, Float[Array, ""]]:
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
    state: TrainState,
    x: Float[Array, "b n"],
    y: Float[Array, "b m"],
) -> Float[Array, ""]:
    variables = {
        "params": state.params,
        "batch_stats": state.batch_stats,
    }
    # Linen: Nothing is mutable: the statistics are read only.
    prediction = state.apply_fn(variables, x, train=False)
    return jnp.mean((prediction - y) ** 2)


# region: end


def batchnorm_losses(
    seed, x, y, hidden, num_steps, learning_rate, *, variables=None
) -> Float[Array, "num_steps"]:
    """Train an MLP with BatchNorm on one batch.

    Args:
        seed: whole number; seeds the MLP.
        x: inputs, numeric, shape (batch, din).
        y: targets, numeric, shape (batch, features).
        hidden: whole number from 1; width of the hidden layer.
        num_steps: whole number from 1.
        learning_rate: finite number, of SGD with momentum.
        variables: params and batch_stats to start from.

    Returns:
        The loss before each step, shape (num_steps,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.batch("x", x)
    y = arguments.targets("y", y, x)
    hidden = arguments.size("hidden", hidden)
    steps = arguments.size("num_steps", num_steps)
    rate = arguments.number("learning_rate", learning_rate)
    model = MLP(hidden, y.shape[1])
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    state = create_optimizer(model, variables, create_tx(rate))
    losses = []
    for _ in range(steps):
        state, loss = train_step(state, x, y)
        losses.append(loss)
    return jnp.stack(losses)


if __name__ == "__main__":
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    print(batchnorm_losses(0, x, y, 4, 5, 0.1))
