"""Run the parity tests of the suite in the current environment.

Each mode of nnx gets a pytest process of its own, both at the same time.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linen2nnx.files import compilation_cache
from linen2nnx.suite import catalog
from linen2nnx.suite.modes import MODES
from linen2nnx.suite.pytest_run import PytestRun
from linen2nnx.suite.results import Outcome, Results, is_pitfall, largest

# Processes share compiled programs; one that reads what another writes compiles anew.
WARNINGS = (
    "filterwarnings=always\n"
    "ignore:Error (reading|writing) persistent compilation cache entry:UserWarning"
)


class CheckError(RuntimeError):
    """The check could not run."""


def check(
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Results:
    """Check every problem in graph and in tree mode.

    Args:
        progress: called with the number of tests that ended and of all tests.

    Raises:
        CheckError: if pytest could not run the suite to its end.
    """
    problems = catalog.problems()
    if not problems:
        raise CheckError(f"there is no problem in {catalog.root()}")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {mode: _Run(mode, folder) for mode in MODES}
        for run in runs.values():
            stack.callback(run.process.stop)
        running = True
        while running:
            running = any(run.process.is_running() for run in runs.values())
            for run in runs.values():
                run.read()
            progress(
                sum(run.seen.ended for run in runs.values()),
                sum(run.process.total for run in runs.values()),
            )
            time.sleep(0.1)
        for run in runs.values():
            run.finish()
    return Results(
        command="linen2nnx check",
        date=date,
        environment=runs["graph"].seen.environment,
        problems={
            problem.name: {mode: run.outcome(problem) for mode, run in runs.items()}
            for problem in problems
        },
    )


def options(mode: str) -> list[str]:
    """Pytest's options for the parity tests in one mode."""
    return [
        *("--override-ini", WARNINGS),
        *("--override-ini", "python_files=test_*.py"),
        *("--continue-on-collection-errors", "--nnx-mode", mode),
    ]


class _Run:
    """The pytest process of one mode and what it has reported so far."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode = mode
        self.process = PytestRun(
            [catalog.root() / "parity_tests"],
            options(mode),
            compilation_cache(folder / "compiled"),
            folder,
            mode,
        )
        self.seen = Seen()

    def read(self) -> None:
        """Take what was reported since the last call."""
        for event in self.process.events():
            self.seen.take(event)

    def finish(self) -> None:
        """Raise an error unless the process ran every test to its end."""
        if error := self.process.error():
            raise CheckError(f"the tests in {self.mode} mode {error}")

    def outcome(self, problem: catalog.ProblemFiles) -> Outcome:
        """What became of one problem."""
        return self.seen.outcomes.get(problem.name, Outcome())


class Seen:
    """What pytest processes reported, by problem.

    Attributes:
        ended: how many tests ended.
        environment: versions and device.
        outcomes: by problem.
        running: the test that has started and not ended; None between tests.
    """

    def __init__(self, name_of: Callable[[str], str] | None = None) -> None:
        """Nothing yet.

        Args:
            name_of: the problem that a test belongs to; None is that of the suite.
        """
        self.name_of = name_of or problem_name
        self.ended = 0
        self.environment: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.running: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Take one event of the plugin."""
        kind = event["event"]
        if kind == "collected":
            self.environment = event["environment"]
        elif kind == "started":
            self.running = event["test"]
        elif kind != "finished":
            outcome = self.outcomes.setdefault(self.name_of(event["test"]), Outcome())
            getattr(self, f"_take_{kind}")(outcome, event)

    def _take_test(self, outcome: Outcome, event: dict[str, Any]) -> None:
        self.running = None
        self.ended += 1
        outcome.tests += 1
        if is_pitfall(event["test"]):  # they compare what is to differ
            event["compared"] = {}
        for check, (leaves, difference) in event["compared"].items():
            compared = outcome.compared.setdefault(
                check, {"leaves": 0, "largest_difference": 0.0}
            )
            compared["leaves"] += leaves
            so_far = compared["largest_difference"]
            compared["largest_difference"] = largest([so_far, difference])
        if event["outcome"] == "failed":
            self._take_error(outcome, event)

    def _take_error(self, outcome: Outcome, event: dict[str, Any]) -> None:
        failure = {"test": event["test"], "message": event["message"]}
        outcome.failures.append(failure)

    def _take_warning(self, outcome: Outcome, event: dict[str, Any]) -> None:
        warning = {"message": event["message"], "where": event["where"]}
        if warning not in outcome.warnings:
            outcome.warnings.append(warning)


def problem_name(test: str) -> str:
    """`parity_tests/surgery/test_x.py::test_y` belongs to `surgery/x`."""
    path = Path(test.partition("::")[0])
    return f"{path.parent.name}/{path.stem.removeprefix('test_')}"
