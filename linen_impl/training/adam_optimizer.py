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


# region: model
class MLP(nn.Module):
    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x):  # (b, n) -> (b, m)
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
    state: TrainState, x: jax.Array, y: jax.Array
) -> tuple[TrainState, jax.Array]:
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


if __name__ == "__main__":
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    model = MLP(num_layers=2, features=3)
    params = model.init(jax.random.key(1), x)["params"]
    state = create_optimizer(model, params, create_tx(0.1, 5))
    losses = []
    for _ in range(5):
        state, loss = train_step(state, x, y)
        losses.append(loss)
    print(jnp.stack(losses))
