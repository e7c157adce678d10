"""Train and evaluate a model with BatchNorm.

The statistics are Variables of the model, and each call in train
mode updates them in place; only the Params are differentiated. In
Linen they are a collection that `apply` returns for the state.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx


# region: model - The model
class MLP(nnx.Module):
    def __init__(
        self, din: int, width: int, dout: int, *, rngs: nnx.Rngs
    ):
        self.hidden = nnx.Linear(din, width, rngs=rngs)
        # nnx: The mode is an attribute of the layer. A new model is
        # in train mode.
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, dout, rngs=rngs)

    def __call__(self, x):  # (b, n) -> (b, m)
        x = self.norm(self.hidden(x))
        return self.head(nnx.relu(x))


# region: optimizer - The optimizer
# nnx: One object for the same arguments. jax compares
# transformations by identity, and compiles the step again for
# another one.
@functools.cache
def create_tx(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.9)


def create_optimizer(
    model: nnx.Module, tx: optax.GradientTransformation
) -> nnx.Optimizer:
    # nnx: The statistics are no Params. The optimizer leaves them
    # alone.
    return nnx.Optimizer(model, tx, wrt=nnx.Param)


# region: step - The step
@nnx.jit
def train_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, rest):
        model = nnx.merge(graphdef, params, rest)
        # nnx: The call updates the statistics in `rest`, which are
        # those of the model.
        return jnp.mean((model(x) - y) ** 2)

    # nnx: Only the first argument, the params, is differentiated.
    # `rest` is passed on, so that its updates reach the model.
    loss, grads = nnx.value_and_grad(loss_fn)(params, rest)
    optimizer.update(model, grads)
    return loss


# region: evaluate - Variation: evaluate
@nnx.jit
def evaluate(
    model: nnx.Module, x: jax.Array, y: jax.Array
) -> jax.Array:
    # nnx: A view shares the Variables of the model and has modes of
    # its own, so that the model stays in train mode.
    model = nnx.view(model, use_running_average=True)
    return jnp.mean((model(x) - y) ** 2)


# region: end


if __name__ == "__main__":
    x, y = jax.random.normal(jax.random.key(0), (2, 8, 3))
    model = MLP(3, width=4, dout=3, rngs=nnx.Rngs(1))
    optimizer = create_optimizer(model, create_tx(0.1))
    losses = []
    for _ in range(5):
        losses.append(train_step(model, optimizer, x, y))
    print(jnp.stack(losses))
