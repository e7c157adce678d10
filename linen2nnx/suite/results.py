"""The one format of results, from which every table is drawn.

A result file is JSON:

    {
      "format": "linen2nnx check",
      "version": 1,
      "command": "linen2nnx check",
      "date": "2026-11-20T18:15:00+00:00",
      "environment": {"python": "3.11.7", "flax": "0.12.8", ..., "device": "cpu: cpu"},
      "problems": {
        "surgery/replace_kernel": {
          "graph": {
            "verdict": "holds",
            "tests": 23,
            "compared": {"outputs": {"leaves": 210, "largest_difference": 0.0}, ...},
            "warnings": [{"message": "...", "where": "file.py:3"}],
            "failures": [{"test": "...::test_set_kernel", "message": "..."}]
          },
          "tree": {...}
        }
      }
    }

A difference that is infinite or nan is the string `"inf"` or `"nan"`: JSON has neither.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from linen2nnx.files import write_whole

VERSION = 1

Verdict = Literal["holds", "differs", "fails", "pitfall changed", "nothing ran"]


@dataclass
class Outcome:
    """What became of one problem in one mode.

    Attributes:
        tests: how many tests ran.
        compared: by check, how many leaves were compared and the largest difference.
        warnings: message and file:line of each distinct warning.
        failures: test and message of each failed test.
    """

    tests: int = 0
    compared: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst that happened.

        `differs`: the two sides computed different numbers. `fails`: a test raised
        something else. `pitfall changed`: parity holds, and a pitfall that the page
        states is no longer what flax does.
        """
        if not self.tests and not self.failures:
            return "nothing ran"
        kinds = {kind_of(failure) for failure in self.failures}
        for kind in ("differs", "fails", "pitfall changed"):
            if kind in kinds:
                return kind
        return "holds"

    @property
    def largest_difference(self) -> float:
        """The largest difference over all checks."""
        return largest(c["largest_difference"] for c in self.compared.values())


@dataclass
class Results:
    """Outcomes by problem and mode, with what produced them."""

    command: str
    date: str
    environment: dict[str, str]
    problems: dict[str, dict[str, Outcome]]

    @property
    def all_hold(self) -> bool:
        """Whether every problem holds in every mode."""
        return all(
            outcome.verdict == "holds"
            for modes in self.problems.values()
            for outcome in modes.values()
        )

    def save(self, path: Path) -> None:
        """Write the results as JSON, in one step: all of it or nothing."""
        problems = {
            name: {
                mode: {"verdict": outcome.verdict, **asdict(outcome)}
                for mode, outcome in modes.items()
            }
            for name, modes in self.problems.items()
        }
        content = {
            "format": "linen2nnx check",
            "version": VERSION,
            "command": self.command,
            "date": self.date,
            "environment": self.environment,
            "problems": problems,
        }
        write_whole(path, json.dumps(finite(content), indent=2) + "\n")


def load(path: Path) -> Results:
    """Read results that `Results.save` wrote.

    Raises:
        ValueError: if the file is no result file of a version that this one reads.
    """
    content = json.loads(path.read_text())
    if content.get("format") != "linen2nnx check" or content["version"] != VERSION:
        raise ValueError(f"{path} is no linen2nnx check result of version {VERSION}")
    problems = {
        name: {
            mode: Outcome(**{k: v for k, v in outcome.items() if k != "verdict"})
            for mode, outcome in modes.items()
        }
        for name, modes in content["problems"].items()
    }
    return Results(
        content["command"], content["date"], content["environment"], problems
    )


def render(results: Results) -> Group:
    """The verdicts as a table, what failed, the warnings, and one line that sums up."""
    modes = sorted({mode for by_mode in results.problems.values() for mode in by_mode})
    table = Table(title=_title(results.environment), title_justify="left")
    table.add_column("problem", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode}\nmode")
    table.add_column("largest\ndifference", justify="right", no_wrap=True)
    table.add_column("warnings", justify="right", no_wrap=True)
    details = Text()
    for name, by_mode in results.problems.items():
        outcomes = by_mode.values()
        table.add_row(
            name,
            *(_verdict_text(by_mode[mode].verdict) for mode in modes),
            _difference_text(largest(o.largest_difference for o in outcomes)),
            str(sum(len(o.warnings) for o in outcomes)),
        )
        _add_details(details, name, by_mode)
    holding = sum(
        all(outcome.verdict == "holds" for outcome in by_mode.values())
        for by_mode in results.problems.values()
    )
    total = len(results.problems)
    where = " and ".join(modes)
    summary = f"{holding} of {total} problems hold in {where} mode"
    style = "bold green" if holding == total else "bold red"
    return Group(table, details, Text(summary, style=style))


def largest(differences: Iterable[float | str]) -> float:
    """The largest difference: nan if any is nan, and 0.0 where there is none."""
    numbers = [float(difference) for difference in differences]
    return next((d for d in numbers if math.isnan(d)), max(numbers, default=0.0))


def is_pitfall(test: str) -> bool:
    """Whether a test shows a pitfall, rather than parity."""
    return "::test_pitfall_" in test


def kind_of(failure: dict[str, str]) -> Verdict:
    """The verdict that one failure gives."""
    if is_pitfall(failure["test"]):
        return "pitfall changed"
    differs = "ParityError" in failure["message"].partition(":")[0]
    return "differs" if differs else "fails"


def _title(environment: dict[str, str]) -> str:
    names = ("flax", "jax", "python")
    versions = ", ".join(f"{name} {environment[name]}" for name in names)
    return f"{versions}, {environment['device']}"


def _verdict_text(verdict: Verdict) -> Text:
    return Text(verdict, style="green" if verdict == "holds" else "red")


def _difference_text(difference: float) -> str:
    return "none" if difference == 0 else f"{difference:.3g}"


def _add_details(details: Text, name: str, by_mode: dict[str, Outcome]) -> None:
    """Each distinct failure and warning once, with the modes it occurred in."""
    seen: dict[str, list[str]] = {}
    for mode, outcome in by_mode.items():
        for failure in outcome.failures:
            test = failure["test"].rpartition("::")[2].partition("[")[0]
            text = f"{kind_of(failure)}: {name}, {test}\n    {failure['message']}"
            seen.setdefault(text, []).append(mode)
        for warning in outcome.warnings:
            text = f"warning: {name}\n    {warning['where']}: {warning['message']}"
            seen.setdefault(text, []).append(mode)
    for text, modes in seen.items():
        first, _, rest = text.partition("\n")
        details.append(f"\n{first} ({' and '.join(dict.fromkeys(modes))} mode)\n")
        details.append(rest.replace("\n", "\n    ") + "\n", style="dim")


def finite(value: Any) -> Any:
    """`value` with infinite and nan numbers as text, which JSON can hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
