"""Who imports whom: packages on floors, no circle, no reach into the problems."""

import ast
import functools
import graphlib
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from linen2nnx.releases import environments

ROOT = Path(__file__).parents[1]
FLOORS = [  # from the ground up; a package imports only what is below it
    {"leaves", "environment", "files", "modes", "arguments"},
    {"mapping"},
    {"parity"},
    {"cost"},
    {"suite"},
    {"releases"},
    {"named"},
    {"cli"},
]
PROBLEMS = {"linen_impl", "nnx_impl", "parity_tests", "docs", "pages", "tests"}
DYNAMIC = {"importlib.import_module", "__import__", "import_module"}
RUN_THERE = (  # the last three by the files of problems
    *("suite.plugin", "suite.problem", "suite.bytecodes", "releases.probe"),
    *("arguments", "cost.forward", "cost.step"),
)
BROUGHT_ALONG = {"flax", "jax", "orbax", "packaging", "linen2nnx"}
OF_BENCH = {"cpuinfo"}
EXPORTS = "linen2nnx"  # `linen2nnx/__init__.py` names what is read when it is asked for


def modules(package):
    """The modules of a package by dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


LIBRARY = modules("linen2nnx")


def imported(path, known):
    """The modules of `known` that a file imports, in functions and by name too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a dot"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & known.keys()) or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value} & known.keys()  # `-m`, import_module
    return names


@functools.cache
def graph():
    return {
        name: imported(path, LIBRARY) & LIBRARY.keys() - {EXPORTS, name}
        for name, path in LIBRARY.items()
        if name != EXPORTS
    }


def floor(name):
    part = name.split(".")[1]
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def test_every_module_is_on_a_floor():
    parts = {name.split(".")[1] for name in LIBRARY if name != EXPORTS}
    assert parts == set().union(*FLOORS)


@pytest.mark.parametrize("name", [name for name in LIBRARY if name != EXPORTS])
def test_nothing_reaches_up(name):
    up = {other for other in graph()[name] if floor(other) > floor(name)}
    assert not up


def test_the_ground_floor_stands_alone():
    for name, others in graph().items():
        if floor(name) == 0:
            assert {*others} <= {f"linen2nnx.{part}" for part in FLOORS[0]}


def test_there_is_no_circle():
    """A package's own `__init__` collects what its modules define."""
    collecting = {name for name, path in LIBRARY.items() if path.stem == "__init__"}
    within = {
        name: {o for o in others if not name.startswith(f"{o}.")}
        for name, others in graph().items()
    }
    for name in collecting - {EXPORTS}:
        assert not any(
            name in others
            for other, others in within.items()
            if other.startswith(f"{name}.")
        ), f"a module of {name} imports from its __init__"
    list(graphlib.TopologicalSorter(within).static_order())


def test_the_library_reaches_no_problem():
    for name, path in LIBRARY.items():
        top = {other.partition(".")[0] for other in imported(path, LIBRARY)}
        assert not top & PROBLEMS, name


def test_names_made_at_run_time_are_of_the_suite():
    """`import_module` of a computed name: only to read a problem's or a user's file."""
    users = {
        name
        for name, path in LIBRARY.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in DYNAMIC
        and not isinstance(node.args[0], ast.Constant)
    }
    assert users <= {
        "linen2nnx",  # what it exports
        "linen2nnx.named",  # a user's models
        "linen2nnx.releases.probe",  # flax, which may not import
        "linen2nnx.suite.bytecodes",  # a problem's test file
    }


def test_what_runs_on_another_release_is_installed_there():
    """Where flax, jax and pytest do not bring it along."""
    todo, found = [f"linen2nnx.{name}" for name in RUN_THERE], set()
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += graph()[name]
    packages = {
        package.partition(".")[0]
        for name in found
        for package in imported(LIBRARY[name], {})
    }
    packages -= BROUGHT_ALONG | OF_BENCH | sys.stdlib_module_names
    assert packages == {Requirement(text).name for text in environments.NEEDED}


def test_a_circle_and_a_reach_up_would_be_seen(tmp_path):
    path = tmp_path / "low.py"
    path.write_text(
        "def late():\n    from linen2nnx.suite import catalog\n"
        "command = ['-m', 'linen2nnx.releases.probe']\n"
    )
    found = imported(path, LIBRARY)
    assert found == {"linen2nnx.suite.catalog", "linen2nnx.releases.probe"}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
