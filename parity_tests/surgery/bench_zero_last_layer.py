"""What the idioms of `surgery/zero_last_layer` cost, by the number of layers."""

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
from linen2nnx.cost.forward import (
    ASSIGNMENT,
    SPLIT_MAP_MERGE,
    Edited,
    edit_benchmark,
)

PROBLEM = "surgery/zero_last_layer"

linen, nnx_side = twins(PROBLEM)


def pair(layers):
    module = linen.MLP(layers, WIDTH)

    def create():
        return (nnx_side.MLP(WIDTH, layers, WIDTH, rngs=nnx.Rngs(0)),)

    return Edited(
        module=module,
        variables=(random_variables(module, seed=0),),
        create=create,
        linen_edit=linen.zero_last_kernel,
        nnx_edits={
            "attribute assignment": assign_last_kernel,
            "split/map/merge": map_last_kernel,
        },
        pure_edit=map_last_kernel,
        plain_edit=zero_last_pair,
        edited_layer=layers - 1,
    )


def assign_last_kernel(model):
    nnx_side.zero_last_kernel(model)
    return model


def map_last_kernel(model):
    last = ["layers", len(model.layers) - 1, "kernel"]

    def zero(path, leaf):
        names = [getattr(key, "key", None) for key in path[:3]]
        return jnp.zeros_like(leaf) if names == last else leaf

    graphdef, state = nnx.split(model)
    state = jax.tree_util.tree_map_with_path(zero, state)
    return nnx.merge(graphdef, state)


def zero_last_pair(layers):
    kernel, bias = layers[-1]
    return [*layers[:-1], (jnp.zeros_like(kernel), bias)]


BENCHMARK = edit_benchmark(
    PROBLEM, pair, edits=[ASSIGNMENT, *SPLIT_MAP_MERGE], layers=[1, 4, 16, 64]
)
