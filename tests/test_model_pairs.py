"""The ports of the model pairs are proved equal, in every check."""

import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen2nnx.parity.divergence import linen_path, record_linen, record_nnx
from tests.model_pairs import PAIRS


@pytest.mark.parametrize("name", sorted({*PAIRS} - {"deep transformer"}))
def test_parity_is_proved(name, nnx_mode):
    """With the same checks in both modes: their equal programs compile once."""
    assert_parity_is_proved(name, {*parity.CHECKS} - {"edit"}, jit=True)


def test_parity_of_many_blocks_is_proved(nnx_mode):
    """Op by op, where equal blocks compile once."""
    checks = {"structure", "outputs", "state", "round trip"}
    assert_parity_is_proved("deep transformer", checks, jit=False)


def assert_parity_is_proved(name, checks, jit):
    report = PAIRS[name].compare(jit=jit, checks=checks)
    assert report.failure == ""
    assert report.largest_difference == 0
    assert {row.check for row in report.rows} == checks


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
    pair = PAIRS["deep transformer"]
    variables, model = pair.values
    linen = record_linen(
        lambda: pair.linen.apply(variables, *pair.inputs, **pair.linen_kwargs)
    )
    ours = record_nnx(model, lambda: model(*pair.inputs))
    assert len(linen) == 1 + 2 + 1 + 12 * 12
    assert len(ours) == len(linen) + 12  # Block.mlp
    assert [call.method for call in linen if call.path == "embed"] == [
        "__call__",
        "attend",
    ]
    calls = [call for call in ours if call.path == "blocks/3/dropout"]
    assert [call.index for call in calls] == [0, 1]
    assert type(model).__call__.__qualname__ == "Transformer.__call__"
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"
