"""What a step of `training/adam_optimizer` costs, by the number of layers."""

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
from linen2nnx.cost.step import Step, plain_dense, random_batch, step_benchmark

PROBLEM = "training/adam_optimizer"
# As in the problem, but for a norm that nothing reaches: past ten layers, what is
# clipped differs in the last bits, as the page says.
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1_000_000)
TX = optax.chain(optax.clip_by_global_norm(1e6), optax.adam(SCHEDULE))

linen, nnx_side = twins(PROBLEM)


def pair(layers):
    module = linen.MLP(layers, WIDTH)
    shapes = jax.eval_shape(module.init, jax.random.key(0), random_batch()[0])
    target = nnx.eval_shape(
        lambda: nnx_side.MLP(WIDTH, layers, WIDTH, rngs=nnx.Rngs(0))
    )
    variables, _ = parity.random_pair(shapes, target)

    def create_trained():
        _, model = parity.random_pair(shapes, target)
        return model, nnx_side.create_optimizer(model, TX)

    params = [variables["params"][f"layers_{i}"] for i in range(layers)]
    return Step(
        linen=linen.train_step.__wrapped__,
        state=linen.create_optimizer(module, variables["params"], TX),
        nnx=nnx_side.train_step.__wrapped__,
        create=create_trained,
        plain=plain_step,
        plain_state=(params, TX.init(params)),
    )


def plain_step(state, x, y):
    params, opt_state = state

    def loss_fn(params):
        output = x
        for i, layer in enumerate(params):
            output = plain_dense(layer, jax.nn.relu(output) if i else output)
        return jnp.mean((output - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = TX.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


BENCHMARK = step_benchmark(PROBLEM, pair, [1, 4, 16])
