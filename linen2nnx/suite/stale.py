"""What of the kept results is missing, or of other code than that of now."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from packaging.version import Version

from linen2nnx.suite import catalog, kept
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import Bytecodes, Parity, Record, RecordError

# What renews a record, followed by the name of a problem.
RENEWED_BY = {
    "parity": "linen2nnx check --save --only",
    "cost": "linen2nnx bench --save",
    "bytecodes": "linen2nnx bench --bytecodes --save",
}

_OfRelease = TypeVar("_OfRelease", Parity, Bytecodes)


def stale(results_folder: Path) -> list[str]:
    """One line for each record that is stale or missing, with what renews it.

    A problem is to have its parity and its bytecodes on a release, of which the newest
    counts, and its cost on a CPU; on a GPU too if any problem has that.

    Args:
        results_folder: with a file for each problem.
    """
    lines, found = [], []
    for problem in catalog.problems():
        try:
            found.append((problem, kept.load(problem, results_folder)))
        except RecordError as error:
            lines.append(str(error))
    on_gpu = any(results.cost("gpu") for _, results in found)
    for problem, results in found:
        records: dict[str, Record | None] = {
            "parity": _newest(results.parity()),
            "cost on cpu": results.cost("cpu"),
            "bytecodes": _newest(results.bytecodes()),
        }
        if on_gpu:
            records["cost on gpu"] = results.cost("gpu")
        lines += _lines(problem, records)
    return lines


def _lines(
    problem: catalog.ProblemFiles, records: dict[str, Record | None]
) -> Iterator[str]:
    for name, record in records.items():
        kind = name.partition(" ")[0]
        renew = f"`{RENEWED_BY[kind]} {problem.name}`"
        if record is None:
            yield f"{problem.name}: no {name} yet; {renew} measures it"
        elif record.digest != digest_of(problem, kind):  # type: ignore[arg-type]
            yield f"{problem.name}: {name} of other code; {renew} renews it"


def _newest(records: Sequence[_OfRelease]) -> _OfRelease | None:
    """The record of the newest flax, and of the newest jax with that."""

    def versions(record: _OfRelease) -> tuple[Version, Version]:
        return Version(record.environment["flax"]), Version(record.environment["jax"])

    return max(records, key=versions, default=None)
