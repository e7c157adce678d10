"""What pytest processes report of the parity tests, by problem."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linen2nnx.suite.records import (
    Compared,
    Failure,
    Outcome,
    Warned,
    is_pitfall,
    largest,
)

# Processes share compiled programs; one that reads what another writes compiles anew.
WARNINGS = (
    "filterwarnings=always\n"
    "ignore:Error (reading|writing) persistent compilation cache entry:UserWarning"
)

WHOLE = (0, 1, 5)  # exit statuses of pytest: all ran, some failed, there was none

_INSTALLED = re.compile(r"/[^\s\"']*?/lib/python3\.\d+/(site-packages/)?")


def options(mode: str) -> list[str]:
    """Pytest's options for the parity tests in one mode."""
    return [
        *("--override-ini", WARNINGS),
        *("--override-ini", "python_files=test_*.py"),
        *("-m", "not meta and not cost"),
        *("--continue-on-collection-errors", "--nnx-mode", mode),
    ]


class Seen:
    """What pytest processes reported, by problem.

    Attributes:
        ended: how many tests ended.
        environment: versions and device.
        outcomes: by problem.
        running: the test that has started and not ended; None between tests.
        is_finished: whether the last process ran every test to its end.
    """

    def __init__(self, root: Path, name_of: Callable[[str], str] | None = None) -> None:
        """Nothing yet.

        Args:
            root: the folder of the suite, which is left out of messages.
            name_of: the problem that a test belongs to; None is that of the suite.
        """
        self.root = root
        self.name_of = name_of or problem_name
        self.ended = 0
        self.environment: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.running: str | None = None
        self.is_finished = False
        self._current: str | None = None
        self._ended: list[str] = []

    def take(self, event: dict[str, Any]) -> None:
        """Take one event of the plugin."""
        kind = event["event"]
        if kind == "collected":
            self.environment = event["environment"]
            self.is_finished = False
        elif kind == "started":
            self.running = event["test"]
            self._begin(self.name_of(event["test"]))
        elif kind == "finished":
            self.is_finished = event["exit_status"] in WHOLE
            if self.is_finished:
                self._begin(None)
        else:
            outcome = self.outcomes.setdefault(self.name_of(event["test"]), Outcome())
            getattr(self, f"_take_{kind}")(outcome, event)

    def take_ended(self) -> list[str]:
        """The problems of which a last test has ended since the last call."""
        found, self._ended = self._ended, []
        return found

    def fail(self, test: str, cause: str) -> None:
        """Note that a test stopped its process."""
        outcome = self.outcomes.setdefault(self.name_of(test), Outcome())
        outcome.failures.append(Failure(test, cause))

    def clean(self, text: str) -> str:
        """A text without the folders of this machine that its files are in."""
        return _INSTALLED.sub("", text.replace(f"{self.root}/", ""))

    def _begin(self, problem: str | None) -> None:
        if self._current not in (None, problem):
            self._ended.append(self._current)
        self._current = problem

    def _take_test(self, outcome: Outcome, event: dict[str, Any]) -> None:
        self.running = None
        self.ended += 1
        outcome.tests += 1
        if not is_pitfall(event["test"]):  # they compare what is to differ
            for check, (leaves, difference) in event["compared"].items():
                compared = outcome.compared.setdefault(check, Compared())
                compared.leaves += leaves
                so_far = compared.largest_difference
                compared.largest_difference = largest([so_far, difference])
        if event["outcome"] == "failed":
            self._take_error(outcome, event)

    def _take_error(self, outcome: Outcome, event: dict[str, Any]) -> None:
        message = self.clean(event["message"])
        outcome.failures.append(Failure(event["test"], message))

    def _take_warning(self, outcome: Outcome, event: dict[str, Any]) -> None:
        message, where = self.clean(event["message"]), self.clean(event["where"])
        if (warning := Warned(message, where)) not in outcome.warnings:
            outcome.warnings.append(warning)


def problem_name(test: str) -> str:
    """`parity_tests/surgery/test_x.py::test_y` belongs to `surgery/x`."""
    path = Path(test.partition("::")[0])
    return f"{path.parent.name}/{path.stem.removeprefix('test_')}"
