"""The ports of the model pairs are proved equal, in every check."""

import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen2nnx.divergence import linen_path, record_linen, record_nnx
from tests.model_pairs import DEPTH, PAIRS

CHECKS = {  # gradients cost most and take the same path in both modes
    "graph": {*parity.CHECKS} - {"edit"},
    "tree": {"structure", "outputs", "state", "round trip"},
}


@pytest.mark.parametrize("name", PAIRS)
def test_parity_is_proved(name, nnx_mode):
    jit = name != "transformer"  # whose equal blocks compile once if run op by op
    report = PAIRS[name].compare(jit=jit, checks=CHECKS[nnx_mode])
    assert report.failure == ""
    assert report.largest_difference == 0
    assert {row.check for row in report.rows} == CHECKS[nnx_mode]


def test_there_are_ten_pairs_with_at_most_five_renames_each():
    assert len(PAIRS) >= 10
    assert max(len(pair.rename) for pair in PAIRS.values()) <= 5


@pytest.mark.parametrize("name", PAIRS)
def test_modules_are_named_as_the_mapping_names_their_leaves(name):
    pair = PAIRS[name]
    for row in mapping.table(*pair.values, rename=pair.rename):
        path, _, leaf = row.nnx.rpartition("/")
        _, _, linen = row.linen.partition("/")
        named = linen_path(path, pair.rename)
        assert linen == f"{named}/{leaf}".lstrip("/")


def test_every_call_of_the_transformer_is_recorded_on_both_sides():
    """Modules without leaves and calls of one module are paired too."""
    pair = PAIRS["transformer"]
    variables, model = pair.values
    linen = record_linen(
        lambda: pair.linen.apply(variables, *pair.inputs, **pair.linen_kwargs)
    )
    ours = record_nnx(model, lambda: model(*pair.inputs))
    assert len(linen) == 1 + 2 + 1 + 12 * DEPTH
    assert len(ours) == len(linen) + DEPTH  # Block.mlp
    assert [call.method for call in linen if call.path == "embed"] == [
        "__call__",
        "attend",
    ]
    calls = [call for call in ours if call.path == "blocks/3/dropout"]
    assert [call.index for call in calls] == [0, 1]
    assert type(model).__call__.__qualname__ == "Transformer.__call__"
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"
