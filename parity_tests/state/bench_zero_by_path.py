"""What the idioms of `state/zero_by_path` cost."""

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
from linen2nnx.cost.forward import SPLIT_MAP_MERGE, Edited, edit_benchmark

PROBLEM = "state/zero_by_path"

linen, nnx_side = twins(PROBLEM)


def pair(_):
    module = linen.create_model(WIDTH)
    return Edited(
        module=module,
        variables=(random_variables(module, seed=0),),
        create=lambda: (nnx_side.create_model(WIDTH, WIDTH, rngs=nnx.Rngs(0)),),
        linen_edit=linen.zero_kernels,
        nnx_edits={"split/map/merge": nnx_side.zero_kernels},
        pure_edit=nnx_side.zero_kernels,
        plain_edit=lambda layers: [(jnp.zeros_like(k), b) for k, b in layers],
    )


BENCHMARK = edit_benchmark(PROBLEM, pair, edits=SPLIT_MAP_MERGE)
