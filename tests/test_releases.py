"""The table of releases is well formed."""

import doctest
import json
import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from linen2nnx.releases import results
from linen2nnx.releases import table as releases
from linen2nnx.suite import catalog, kept
from linen2nnx.suite.records import RecordError

ROOT = Path(__file__).parents[1]

TABLE = releases.table()


def test_releases_are_in_order_and_once():
    versions = [Version(row.flax) for row in TABLE]
    assert versions == sorted(set(versions))
    assert len(versions) >= 22


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.flax)
def test_a_row_is_well_formed(row):
    newest = Version(row.newest_working_jax)
    assert newest in SpecifierSet(row.requires_jax)
    assert SpecifierSet(row.requires_python)
    if row.first_broken_jax is None:
        assert row.first_broken_error is None
    else:
        assert Version(row.first_broken_jax) > newest
        assert re.search(r"\w+Error: ", row.first_broken_error)
    assert not set(row.nnx_names_added) & set(row.nnx_names_removed)


def test_names_come_and_go_in_turn():
    there = set()
    for row in TABLE:
        assert not there & set(row.nnx_names_added)
        there = (there | set(row.nnx_names_added)) - set(row.nnx_names_removed)
    assert {"List", "Pytree", "set_graph_mode", "EMA"} <= there


def test_the_other_apis_are_well_formed():
    for row in json.loads(releases.TABLE.read_text())["apis"]:
        assert releases.find(row["since"])
        re.compile(row["error"])


def test_a_release_that_the_table_does_not_know():
    assert releases.find("0.12.999") is None
    assert releases.between("0.12.11", "0.12.999") == ["0.12.11", "0.12.12"]


RELEASES = results.load(ROOT / "docs" / "results" / "releases.json").releases


def test_the_committed_releases():
    flax = [release.environment["flax"] for release in RELEASES]
    assert [Version(version) for version in flax] == sorted(map(Version, flax))
    assert {"0.10.7", "0.11.0", "0.12.0", "0.12.12"} <= set(flax)
    for release in RELEASES:
        row = releases.find(release.environment["flax"])
        newest = Version(row.newest_working_jax)
        assert Version(release.environment["jax"]) <= newest


@pytest.mark.parametrize("problem", catalog.problems(), ids=lambda p: p.name)
def test_a_problem_was_run_on_every_committed_release(problem):
    found = kept.load(problem, ROOT / "docs" / "results").parity()
    versions = {(r.environment["flax"], r.environment["jax"]) for r in found}
    assert versions >= {
        (release.environment["flax"], release.environment["jax"])
        for release in RELEASES
    }


def test_another_file_is_none_of_releases(tmp_path):
    file = tmp_path / "releases.json"
    file.write_text('{"format": "linen2nnx results", "version": 1, "problem": "a/b"}')
    with pytest.raises(RecordError, match="holds no linen2nnx results"):
        results.load(file)


def test_doctests():
    results = doctest.testmod(releases)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("message", "flax", "found"),
    [
        ("cannot import name 'EMA' from 'flax.nnx' (x)", "0.12.7", "nnx.EMA"),
        ("cannot import name 'EMA' from 'flax.nnx' (x)", "0.12.8", None),
        ("no attribute: has no attribute 'get_value'", "0.12.0", "get_value"),
        ("has no attribute 'get_value'", "0.12.1", None),
        ("Optimizer.update() takes 2 positional arguments but 3", "0.10.7", "update"),
        ("module 'flax.nnx' has no attribute 'Dict'", "0.11.0", "nnx.Dict"),
        ("Module flax.nnx has no attribute 'Dict'", "0.11.2", "nnx.Dict"),
        ("module 'flax.nnx' has no attribute 'nonsense'", "0.10.0", None),
        ("KeyError: 'List'", "0.10.0", None),
    ],
)
def test_an_api_that_is_not_there_yet(message, flax, found):
    result = releases.not_there_yet(message, flax)
    assert (result is None) is (found is None)
    if found:
        assert found in result[0]
        assert Version(result[1]) > Version(flax)
