"""What the idioms of `state/pure_update` cost."""

from flax import nnx

from parity_tests import overhead_arms
from parity_tests.overhead_arms import (  # noqa: F401, pytest finds the test in here
    SPLIT_MAP_MERGE,
    WIDTH,
    pytest_generate_tests,
    strict,
    test_overhead,
)

PROBLEM = "state/pure_update"
SCALE = 0.5

linen, nnx_side = overhead_arms.twins(PROBLEM)


def pair(_):
    module = linen.create_model(WIDTH)
    return overhead_arms.Pair(
        module=module,
        variables=(overhead_arms.random_variables(module, seed=0),),
        create=lambda: (nnx_side.create_model(WIDTH, WIDTH, rngs=nnx.Rngs(0)),),
        x=overhead_arms.random_input(),
        linen_edit=lambda variables: linen.scale_state(variables, SCALE),
        nnx_edits={"split/map/merge": scale_model},
        pure_edit=scale_model,
        plain_edit=lambda layers: [(k * SCALE, b * SCALE) for k, b in layers],
    )


def scale_model(model):
    return nnx_side.scale_state(model, SCALE)


BENCHMARK = overhead_arms.Benchmark(PROBLEM, pair, edits=SPLIT_MAP_MERGE, layers=[None])
