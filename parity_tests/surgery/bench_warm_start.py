"""What the idioms of `surgery/warm_start` cost, by the number of copied layers."""

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

PROBLEM = "surgery/warm_start"

linen, nnx_side = twins(PROBLEM)


def pair(layers):
    """A model of that many layers, and one that is one layer deeper."""
    depths = layers, layers + 1
    modules = [linen.MLP(depth, WIDTH) for depth in depths]

    def create():
        return tuple(
            nnx_side.MLP(WIDTH, depth, WIDTH, rngs=nnx.Rngs(0)) for depth in depths
        )

    return Edited(
        module=modules[1],
        variables=tuple(
            random_variables(module, seed) for seed, module in enumerate(modules)
        ),
        create=create,
        linen_edit=linen.copy_layers,
        nnx_edits={
            "attribute assignment": assign_layers,
            "nnx.update": update_layers,
            "split/map/merge": merge_layers,
        },
        pure_edit=merge_layers,
        plain_edit=lambda small, big: [*small, *big[len(small) :]],
        edited_layer=layers - 1,
    )


def assign_layers(small, big):
    nnx_side.copy_layers(small, big)
    return big


def update_layers(small, big):
    nnx.update(big, nnx.state(small))
    return big


def merge_layers(small, big):
    graphdef, state = nnx.split(big)
    state = nnx.merge_state(state, nnx.state(small))
    return nnx.merge(graphdef, state, copy=True)


BENCHMARK = edit_benchmark(
    PROBLEM,
    pair,
    edits=[ASSIGNMENT, ("nnx.update", None), *SPLIT_MAP_MERGE],
    layers=[1, 4, 16, 64],
)
