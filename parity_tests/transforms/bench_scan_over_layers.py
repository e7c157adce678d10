"""What a scan over layers costs, by the number of layers."""

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

PROBLEM = "transforms/scan_over_layers"

linen, nnx_side = twins(PROBLEM)


def pair(layers):
    module = linen.ScannedMLP(layers, WIDTH)
    params = random_variables(module, seed=0)["params"]
    # Small blocks, so that 64 of them do not grow what they are added to.
    params["layers"] = jax.tree.map(lambda leaf: leaf / 16, params["layers"])

    def create():
        return (nnx_side.ScannedMLP(WIDTH, layers, WIDTH, rngs=nnx.Rngs(0)),)

    return Forward(
        variables=({"params": params},),
        create=create,
        linen=module.apply,
        nnx=lambda model, x: model(x),
        plain=plain_apply,
        weights=((params["proj"], params["layers"]["dense"]),),
    )


def plain_apply(weights, x):
    proj, layers = weights

    def forward(x, layer):
        return x + jax.nn.relu(dense(layer, x)), None

    return jax.lax.scan(forward, dense(proj, x), layers)[0]


def dense(layer, x):
    return jnp.dot(x, layer["kernel"]) + layer["bias"]


BENCHMARK = forward_benchmark(PROBLEM, pair, layers=[1, 4, 16, 64])
