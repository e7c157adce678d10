"""What the idioms of `randomness/dropout_same_mask` cost, with a key as an input."""

import jax
import jax.numpy as jnp
from flax import nnx

from linen2nnx.cost.arms import (  # noqa: F401, pytest finds the test in here
    WIDTH,
    pytest_generate_tests,
    random_variables,
    strict,
    test_overhead,
    twins,
)
from linen2nnx.cost.forward import Forward, forward_benchmark, random_input

PROBLEM = "randomness/dropout_same_mask"
RATE = 0.5

linen, nnx_side = twins(PROBLEM)


def create():
    model = nnx_side.Model(WIDTH, WIDTH, RATE, rngs=nnx.Rngs(0))
    model.dropout = nnx.Dropout(RATE)  # the key is an input: no stream of its own
    return (model,)


def pair(_):
    module = linen.Model(WIDTH, RATE)
    variables = random_variables(module, seed=0)
    params = variables["params"]["linear"]
    return Forward(
        variables=(variables,),
        create=create,
        inputs=(random_input(), jax.random.key(1)),
        linen=module.apply,
        nnx=lambda model, x, key: model(x, key),
        plain=plain_apply,
        weights=((params["kernel"], params["bias"]),),
    )


def plain_apply(layer, x, key):
    kernel, bias = layer
    y = jnp.dot(x, kernel) + bias
    kept = jax.random.bernoulli(key, 1 - RATE, y.shape)
    return jnp.where(kept, y / (1 - RATE), 0.0)


BENCHMARK = forward_benchmark(PROBLEM, pair)
