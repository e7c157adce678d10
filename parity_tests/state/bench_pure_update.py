"""What the idioms of `state/pure_update` cost."""

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

PROBLEM = "state/pure_update"
SCALE = 0.5

linen, nnx_side = twins(PROBLEM)


def pair(_):
    module = linen.create_model(WIDTH)
    return Edited(
        module=module,
        variables=(random_variables(module, seed=0),),
        create=lambda: (nnx_side.create_model(WIDTH, WIDTH, rngs=nnx.Rngs(0)),),
        linen_edit=lambda variables: linen.scale_state(variables, SCALE),
        nnx_edits={"split/map/merge": scale_model},
        pure_edit=scale_model,
        plain_edit=lambda layers: [(k * SCALE, b * SCALE) for k, b in layers],
    )


def scale_model(model):
    return nnx_side.scale_state(model, SCALE)


BENCHMARK = edit_benchmark(PROBLEM, pair, edits=SPLIT_MAP_MERGE)
