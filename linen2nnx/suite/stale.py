"""What of the kept results is missing, or of other code than that of now."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.version import Version

from linen2nnx.suite import catalog, kept
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import AnyRecord, Kind, RecordError

# What measures a record, followed by the name of a problem.
MEASURED_BY: dict[Kind, str] = {
    "parity": "linen2nnx check --save --only",
    "cost": "linen2nnx bench --save",
    "bytecodes": "linen2nnx bench --bytecodes --save",
}


def stale(results_folder: Path) -> list[str]:
    """One line for each kind of record that is stale or missing, with what renews it.

    A problem is to have its parity, its bytecodes and its cost on a CPU. What else
    there is, on other releases and on a GPU, is to be of the code of now.

    Args:
        results_folder: with a file for each problem.
    """
    lines: list[str] = []
    for problem in catalog.problems():
        try:
            results = kept.load(problem, results_folder)
        except RecordError as error:
            lines.append(str(error))
            continue
        lines += _lines(problem, "parity", "parity", results.parity())
        for device in ("cpu", "gpu"):
            cost = results.cost(device)
            if device == "cpu" or cost is not None:
                lines += _lines(problem, "cost", f"cost on {device}", [cost])
        lines += _lines(problem, "bytecodes", "bytecodes", results.bytecodes())
    return lines


def _lines(
    problem: catalog.ProblemFiles,
    kind: Kind,
    name: str,
    found: Sequence[AnyRecord | None],
) -> Iterator[str]:
    records = [record for record in found if record is not None]
    renew = f"`{MEASURED_BY[kind]} {problem.name}`"
    if not records:
        yield f"{problem.name}: no {name} yet; {renew} measures it"
        return
    now = digest_of(problem, kind)
    old = {r.environment["flax"] for r in records if r.digest != now}
    if old:
        releases = sorted(old, key=Version)
        on = "" if kind == "cost" else f" on flax {', '.join(releases)}"
        if kind == "parity":
            check = f"linen2nnx check {' '.join(releases)} --save --only"
            renew = f"`{check} {problem.name}`"
        yield f"{problem.name}: {name} of other code{on}; {renew} renews it"
