"""A result is stale when code that it depends on has changed, and only then."""

import os
from pathlib import Path

import pytest

from linen2nnx.suite import catalog
from linen2nnx.suite.digests import digest_of

TWIN = '''"""A problem."""

import jax


def double(x):
    """Twice."""
    return 2 * x
'''
TESTS = '''"""Tests of a problem."""

from linen2nnx import parity
from parity_tests import {helper}
from nnx_impl.state import {name}

EXPECTED = []


def test_double(nnx_mode):
    parity.assert_equal({name}.double(2), {helper}.FOUR)
'''
HELPERS = {"a": "shared", "b": "shared", "c": "other"}  # by problem


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Three problems; the first two have a helper in common."""
    for name, helper in HELPERS.items():
        for folder in ("linen_impl", "nnx_impl"):
            write(tmp_path / folder / "state" / f"{name}.py", TWIN)
        tests = TESTS.format(name=name, helper=helper)
        write(tmp_path / "parity_tests" / "state" / f"test_{name}.py", tests)
        write(tmp_path / "parity_tests" / f"{helper}.py", "FOUR = 4\n")
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    if path.stat().st_mtime_ns == before:  # some file systems are coarse
        os.utime(path, ns=(before + 1, before + 1))


def digests(kind="parity"):
    return {p.name[-1]: digest_of(p, kind) for p in catalog.problems()}


def stale(before, kind="parity"):
    """The problems whose digest is another one now."""
    return {name for name, digest in digests(kind).items() if digest != before[name]}


COSMETIC = {
    "a comment": lambda text: f"# a comment\n{text}# another\n",
    "other docstrings": lambda text: text.replace('."""', ', in other words."""'),
    "no docstrings": lambda text: "\n".join(
        line for line in text.splitlines() if '"""' not in line
    ),
    "layout": lambda text: text.replace("(x)", "(\n    x,\n)").replace("\n", "\n\n"),
    "what is expected": lambda text: text.replace(
        "EXPECTED = []", 'EXPECTED = [{"flax": "<1"}]'
    ),
}


@pytest.mark.parametrize("change", COSMETIC.values(), ids=COSMETIC)
def test_what_does_not_run_makes_nothing_stale(suite, change):
    before = digests()
    changed = 0
    for path in suite.rglob("*.py"):
        text = path.read_text()
        write(path, change(text))
        changed += change(text) != text
    assert changed
    assert stale(before) == set()


@pytest.mark.parametrize("side", ["linen", "nnx"])
@pytest.mark.parametrize("kind", ["parity", "cost", "bytecodes"])
def test_an_edit_of_a_twin_makes_its_problem_stale(suite, side, kind):
    before = digests(kind)
    path = catalog.ProblemFiles("state/b").path(side)
    write(path, TWIN.replace("2 * x", "x + x"))
    assert stale(before, kind) == {"b"}


def test_an_edit_of_a_shared_helper_makes_stale_what_imports_it(suite):
    before = digests()
    write(suite / "parity_tests" / "shared.py", "FOUR = 2 + 2\n")
    assert stale(before) == {"a", "b"}


def test_the_tests_are_of_parity_alone(suite):
    before = {kind: digests(kind) for kind in ("parity", "cost", "bytecodes")}
    path = catalog.ProblemFiles("state/a").test_path()
    write(path, path.read_text() + "\n\ndef test_more(nnx_mode):\n    pass\n")
    assert {kind: stale(before[kind], kind) for kind in before} == {
        "parity": {"a"},
        "cost": set(),
        "bytecodes": set(),
    }


def test_the_library_counts_by_what_runs_it(suite):
    """The comparison is in the digest of parity, through what imports it."""
    from linen2nnx.suite import digests as module

    names = {kind: set() for kind in ("parity", "cost")}
    real = module._code
    with pytest.MonkeyPatch.context() as monkeypatch:
        for kind, found in names.items():
            monkeypatch.setattr(
                module,
                "_code",
                lambda path, *rest, found=found: found.add(path) or real(path, *rest),
            )
            digests(kind)
    parity = {path.parent.name for path in names["parity"]}
    assert "parity" in parity
    assert "cost" not in parity
    assert "parity" not in {path.parent.name for path in names["cost"]}
