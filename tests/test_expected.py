"""What is expected on each release is data with a cause, and the matrix agrees."""

import json
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from linen2nnx.releases import upgrade
from linen2nnx.suite import catalog, expected

ROOT = Path(__file__).parents[1]
TABLE = expected.table(catalog.root())


def matrix():
    """Problem, mode, release and verdict of every cell that was measured."""
    content = json.loads((ROOT / "docs/results/releases.json").read_text())
    return [
        (problem, mode, release["environment"]["flax"], cell["verdict"])
        for release in content["releases"]
        for problem, modes in release["problems"].items()
        for mode, cell in modes.items()
    ]


@pytest.mark.parametrize("entry", TABLE, ids=lambda e: f"{e.problem} {e.flax}")
def test_an_entry_is_well_formed(entry):
    assert entry.problem in [problem.name for problem in catalog.problems()]
    assert set(entry.modes) <= {"graph", "tree"}
    assert SpecifierSet(entry.flax)
    assert entry.verdict in upgrade.VERDICTS
    assert entry.verdict != "holds"
    assert len(entry.cause) > 10


@pytest.mark.parametrize(("problem", "mode", "flax", "verdict"), matrix())
def test_the_matrix_is_as_expected(problem, mode, flax, verdict):
    assert expected.find(problem, mode, flax).verdict == verdict


@pytest.mark.parametrize("entry", TABLE, ids=lambda e: f"{e.problem} {e.flax}")
def test_the_matrix_shows_every_entry_in_each_of_its_modes(entry):
    for mode in entry.modes:
        assert any(
            (problem, mode) == (entry.problem, of_cell)
            and SpecifierSet(entry.flax).contains(flax)
            for problem, of_cell, flax, _ in matrix()
        )
