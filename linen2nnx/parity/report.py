"""The report of a comparison: as data, as text, in a terminal and in a notebook."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.divergence import Divergence


@dataclass(frozen=True)
class Row:
    """One leaf of one check.

    Attributes:
        check: one of `linen2nnx.parity.CHECKS`.
        path: the leaf's Linen path.
        shape: its shape on the Linen side.
        dtype: its dtype on the Linen side.
        difference: the largest absolute difference; inf where shapes differ or one side
            has no such leaf, nan where one side is nan and the other is not.
        note: what differs, in words; empty where it is within the check's tolerance.
    """

    check: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    difference: float
    note: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.shape} {self.dtype}: {self.note or 'equal'}"


@dataclass(frozen=True)
class Report:
    """All rows of one comparison, and the first check that differs.

    `print` shows it as text, a notebook as a table, and `rich.print` in colour.

    Attributes:
        rows: a row for each leaf of each check that was made.
        checks: those that were to be made, in order.
        failed: the check that differs; those after it were not made. Empty if none.
        failure: what differs, in words; empty likewise.
        divergence: the first module that diverges; None if no check of numbers differs.
        randomness: how random numbers were dealt with.
        jit: whether both sides ran under `jax.jit`.
        tolerance: by the name of a check.
    """

    rows: list[Row] = field(default_factory=list)
    checks: tuple[str, ...] = ()
    failed: str = ""
    failure: str = ""
    divergence: Divergence | None = None
    randomness: str = "deterministic"
    jit: bool = False
    tolerance: Mapping[str, Tolerance] = field(default_factory=dict)

    @property
    def largest_difference(self) -> float:
        """The largest difference of any row, nan if any is nan, 0.0 without rows."""
        return float(np.max([row.difference for row in self.rows], initial=0.0))

    def __rich__(self) -> Group:
        how = "under jax.jit" if self.jit else "op by op"
        title = f"both sides {how}, randomness: {self.randomness}"
        table = Table(title=title, title_justify="left")
        table.add_column("check", no_wrap=True)
        table.add_column("leaves", justify="right")
        table.add_column("largest difference", justify="right")
        table.add_column("verdict")
        for check in self.checks:
            rows = [row for row in self.rows if row.check == check]
            largest = Report(rows).largest_difference
            table.add_row(
                check,
                str(len(rows)) if rows else "",
                ("none" if largest == 0 else f"{largest:.3g}") if rows else "",
                self._verdict(check, rows),
            )
        if self.failed:
            return Group(table, Text(self.failure))
        return Group(table, Text("the same in every check", style="bold green"))

    def _verdict(self, check: str, rows: Sequence[Row]) -> Text:
        if check == self.failed:
            return Text("differs", style="bold red")
        after = self.checks.index(check) > self.checks.index(self.failed or check)
        if after or not rows:
            return Text("not reached" if after else "no leaves", style="dim")
        if self.randomness == "statistics" and check == "outputs":
            return Text("same within six standard errors", style="green")
        if check in self.tolerance and any(row.difference for row in rows):
            cause = self.tolerance[check].cause
            return Text(f"within its tolerance: {cause}", style="green")
        return Text("same", style="green")

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=100, record=True)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
