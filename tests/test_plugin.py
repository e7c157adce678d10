"""The pytest plugin: compiled programs that are kept, and what the problems take."""

import os
import subprocess
import sys

import pytest

from linen2nnx.suite import plugin

JITS = "import jax\ndef test_a():\n    jax.jit(lambda x: 2 * x + 1)(3.0)\n"
SPINS = """
import time
import pytest
@pytest.fixture
def dear():
    spin(0.2)
@pytest.mark.parametrize("mode", ["graph", "tree"])
def test_a(dear, mode):
    spin(0.1)
def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""


def run(folder, *options):
    """Pytest in a process of its own, with no settings but the plugin."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", folder]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    kept |= {"LINEN2NNX_CACHE": str(folder / "cache")}
    found = subprocess.run(
        [*command, "-p", "linen2nnx.suite.plugin", "-p", "xdist"],
        cwd=folder,
        env={**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    return found.returncode, found.stdout


@pytest.mark.parametrize(
    "options", [["-n0"], ["-n0", "-p", "jax"]], ids=["plain", "jax is imported before"]
)
def test_compiled_programs_are_kept(tmp_path, options):
    (tmp_path / "test_a.py").write_text(JITS)
    status, out = run(tmp_path, *options)
    assert status == 0, out
    (folder,) = (tmp_path / "cache" / "compiled").iterdir()
    assert "-jax" in folder.name
    assert "-flax" in folder.name
    assert [*folder.glob("jit__lambda*-cache")]


def test_the_users_folder_of_compiled_programs_stays(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    before = dict(os.environ)
    plugin.pytest_load_initial_conftests()
    assert os.environ == before


@pytest.fixture
def suite(tmp_path):
    """Seven problems, of which one takes 0.6 CPU seconds in both modes."""
    folder = tmp_path / "parity_tests" / "state"
    folder.mkdir(parents=True)
    (folder / "test_dear.py").write_text(SPINS)
    for name in "abcdef":
        (folder / f"test_{name}.py").write_text("def test_a(): pass\n")
    return tmp_path


@pytest.mark.parametrize("processes", ["-n0", "-n1"])
def test_the_dearest_problems_are_named(suite, processes):
    status, out = run(suite, processes)
    assert status == 0, out
    lines = out.partition("CPU seconds of a problem's tests")[2].splitlines()[1:7]
    assert lines[0].split()[1] == "state/dear"
    assert 0.6 <= float(lines[0].split()[0]) < 2
    assert len([line for line in lines if "  state/" in line]) == 5
    assert lines[5].endswith("on average, of 7")


def test_a_run_of_other_tests_says_nothing_of_problems(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n")
    status, out = run(tmp_path, "-n0")
    assert (status, "CPU seconds" in out) == (0, False)
    status, out = run(tmp_path, "-n0", "--budget", "warm")
    assert (status, "--budget warm: no test of a problem ran" in out) == (1, True)


def of(seconds):
    found = plugin._CpuTime("warm")
    found.by_problem = {f"state/{i}": taken for i, taken in enumerate(seconds)}
    return found.over_budget()


def test_budgets():
    assert of([6, 6, 6]) == []
    assert of([15, 1, 1]) == []
    assert of([15.1, 1, 1]) == [
        "--budget warm: state/0 takes 15.1 CPU seconds, more than 15"
    ]
    assert of([7, 7, 5]) == [
        "--budget warm: a problem takes 6.3 CPU seconds on average, more than 6"
    ]
    assert plugin.BUDGETS == {"cold": (12.0, 30.0), "warm": (6.0, 15.0)}


def test_a_run_over_its_budget_fails(suite):
    (suite / "conftest.py").write_text(
        "from linen2nnx.suite import plugin\nplugin.BUDGETS['warm'] = (60.0, 0.5)\n"
    )
    status, out = run(suite, "-n0", "--budget", "warm")
    assert status == 1
    assert "--budget warm: state/dear takes 0." in out
    status, out = run(suite, "-n0", "--budget", "cold")
    assert status == 0, out


def test_tests_end_with_the_command_that_runs_them(tmp_path, monkeypatch):
    writer = plugin._EventWriter(tmp_path / "events")
    writer.pytest_runtest_logstart("a.py::test_a")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(pytest.exit.Exception, match="has ended"):
        writer.pytest_runtest_logstart("a.py::test_b")
    writer.pytest_sessionfinish(3)
    assert (tmp_path / "events").read_text().count("test_") == 1
