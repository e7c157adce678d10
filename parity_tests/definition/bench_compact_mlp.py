"""What the idioms of `definition/compact_mlp` cost, by the number of layers."""

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

PROBLEM = "definition/compact_mlp"

linen, nnx_side = twins(PROBLEM)


def pair(layers):
    module = linen.LoopMLP(layers, WIDTH)
    variables = random_variables(module, seed=0)
    params = [variables["params"][f"Dense_{i}"] for i in range(layers)]
    return Forward(
        variables=(variables,),
        create=lambda: (nnx_side.LoopMLP(WIDTH, layers, WIDTH, rngs=nnx.Rngs(0)),),
        rename={f"Dense_{i}": f"layers/{i}" for i in range(layers)},
        linen=module.apply,
        nnx=lambda model, x: model(x),
        plain=plain_apply,
        weights=([(layer["kernel"], layer["bias"]) for layer in params],),
    )


def plain_apply(layers, x):
    for kernel, bias in layers:
        x = jax.nn.relu(jnp.dot(x, kernel) + bias)
    return x


BENCHMARK = forward_benchmark(PROBLEM, pair, layers=[1, 4, 16])
