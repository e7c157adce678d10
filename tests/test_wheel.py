"""What the wheel holds: the library and the suite, and nothing that serves a clone."""

import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hatchling.builders.wheel import WheelBuilder

from linen2nnx.suite import catalog

ROOT = Path(__file__).parents[1]
PACKAGES = {"cost", "mapping", "parity", "problems", "releases", "suite"}
MODULES = {
    *("__init__", "arguments", "cli", "environment", "files"),
    *("leaves", "modes", "named"),
}
SUITE = {"linen_impl", "nnx_impl", "parity_tests", "pyproject.toml"}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("wheel"))
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


def parts(names, *folder):
    """What is directly in a folder of the wheel."""
    depth = len(folder)
    return {n.parts[depth] for n in names if n.parts[:depth] == folder}


def test_folders_of_the_wheel(names):
    top = parts(names)
    assert {name.partition("-")[0] for name in top} == {"linen2nnx"}
    assert len(top) == 2  # the package, and what pip keeps of it
    modules = {f"{module}.py" for module in MODULES}
    assert parts(names, "linen2nnx") == PACKAGES | modules | {"py.typed"}
    assert parts(names, "linen2nnx", "problems") == SUITE


def test_files_of_the_problems(names):
    """Twins and tests of every problem are there, and no page of any."""
    inside = {str(name) for name in names}
    for problem in catalog.problems():
        for path in problem.paths():
            assert f"linen2nnx/problems/{path.relative_to(ROOT).as_posix()}" in inside
    assert {name.suffix for name in names if name.parts[0] == "linen2nnx"} <= {
        ".json",
        ".py",
        ".toml",
        ".typed",
    }


def test_files_of_the_library(names):
    """Each module is there but what extends a clone, and nothing that a run left."""
    library = ROOT / "linen2nnx"
    wanted = {p.relative_to(ROOT).as_posix() for p in library.rglob("*.py")}
    wanted.remove("linen2nnx/releases/extend.py")
    inside = {str(n) for n in names if n.suffix == ".py" and "problems" not in n.parts}
    assert inside == wanted
    assert not any("__pycache__" in name.parts for name in names)
