"""What the ways to jit `training/jit_train_step` cost, by the number of layers."""

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
    plain_dropout,
    random_batch,
    step_benchmark,
)

PROBLEM = "training/jit_train_step"
ADAM = optax.adam(1e-3)

linen, nnx_side = twins(PROBLEM)


def create(layers):
    return nnx_side.MLP(WIDTH, layers, WIDTH, rngs=nnx.Rngs(params=0, dropout=1))


def pair(layers):
    module = linen.MLP(layers, WIDTH)
    shapes = jax.eval_shape(module.init, jax.random.key(0), random_batch()[0])
    variables, model = parity.random_pair(
        shapes, nnx.eval_shape(lambda: create(layers))
    )

    def create_trained():
        _, model = parity.random_pair(shapes, nnx.eval_shape(lambda: create(layers)))
        return model, nnx.Optimizer(model, ADAM, wrt=nnx.Param)

    state = linen.TrainState.create(
        apply_fn=module.apply, tx=ADAM, key=jax.random.key(1), **variables
    )
    return Step(
        linen=linen.train_step,
        state=state,
        nnx=nnx_side.train_step,
        create=create_trained,
        plain=plain_step,
        plain_state=plain_state(variables, model),
    )


def plain_state(variables, model):
    """Parameters, statistics, moments, and the key and count of the dropout."""
    params, stats = (
        [part[f"blocks_{i}"] for i in range(len(model.blocks))]
        for part in (variables["params"], variables["batch_stats"])
    )
    params = params, variables["params"]["head"]
    stats = [(block["norm"]["mean"], block["norm"]["var"]) for block in stats]
    stream = model.dropout_rngs
    return params, stats, ADAM.init(params), (stream.key[...], stream.count[...])


def plain_step(state, x, y):
    params, stats, moments, (key, count) = state

    def loss_fn(params):
        blocks, head = params
        output, updated = x, []
        for i, (block, (mean, var)) in enumerate(zip(blocks, stats)):
            output = plain_dense(block["linear"], output)
            output, *running = plain_batch_norm(block["norm"], mean, var, output)
            dropout_key = jax.random.fold_in(key, count + i)
            output = plain_dropout(dropout_key, 0.1, jax.nn.relu(output))
            updated.append(tuple(running))
        return jnp.mean((plain_dense(head, output) - y) ** 2), updated

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, moments = ADAM.update(grads, moments, params)
    params = optax.apply_updates(params, updates)
    return (params, stats, moments, (key, count + len(stats))), loss


BENCHMARK = step_benchmark(
    PROBLEM,
    pair,
    [1, 4, 16, 64],
    draws_keys=True,
    limit_tolerance=parity.Tolerance(
        "XLA fuses the sums of the plain step otherwise", rtol=1e-5
    ),
)
