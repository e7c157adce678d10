"""Draw what the parity tests of problems showed: a line each, then the details."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linen2nnx.modes import MODES
from linen2nnx.suite.check import Checked
from linen2nnx.suite.records import Outcome, Verdict, largest, verdict_of

_VERDICT, _DIFFERENCE, _WARNINGS = 13, 10, 8  # widths; 80 columns hold a name of 30


class CheckTable:
    """A table that grows by a line as a problem ends."""

    def __init__(self, names: Iterable[str]) -> None:
        """No line yet.

        Args:
            names: of the problems, so that all lines are as wide.
        """
        self._width = max(map(len, names), default=0)

    def head(self, environment: dict[str, str]) -> RenderableType:
        """What it was measured with, and the headings of the columns."""
        names = ("flax", "jax", "python")
        versions = ", ".join(f"{name} {environment[name]}" for name in names)
        modes = [f"{mode}\nmode" for mode in MODES]
        headings = ["\nproblem", *modes, "largest\ndifference", "\nwarnings"]
        return Group(
            Text(f"{versions}, {environment['device']}", style="italic"),
            self._row([Text(heading, style="bold") for heading in headings]),
        )

    def line(self, checked: Checked) -> RenderableType:
        """One problem."""
        modes = checked.record.modes
        difference = largest(o.largest_difference for o in modes.values())
        return self._row(
            [
                Text(checked.problem.name),
                *(_verdict(modes[mode].verdict) for mode in MODES),
                Text("none" if difference == 0 else f"{difference:.3g}"),
                Text(str(sum(len(o.warnings) for o in modes.values()))),
            ]
        )

    def _row(self, cells: Sequence[Text]) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=self._width, no_wrap=True)
        for _ in MODES:
            row.add_column(width=_VERDICT)
        for width in (_DIFFERENCE, _WARNINGS):
            row.add_column(width=width, justify="right")
        row.add_row(*cells)
        return row


def details(found: Sequence[Checked]) -> RenderableType:
    """What failed, the warnings, and one line that sums up."""
    parts: list[RenderableType] = []
    for checked in found:
        parts += _details(checked.problem.name, checked.record.modes)
    holding = sum(checked.record.holds for checked in found)
    style = "bold green" if holding == len(found) else "bold red"
    summary = f"{holding} of {len(found)} problems hold in {' and '.join(MODES)} mode"
    dates = sorted(c.record.date.partition("T")[0] for c in found if c.is_kept)
    if dates:
        when = f"on {dates[0]}"
        if dates[0] != dates[-1]:
            when = f"from {dates[0]} to {dates[-1]}"
        summary += f"; {len(dates)} of them as checked {when}, --fresh runs all"
    return Group(*parts, Text(f"\n{summary}", style=style))


def _details(name: str, modes: dict[str, Outcome]) -> list[RenderableType]:
    """Each distinct failure and warning once, with the modes it occurred in."""
    seen: dict[tuple[str, str], list[str]] = {}
    for mode, outcome in modes.items():
        for failure in outcome.failures:
            test = failure.test.rpartition("::")[2].partition("[")[0]
            title = f"{verdict_of(failure)}: {name}, {test}"
            seen.setdefault((title, failure.message), []).append(mode)
        for warning in outcome.warnings:
            text = f"{warning.where}: {warning.message}"
            seen.setdefault((f"warning: {name}", text), []).append(mode)
    parts: list[RenderableType] = []
    for (title, text), of_modes in seen.items():
        where = " and ".join(dict.fromkeys(of_modes))
        parts.append(Text(f"\n{title} ({where} mode)"))
        parts.append(Padding(Text(text, style="dim"), (0, 0, 0, 4)))
    return parts


def _verdict(verdict: Verdict) -> Text:
    return Text(verdict, style="green" if verdict == "holds" else "red")
