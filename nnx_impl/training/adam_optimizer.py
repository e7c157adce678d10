"""Adam with clipping and a schedule, and its state.

`nnx.Optimizer` holds step and optax state and updates the model in
place; Linen's `TrainState` holds the params too and is replaced.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx


# region: model - The model
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
        # nnx: Each layer becomes an item of the list. A plain
        # Python list raises an error.
        self.layers = nnx.List(
            nnx.Linear(widths[i], features, rngs=rngs)
            for i in range(num_layers)
        )

    def __call__(self, x):  # (b, n) -> (b, m)
        for i, layer in enumerate(self.layers):
            x = layer(nnx.relu(x) if i else x)
        return x


# region: optimizer - The optimizer
# nnx: One object for the same arguments. jax compares
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
    model: nnx.Module, tx: optax.GradientTransformation
) -> nnx.Optimizer:
    # nnx: The moments get the structure of the Params that the
    # model has at this moment.
    return nnx.Optimizer(model, tx, wrt=nnx.Param)


# region: step - The step
@nnx.jit
def train_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    def loss_fn(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    # nnx: Model and optimizer are updated in place. Only the loss
    # is returned.
    optimizer.update(model, grads)
    return loss


# region: last_layer - Variation: train the last layer only
def create_last_layer_optimizer(
    model: MLP, tx: optax.GradientTransformation
) -> nnx.Optimizer:
    last = nnx.PathContains(len(model.layers) - 1)
    # nnx: The optimizer keeps moments for these Params only, and
    # ignores all other gradients.
    wrt = nnx.All(nnx.Param, last)
    return nnx.Optimizer(model, tx, wrt=wrt)


# region: resume
def load_opt_state(
    optimizer: nnx.Optimizer, step: int, opt_state: optax.OptState
) -> None:
    optimizer.step[...] = step
    _, (adam, schedule) = optimizer.opt_state
    _, (old_adam, old_schedule) = opt_state
    adam.count[...] = old_adam.count
    schedule.count[...] = old_schedule.count
    for ours, old in zip((adam.mu, adam.nu), old_adam[1:]):
        for i, layer in ours["layers"].items():
            # nnx: The moments `mu` and `nu` have the structure of
            # the Params: `layers_2` is `layers`, 2.
            for name, leaf in layer.items():
                leaf[...] = old[f"layers_{i}"][name]


# region: end


if __name__ == "__main__":
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    model = MLP(3, num_layers=2, features=3, rngs=nnx.Rngs(1))
    optimizer = create_optimizer(model, create_tx(0.1, 5))
    losses = []
    for _ in range(5):
        losses.append(train_step(model, optimizer, x, y))
    print(jnp.stack(losses))
