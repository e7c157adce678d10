"""What became of each problem on one release of flax, in a word with its reason."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from linen2nnx.releases import table as releases
from linen2nnx.releases.results import Facts
from linen2nnx.suite import cached, expected
from linen2nnx.suite.records import (
    Bytecodes,
    Failure,
    Outcome,
    Parity,
    Warned,
    verdict_of,
)

VERDICTS = (  # from best to worst
    "holds",
    "holds with warnings",
    "pitfall changed",
    "not there yet",
    "nothing ran",
    "differs",
    "fails",
    "flax does not import",
    "could not be installed",
)


@dataclass(frozen=True)
class Cell:
    """What became of one problem in one mode on one release.

    Attributes:
        verdict: one of `VERDICTS`.
        reason: the API that is missing, the path that differs, the error; or empty.
    """

    verdict: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


@dataclass
class ReleaseResult:
    """What one release showed.

    Attributes:
        name: as it was asked for.
        error: why there is nothing else: flax could not be installed, or does not
            import. Empty if the suite ran.
        told: False where that does not say anything about flax itself.
        notes: how its jax was chosen, if not by the table; what could not be measured.
        environment: versions and device.
        facts: what `linen2nnx.releases.probe` stated.
        parity: by mode and problem, a record of that mode alone.
        own: by mode and file, what became of the user's tests.
        logs: by mode, the log of pytest.
        bytecodes: by problem.
    """

    name: str
    error: str = ""
    told: bool = True
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    parity: dict[str, dict[str, Parity]] = field(default_factory=dict)
    own: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    bytecodes: dict[str, Bytecodes] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The release and its jax, such as `0.12.6, jax 0.10.2`."""
        jax = self.environment.get("jax")
        return f"{self.name}, jax {jax}" if jax else self.name

    @property
    def problems(self) -> list[str]:
        """The problems of the suite and the user's files that ran in any mode."""
        ran = [name for found in self.parity.values() for name in found]
        own = [name for found in self.own.values() for name in found]
        return list(dict.fromkeys([*ran, *own]))

    def records(self) -> dict[str, Parity]:
        """By problem of the suite, one record of all modes."""
        names = dict.fromkeys(name for ran in self.parity.values() for name in ran)
        return {
            name: cached.merged(
                [ran[name] for ran in self.parity.values() if name in ran]
            )
            for name in names
        }

    def outcomes(self, problem: str) -> dict[str, Outcome]:
        """What became of one problem, or of one of the user's files, by mode."""
        found: dict[str, Outcome] = {}
        for mode in self.facts.modes:
            if record := self.parity.get(mode, {}).get(problem):
                found[mode] = record.modes[mode]
            elif outcome := self.own.get(mode, {}).get(problem):
                found[mode] = outcome
        return found

    def cell(self, problem: str, mode: str) -> Cell:
        """What became of one problem in one mode."""
        if self.error:
            verdict, _, reason = self.error.partition(": ")
            return Cell(verdict, reason)
        if mode not in self.facts.modes:
            return Cell("not there yet", "tree mode, since 0.12.6")
        outcome = self.outcomes(problem).get(mode, Outcome())
        return verdict_on(outcome, self.environment["flax"])

    def cells(self) -> list[tuple[str, str, Cell]]:
        """Problem, mode and cell of all that ran."""
        return [
            (problem, mode, self.cell(problem, mode))
            for problem in self.problems
            for mode in self.outcomes(problem)
        ]

    def unexpected(self) -> list[str]:
        """What is not as `linen2nnx.suite.expected` states, in either direction."""
        lines = []
        flax = self.environment.get("flax", "")
        for problem, record in self.records().items():
            for mode in record.modes:
                cell = self.cell(problem, mode)
                wanted = expected.find(problem, mode, flax)
                if cell.verdict != wanted.verdict:
                    lines.append(f"{problem}, {mode} mode: {cell}; expected: {wanted}")
        return lines


def verdict_on(outcome: Outcome, flax: str) -> Cell:
    """What became of a problem on a release, whose table of APIs is known.

    Args:
        outcome: in one mode.
        flax: the version.
    """
    if not outcome.tests and not outcome.failures:
        return Cell("nothing ran")
    found: dict[str, list[str]] = {}
    for failure in outcome.failures:
        missing = releases.not_there_yet(failure.message, flax)
        if missing:
            found.setdefault("not there yet", []).append(
                f"{missing[0]}, since {missing[1]}"
            )
        else:
            found.setdefault(verdict_of(failure), []).append(_reason(failure))
    for verdict in reversed(VERDICTS):
        if verdict in found:
            reasons = list(dict.fromkeys(found[verdict]))
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            return Cell(verdict, reasons[0] + more)
    if outcome.warnings:
        return Cell("holds with warnings", f"{len(outcome.warnings)}")
    return Cell("holds")


_OTHER_MESSAGE = re.compile(
    r"Regex pattern did not match\..*(?:Input|Actual message): (['\"])(?P<text>.*)\1",
    re.DOTALL,
)
_FARTHEST = re.compile(r"\n\s+(\S+) .*? values differ by up to (\S+)")


def _reason(failure: Failure) -> str:
    """One line: the path that differs and how far, or the error's first line."""
    test = failure.test.rpartition("::")[2].partition("[")[0]
    if found := _FARTHEST.search(failure.message):
        return f"{found[1]} by {found[2]} ({test})"
    if found := _OTHER_MESSAGE.search(failure.message):
        return f"the error says: {shorten(found['text'])} ({test})"
    lines = failure.message.strip().splitlines() or [""]
    return f"{lines[0]} ({test})"


def shorten(text: str) -> str:
    """At most 100 characters of it, in one line."""
    return textwrap.shorten(text, 100, placeholder="...")


def first_line(warning: Warned) -> str:
    """What a warning says, as one line."""
    return warning.message.strip().splitlines()[0]


def place(warning: Warned) -> str:
    """File and line of a warning, without the folders above the suite's."""
    return "/".join(Path(warning.where).parts[-3:])


def warnings_of(outcomes: Mapping[str, Outcome]) -> list[tuple[str, str]]:
    """First line and place of each warning of a problem, in any mode."""
    found: dict[tuple[str, str], None] = {}
    for outcome in outcomes.values():
        for warning in outcome.warnings:
            found[first_line(warning), place(warning)] = None
    return list(found)
