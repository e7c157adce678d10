"""What the idioms of `definition/setup_submodules` cost, by the number of layers."""

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
from linen2nnx.cost.forward import Forward, forward_benchmark

PROBLEM = "definition/setup_submodules"

linen, nnx_side = twins(PROBLEM)


def pair(layers):
    module = linen.GatedMLP(layers, WIDTH)
    variables = random_variables(module, seed=0)
    names = [*(f"layers_{i}" for i in range(layers)), "heads_value", "heads_gate"]
    params = [variables["params"][name] for name in names]
    return Forward(
        variables=(variables,),
        create=lambda: (nnx_side.GatedMLP(WIDTH, layers, WIDTH, rngs=nnx.Rngs(0)),),
        linen=module.apply,
        nnx=lambda model, x: model(x),
        plain=plain_apply,
        weights=([(layer["kernel"], layer["bias"]) for layer in params],),
    )


def plain_apply(weights, x):
    *layers, value, gate = weights
    for layer in layers:
        x = jax.nn.relu(plain_dense(layer, x))
    gate = jax.nn.sigmoid(plain_dense(gate, x))
    return plain_dense(value, x) * gate


def plain_dense(layer, x):
    kernel, bias = layer
    return jnp.dot(x, kernel) + bias


BENCHMARK = forward_benchmark(PROBLEM, pair, layers=[1, 4, 16])
