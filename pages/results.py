"""What the records of results say, in the words of the pages."""

import functools
import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from itertools import groupby
from typing import TypeVar

from packaging.version import Version

from linen2nnx.cost.paired import LIMIT
from linen2nnx.suite import bench, digests, records
from pages.page import Page

R = TypeVar("R", bound=records.Parity | records.Bytecodes)
Versions = tuple[str, str]  # the versions of flax and jax

STALE = '<small class="stale">(stale)</small>'


def release_of(environment: dict[str, str]) -> Versions:
    """The versions of flax and jax of an environment."""
    return environment["flax"], environment["jax"]


def in_order(versions: Sequence[str]) -> tuple[Version, ...]:
    """A key that sorts releases, oldest first."""
    return tuple(map(Version, versions))


def newest(found: Sequence[R]) -> R | None:
    """The record of the newest flax and jax; None if there is none."""

    def key(record: R) -> tuple[Version, ...]:
        return in_order(release_of(record.environment))

    return max(found, key=key, default=None)


def is_stale(page: Page, record: records.AnyRecord) -> bool:
    """Whether code that a record depends on has changed since it was made."""
    kind = record.__struct_config__.tag
    return record.digest != _digest(page.problem, kind)


_digest = functools.cache(digests.digest_of)  # no file changes during a build


def renew(page: Page, found: Sequence[records.AnyRecord]) -> list[str]:
    """The commands that renew what is stale of these records."""
    commands = [record.command for record in found if is_stale(page, record)]
    return list(dict.fromkeys(commands))


def verdict(record: records.Parity | None) -> str:
    """`exact`, how far the sides differ, or what is wrong."""
    if record is None:
        return "not measured"
    for outcome in record.modes.values():
        if outcome.verdict != "holds":
            return outcome.verdict
    largest = records.largest(o.largest_difference for o in record.modes.values())
    if largest == 0:
        return "exact"
    bound = Context(prec=1, rounding=ROUND_CEILING).create_decimal_from_float(largest)
    return f"within {float(bound):.1g}"


def holds_on(page: Page) -> str:
    """The releases of flax on which it holds: `0.12.0 to 0.12.4, 0.12.8`."""
    holds: dict[str, bool] = {}
    for record in page.results.parity():
        flax = record.environment["flax"]
        holds[flax] = record.holds and holds.get(flax, True)
    parts = []
    for holding, group in groupby(sorted(holds, key=Version), key=lambda v: holds[v]):
        run = list(group)
        if holding:
            parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run
    return ", ".join(parts) or "none"


def cheapest(cost: records.Cost | None) -> bench.Cheapest | None:
    """The nnx idiom that costs least when jitted; None if none was measured."""
    return bench.cheapest(cost) if cost else None


def idiom(name: str, mode: str | None) -> str:
    """An idiom with its mode, as pages name it."""
    if name == LIMIT:
        return f"{name}, no framework"
    return f"{name}, {mode} mode" if mode else name


def layers(count: int | None, otherwise: str = "") -> str:
    """`1 layer`, `4 layers`."""
    if count is None:
        return otherwise
    return "1 layer" if count == 1 else f"{count} layers"


def depths(rows: Sequence[records.Measurement | records.Count]) -> list[int | None]:
    """The numbers of layers of these rows, in order."""
    return sorted({row.layers for row in rows}, key=lambda n: (n is not None, n or 0))


def ratio(number: float) -> str:
    """Two decimals, or one where they would be noise."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}"


def seconds(number: float) -> str:
    """In the largest unit in which it is at least one; microseconds below that."""
    units = {"s": 1.0, "ms": 1e-3, "\u00b5s": 1e-6}
    unit = next((unit for unit, size in units.items() if number >= size), "\u00b5s")
    return f"{number / units[unit]:.3g} {unit}"


def difference(number: float) -> str:
    """A difference, `nan` or `inf` too."""
    return f"{number:.3g}" if math.isfinite(number) else str(number)


def device(environment: dict[str, str]) -> str:
    """Its model where that is known: `cpu: cpu` says no more than CPU."""
    kind, _, model = environment.get("device", "cpu").partition(": ")
    return environment.get("cpu_model", "CPU") if kind == "cpu" else model


def dates(found: Sequence[records.Record]) -> str:
    """The day of these records, or the first and the last."""
    days = sorted(record.date[:10] for record in found)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
