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
from pages import releases as site_releases

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


def release(name, **cells):
    problems = {
        "state/a": {
            mode: {"verdict": verdict, "reason": reason}
            for mode, (verdict, reason) in cells.items()
        }
    }
    return {
        "name": name,
        "error": "",
        "environment": {
            "flax": name,
            "jax": "0.8.1",
            "python": "3.12.1",
            "platform": "Linux",
            "device": "cpu: cpu",
        },
        "problems": problems,
        "facts": {
            "modes": ["graph", "tree"] if name > "0.12.6" else ["graph"],
            "behaviour": {"tree mode": "there" if name > "0.12.6" else "not there"},
            "numbers": {"weights": [1.0]},
        },
        "bytecodes": {
            "state/pure_update, jitted, nnx.jit (graph mode)": 12345,
            "state/pure_update, eager, nnx.jit (graph mode)": 1,
        }
        if name > "0.12.6"
        else {},
    }


CONTENT = {
    "command": "linen2nnx check 0.12.0 0.12.8",
    "date": "2026-11-20T00:00:00+00:00",
    "releases": [
        release("0.12.0", graph=("not there yet", "nnx.EMA, since 0.12.8")),
        release("0.12.8", graph=("holds", ""), tree=("differs", "kernel by 1 | 2")),
        release("0.12.9", graph=("holds", ""), tree=("holds", "")),
    ],
}


def test_the_matrix_page():
    text = site_releases.matrix_fragment(CONTENT)
    row = next(line for line in text.splitlines() if "state/a" in line)
    assert row == (
        "| [state/a](state/a.md) | not there yet: <small>nnx.EMA, since 0.12.8</small> "
        "(graph mode) | holds (graph mode)<br>differs: <small>kernel by 1 &#124; 2"
        "</small> (tree mode) | holds |"
    )
    text = site_releases.changes_fragment(CONTENT)
    assert "* tree mode: `not there` became `there`" in text
    assert "**0.12.9**, after 0.12.8:\n\n* none of these changed" in text
    text = site_releases.bytecodes_fragment(CONTENT)
    assert "| nnx.jit (graph mode) |  | 12,345 | 12,345 |" in text
    assert text.count("nnx.jit") == 1
    strip = site_releases.strip_fragment("state/a", CONTENT)
    assert 'class="releases bad"' in strip
    assert "- **flax 0.12.9** holds (jax 0.8.1, Python 3.12.1)" in strip
    strip = site_releases.strip_fragment("state/new", CONTENT)
    assert 'class="releases bad"' in strip
    assert strip.count("not run") == 3
    table = site_releases.flax_jax_fragment()
    assert "| 0.12.12 | >=3.12 | >=0.11.1 | 0.12.0.1 | none is out |" in table


def test_another_file_is_no_matrix(tmp_path):
    file = tmp_path / "releases.json"
    file.write_text('{"format": "linen2nnx check", "version": 1}')
    with pytest.raises(ValueError, match="no linen2nnx upgrade check result"):
        site_releases.load(file)


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
