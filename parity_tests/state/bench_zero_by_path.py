"""What the idioms of `state/zero_by_path` cost."""

import jax.numpy as jnp
from flax import nnx

from parity_tests import overhead_arms
from parity_tests.overhead_arms import (  # noqa: F401, pytest finds the test in here
    SPLIT_MAP_MERGE,
    WIDTH,
    pytest_generate_tests,
    strict,
    test_overhead,
)

PROBLEM = "state/zero_by_path"

linen, nnx_side = overhead_arms.twins(PROBLEM)


def pair(_):
    module = linen.create_model(WIDTH)
    return overhead_arms.Pair(
        module=module,
        variables=(overhead_arms.random_variables(module, seed=0),),
        create=lambda: (nnx_side.create_model(WIDTH, WIDTH, rngs=nnx.Rngs(0)),),
        x=overhead_arms.random_input(),
        linen_edit=linen.zero_kernels,
        nnx_edits={"split/map/merge": nnx_side.zero_kernels},
        pure_edit=nnx_side.zero_kernels,
        plain_edit=lambda layers: [(jnp.zeros_like(k), b) for k, b in layers],
    )


BENCHMARK = overhead_arms.Benchmark(PROBLEM, pair, edits=SPLIT_MAP_MERGE, layers=[None])
