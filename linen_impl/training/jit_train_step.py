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
from jaxtyping import Array, Float
from linen2nnx import arguments


# region: model
class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n"], train: bool
    ) -> Float[Array, "b m"]:
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
    def __call__(
        self, x: Float[Array, "b n"], train: bool = True
    ) -> Float[Array, "b m"]:
        for i in range(self.num_layers):
            block = Block(self.features, name=f"blocks_{i}")
            x = block(x, train)
        return nn.Dense(self.features, name="head")(x)


# region: step
class TrainState(train_state.TrainState):
    params: Mapping
    batch_stats: Mapping
    key: Array


def train_step(
    state: TrainState, x: Array, y: Array
) -> tuple[TrainState, Float[Array, ""]]:
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
) -> tuple[TrainState, Float[Array, "steps"]]:
    # Linen: As above: Linen has one way.
    step = jax.jit(train_step)
    losses = []
    for x, y in batches:
        state, loss = step(state, x, y)
        losses.append(loss)
    return state, jnp.stack(losses)


# region: end


def jit_train_step(
    seed,
    x,
    y,
    num_layers,
    num_steps,
    learning_rate,
    *,
    variables=None,
) -> Float[Array, "num_steps"]:
    """Train an MLP with BatchNorm and dropout, by Adam, on a batch.

    Args:
        seed: whole number; seeds the weights, + 1 the dropout.
        x: inputs, numeric, shape (batch, din).
        y: targets, numeric, shape (batch, features).
        num_layers: whole number from 1.
        num_steps: whole number from 1.
        learning_rate: finite number.
        variables: {"params", "batch_stats"} to start from.

    Returns:
        The loss of each step, shape (num_steps,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.batch("x", x)
    y = arguments.targets("y", y, x)
    num_layers = arguments.size("num_layers", num_layers)
    num_steps = arguments.size("num_steps", num_steps)
    rate = arguments.number("learning_rate", learning_rate)
    model = MLP(num_layers, y.shape[1])
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    state = TrainState.create(
        apply_fn=model.apply,
        tx=optax.adam(rate),
        key=jax.random.key(seed + 1),
        **variables.unfreeze(),
    )
    return train(state, [(x, y)] * num_steps)[1]


if __name__ == "__main__":
    x = jnp.eye(4)
    print(jit_train_step(0, x, x, 2, 3, 1e-2))
