"""The command that extends the table of releases: on a jax that only the tests know."""

import doctest
import io
import json

import flax
import pytest
from packaging.version import Version
from rich.console import Console

from linen2nnx.releases import extend as extend_releases
from linen2nnx.releases import table as releases
from linen2nnx.releases import trial
from linen2nnx.releases.environments import UpgradeError

JAX = ["0.8.0", "0.8.1", "0.8.2", "0.9.0", "0.9.1", "0.10.0", "0.10.1", "0.11.0"]


class Trials:
    """Of a flax that works with some releases of jax and asks for others."""

    def __init__(self, working, asks_for=">=0.8.0"):
        self.working = working
        self.asks_for = asks_for
        self.tried = []

    def run(self, flax, jax):
        jax = jax or JAX[-1]
        self.tried.append(jax)
        return {
            "jax": jax,
            "error": None if jax in self.working else "import: ImportError: gone",
            "requires_python": ">=3.12",
            "requires": ["numpy>=2", f"jax{self.asks_for}", 'jax[cpu]; extra == "all"'],
            "nnx_names": ["Linear", "New"] if flax == "0.13.0" else ["Linear", "Old"],
        }

    def jax_releases(self, oldest, newest):
        return JAX[JAX.index(oldest) : JAX.index(newest) + 1]


def measure(trials):
    log = Console(file=io.StringIO(), width=200)
    return extend_releases.measure("0.13.0", trials, log), log.file.getvalue()


def test_the_newest_jax_is_tried_first():
    trials = Trials(JAX)
    row, log = measure(trials)
    assert (row.newest_working_jax, row.first_broken_jax) == ("0.11.0", None)
    assert row.first_broken_error is None
    assert trials.tried[0] == "0.11.0"
    assert log == "flax 0.13.0 with jax 0.11.0: works\n"


@pytest.mark.parametrize("last", range(len(JAX) - 1))
def test_the_last_that_works_is_found(last):
    trials = Trials(JAX[: last + 1])
    row, _ = measure(trials)
    assert (row.newest_working_jax, row.first_broken_jax) == (JAX[last], JAX[last + 1])
    assert row.first_broken_error == "import: ImportError: gone"
    assert len(trials.tried) == len(set(trials.tried))


def test_a_declared_minimum_may_be_too_low():
    row, _ = measure(Trials(["0.8.2", "0.9.0", "0.9.1"]))
    assert (row.newest_working_jax, row.first_broken_jax) == ("0.9.1", "0.10.0")


def test_a_row_says_what_the_wheel_says():
    row, _ = measure(Trials(JAX))
    assert (row.requires_python, row.requires_jax) == (">=3.12", ">=0.8.0")
    assert (row.nnx_names_added, row.nnx_names_removed) == (("New",), ("Old",))


def test_no_jax_works():
    with pytest.raises(UpgradeError, match=r"no jax from 0\.8\.0 to 0\.11\.0 works"):
        measure(Trials([]))


def test_a_row_is_put_in_its_place(tmp_path):
    path = tmp_path / "releases.json"
    path.write_text(releases.TABLE.read_text())
    row, _ = measure(Trials(JAX))
    extend_releases.extend(row, path)
    extend_releases.extend(releases.find("0.12.1"), path)
    written = json.loads(path.read_text())
    before = json.loads(releases.TABLE.read_text())
    *rows, new = written.pop("releases")
    assert rows == before.pop("releases")
    assert (new["flax"], new["newest_working_jax"]) == ("0.13.0", "0.11.0")
    assert written == before


@pytest.fixture
def one_step(monkeypatch):
    """The trial as far as its first step; `.ci/run` runs the others, which compile."""
    monkeypatch.setattr(trial, "STEPS", {"import": trial.STEPS["import"]})


def test_the_trial_states_what_flax_says_of_itself(one_step, capsys):
    trial.main()
    found = json.loads(capsys.readouterr().out)
    assert found["error"] is None
    known = set()
    for row in releases.table():
        if Version(row.flax) <= Version(flax.__version__):
            known = (known | {*row.nnx_names_added}) - {*row.nnx_names_removed}
    assert known | {"Linear"} <= set(found["nnx_names"])
    assert any(text.startswith("jax>=") for text in found["requires"])


def test_the_trial_names_the_step_that_fails(one_step, capsys, monkeypatch):
    def fail():
        raise TypeError("jit() got an unexpected keyword argument\nand more")

    monkeypatch.setitem(trial.STEPS, "nnx train step", fail)
    trial.main()
    assert json.loads(capsys.readouterr().out)["error"] == (
        "nnx train step: TypeError: jit() got an unexpected keyword argument"
    )


def test_doctests():
    results = doctest.testmod(extend_releases)
    assert results.attempted
    assert not results.failed
