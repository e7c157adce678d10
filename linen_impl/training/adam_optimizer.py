"""Adam with clipping and a schedule, and its state.

`TrainState` holds step, params and optax state and is replaced;
`nnx.Optimizer` holds no params and updates the model in place.
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from jaxtyping import Array, Float

from linen2nnx import arguments


# region: model
class MLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n"]
    ) -> Float[Array, "b m"]:
        # Linen: Each layer becomes a key of `params`: `layers_0`,
        # `layers_1` and so on.
        for i in range(self.num_layers):
            dense = nn.Dense(self.features, name=f"layers_{i}")
            x = dense(nn.relu(x) if i else x)
        return x


# region: optimizer
# Linen: One object for the same arguments. jax compares
# transformations by identity, and compiles the step again for
# another one.
@functools.cache
def create_tx(
    peak: float, num_steps: int
) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, num_steps // 10, num_steps
    )
    clip = optax.clip_by_global_norm(1.0)
    return optax.chain(clip, optax.adam(schedule))


def create_optimizer(
    model: nn.Module,
    params: Mapping,
    tx: optax.GradientTransformation,
) -> TrainState:
    return TrainState.create(
        apply_fn=model.apply, params=params, tx=tx
    )


# region: step
@jax.jit
def train_step(
    state: TrainState,
    x: Float[Array, "b n"],
    y: Float[Array, "b m"],
) -> tuple[TrainState, Float[Array, ""]]:
    def loss_fn(params):
        prediction = state.apply_fn({"params": params}, x)
        return jnp.mean((prediction - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    # Linen: A new state. The caller keeps it, or the step is lost.
    return state.apply_gradients(grads=grads), loss


# region: last_layer
def create_last_layer_optimizer(
    model: MLP, params: Mapping, tx: optax.GradientTransformation
) -> TrainState:
    last = f"layers_{model.num_layers - 1}"
    labels = {name: name == last for name in params}
    parts = {True: tx, False: optax.set_to_zero()}
    # Linen: All other params get updates of zero. The
    # transformation sees, and clips, the last layer only.
    tx = optax.partition(parts, labels)
    return create_optimizer(model, params, tx)


# region: resume
def load_opt_state(
    state: TrainState, step: int, opt_state: optax.OptState
) -> TrainState:
    # Linen: `TrainState` takes the tree as it is.
    return state.replace(step=step, opt_state=opt_state)


# region: end


def adam_losses(
    seed,
    x,
    y,
    num_layers,
    num_steps,
    learning_rate,
    *,
    variables=None,
) -> Float[Array, "num_steps"]:
    """Train an MLP on one batch; its layers are as wide as y.

    Args:
        seed: whole number; seeds the MLP.
        x: inputs, numeric, shape (batch, din).
        y: targets, numeric, shape (batch, features).
        num_layers: whole number from 1.
        num_steps: whole number from 1; the schedule ends there.
        learning_rate: finite number; the peak of the schedule.
        variables: params `layers_0`, ... to start from.

    Returns:
        The loss before each step, shape (num_steps,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.batch("x", x)
    y = arguments.targets("y", y, x)
    layers = arguments.size("num_layers", num_layers)
    steps = arguments.size("num_steps", num_steps)
    peak = arguments.number("learning_rate", learning_rate)
    model = MLP(layers, y.shape[1])
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    tx = create_tx(peak, steps)
    state = create_optimizer(model, variables["params"], tx)
    losses = []
    for _ in range(steps):
        state, loss = train_step(state, x, y)
        losses.append(loss)
    return jnp.stack(losses)


if __name__ == "__main__":
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    print(adam_losses(0, x, y, 2, 5, 0.1))
