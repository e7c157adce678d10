"""What the idioms of `surgery/replace_kernel` cost."""

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

PROBLEM = "surgery/replace_kernel"
VALUE = 0.5

linen, nnx_side = twins(PROBLEM)


def pair(_):
    module = linen.create_model(WIDTH)
    return Edited(
        module=module,
        variables=(random_variables(module, seed=0),),
        create=lambda: (nnx_side.create_model(WIDTH, WIDTH, rngs=nnx.Rngs(0)),),
        linen_edit=lambda variables: linen.set_kernel(variables, VALUE),
        nnx_edits={
            "attribute assignment": assign_kernel,
            "split/map/merge": map_kernel,
        },
        pure_edit=map_kernel,
        plain_edit=lambda layers: [(jnp.full_like(layers[0][0], VALUE), layers[0][1])],
    )


def assign_kernel(model):
    nnx_side.set_kernel(model, VALUE)
    return model


def map_kernel(model):
    def replace(path, leaf):
        return jnp.full_like(leaf, VALUE) if path[0].key == "kernel" else leaf

    graphdef, state = nnx.split(model)
    state = jax.tree_util.tree_map_with_path(replace, state)
    return nnx.merge(graphdef, state)


BENCHMARK = edit_benchmark(PROBLEM, pair, edits=[ASSIGNMENT, *SPLIT_MAP_MERGE])
