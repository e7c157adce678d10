"""What a step of `modes/batchnorm_train_step` costs."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from linen2nnx import parity
from linen2nnx.cost.arms import (  # noqa: F401, pytest finds the test in here
    WIDTH,
    pytest_generate_tests,
    strict,
    test_overhead,
    twins,
)
from linen2nnx.cost.step import (
    Step,
    plain_batch_norm,
    plain_dense,
    random_batch,
    step_benchmark,
)

PROBLEM = "modes/batchnorm_train_step"

linen, nnx_side = twins(PROBLEM)
TX = linen.create_tx(1e-3)


def pair(_):
    module = linen.MLP(WIDTH, WIDTH)
    shapes = jax.eval_shape(module.init, jax.random.key(0), random_batch()[0])
    target = nnx.eval_shape(lambda: nnx_side.MLP(WIDTH, WIDTH, WIDTH, rngs=nnx.Rngs(0)))
    variables, _ = parity.random_pair(shapes, target)

    def create_trained():
        _, model = parity.random_pair(shapes, target)
        return model, nnx_side.create_optimizer(model, TX)

    params, stats = variables["params"], variables["batch_stats"]["norm"]
    return Step(
        linen=linen.train_step.__wrapped__,
        state=linen.create_optimizer(module, variables, TX),
        nnx=nnx_side.train_step.__wrapped__,
        create=create_trained,
        plain=plain_step,
        plain_state=(params, (stats["mean"], stats["var"]), TX.init(params)),
    )


def plain_step(state, x, y):
    params, stats, trace = state

    def loss_fn(params):
        output = plain_dense(params["hidden"], x)
        output, *updated = plain_batch_norm(params["norm"], *stats, output)
        output = plain_dense(params["head"], jax.nn.relu(output))
        return jnp.mean((output - y) ** 2), tuple(updated)

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, trace = TX.update(grads, trace, params)
    return (optax.apply_updates(params, updates), stats, trace), loss


BENCHMARK = step_benchmark(
    PROBLEM,
    pair,
    limit_tolerance=parity.Tolerance(
        "XLA fuses the sums of the plain step otherwise", rtol=1e-5
    ),
)
