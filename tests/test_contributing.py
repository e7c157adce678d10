"""The example of CONTRIBUTING.md, followed to the letter in a copy of the clone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("docs", "linen2nnx", "linen_impl", "nnx_impl"),
    *("pages", "parity_tests", "tests"),
)
FILES = ("mkdocs.yml", "pyproject.toml", "README.md", "CONTRIBUTING.md")
STEP = re.compile(
    r"^## \d\. [^\n]*`(\S+/\S+)`\n.*?^```(?:python|md)\n(.*?)^```", re.M | re.S
)


def example():
    return dict(STEP.findall((ROOT / "CONTRIBUTING.md").read_text()))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for name, text in example().items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return folder


def run(clone, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def test_it_is_four_files():
    assert [*example()] == [
        "nnx_impl/state/negate.py",
        "linen_impl/state/negate.py",
        "parity_tests/state/test_negate.py",
        "docs/state/negate.md",
    ]


def test_its_tests_and_those_of_the_suite_are_green(clone):
    found = run(
        clone,
        *("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"),
        "parity_tests/state/test_negate.py",
        *("tests/test_suite.py", "-k", "negate or not example and not test_suite"),
    )
    assert found.returncode == 0, found.stdout
    passed = int(re.search(r"(\d+) passed", found.stdout)[1])
    assert passed > 20


def test_the_files_are_formatted(clone):
    paths = [name for name in example() if name.endswith(".py")]
    for command in (["check"], ["format", "--check"]):
        found = run(clone, "-m", "ruff", *command, "--no-cache", *paths)
        assert found.returncode == 0, found.stdout


def test_its_page_has_no_fault(clone):
    found = run(clone, "-c", "from pages import faults; print(faults.find())")
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr
