"""Run the benchmarks of problems, keep what they measured, and say what it means.

The tests of a problem that have the marker `cost` are run by pytest in several
processes, one after the other; what these measured, together, is a record.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from linen2nnx.cost import paired
from linen2nnx.cost.paired import LIMIT, REFERENCE
from linen2nnx.suite import catalog, kept, records
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.pytest_run import PytestRun
from linen2nnx.suite.records import Cost, Measurement, Results

COMMAND = "linen2nnx bench --save"
AS_CHEAP_AS_LINEN = 1.05
PROCESSES = 3
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "PYTEST_XDIST_WORKER": "",  # inherited, it would disable the benchmarks
    # Else compiling, which is timed too, would be reading from the cache.
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}

Progress = Callable[[int, int, str], None]


class BenchError(RuntimeError):
    """The benchmarks could not run."""


@dataclass(frozen=True)
class Cheapest:
    """The nnx idiom that costs least when jitted.

    Attributes:
        idiom: its name.
        mode: the mode of nnx, None where it makes no difference.
        ratio: to Linen's time, at the number of layers where it is largest.
        layers: that number of layers; None for a problem of one layer.
        reason: why no idiom is at most 1.05 times Linen's; None if this one is.
    """

    idiom: str
    mode: str | None
    ratio: float
    layers: int | None
    reason: str | None


def bench(
    problems: Sequence[catalog.ProblemFiles],
    *,
    fresh: bool = False,
    save: bool = False,
    progress: Progress = lambda done, total, name: None,
) -> list[Results]:
    """What these problems cost: kept, or else measured, and kept as each ends.

    Args:
        problems: which, at least one.
        fresh: measure all of them.
        save: keep the records in `docs/results` of the clone too.
        progress: called with the number of measurements done and of all of the problem
            that is measured, and the last one.

    Returns:
        For each problem its results: one record of its cost.

    Raises:
        BenchError: if pytest could not run a benchmark, it failed other than by its
            control, or all its measurements did so by that.
        NotKeptError: if this is no clone to save in, or code changes meanwhile.
        RecordError: if a file of the clone holds no records.
        OSError: if a record cannot be written.
    """
    environment = _environment()

    def measure(
        missing: Sequence[catalog.ProblemFiles],
    ) -> Iterator[tuple[catalog.ProblemFiles, Cost]]:
        for problem in missing:
            yield problem, _measure(problem, environment, progress)

    folder = kept.results_folder() if save else None
    return kept.complete(
        problems, "cost", environment, measure, fresh=fresh, folder=folder
    )


def _environment() -> dict[str, str]:
    """What the processes of a benchmark measure in, as one of them says it."""
    code = (
        "import json; from linen2nnx.cost import paired; paired.use_one_thread(); "
        "print(json.dumps(paired.timed_environment()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no output"])[-1]
        raise BenchError(f"the benchmarks could not start: {last}")
    environment: dict[str, str] = json.loads(found.stdout.splitlines()[-1])
    return environment


def _measure(
    problem: catalog.ProblemFiles, environment: dict[str, str], progress: Progress
) -> Cost:
    """Time every idiom of a problem; there is none if it declares no cost."""
    date, code = records.now(), digest_of(problem, "cost")
    runs: list[list[dict[str, Any]]] = []
    rejected: dict[str, str] = {}
    for run in range(PROCESSES):

        def in_all(done: int, total: int, name: str, before: int = run) -> None:
            shown = f"{problem.name}, {name}"
            progress(before * total + done, PROCESSES * total, shown)

        with tempfile.TemporaryDirectory() as name:
            rejected |= _run(problem, Path(name), in_all)
            timed = Path(name) / "benchmark.json"
            if timed.is_file():
                benchmarks = json.loads(timed.read_text())["benchmarks"]
                runs.append([benchmark["extra_info"] for benchmark in benchmarks])
    rows = paired.merge(runs)
    measurements = msgspec.convert(rows, list[Measurement])
    published = {_label(row) for row in measurements}
    missing = [f"{k}: {why}" for k, why in rejected.items() if k not in published]
    if missing and not measurements:
        why = "; ".join(missing)
        raise BenchError(f"{problem.name}: nothing was published: {why}")
    if rows:
        environment = rows[0]["environment"]
    on_cpu = environment["device"].startswith("cpu")
    return Cost(
        digest=code,
        environment=environment,
        date=date,
        command=f"{COMMAND} {problem.name}",
        device="cpu" if on_cpu else "gpu",
        measurements=measurements,
        not_published=missing,
    )


def _label(row: Measurement) -> str:
    return paired.label(row.what, row.idiom, row.mode, row.layers)


def cheapest(cost: Cost) -> Cheapest | None:
    """The nnx idiom that costs least when jitted; None if there are no figures of any.

    An idiom counts with the number of layers where it is dearest beside Linen's.
    """
    dearest: dict[tuple[str, str | None], Measurement] = {}
    for row in cost.measurements:
        if row.what == "jitted" and row.idiom not in (REFERENCE, LIMIT):
            key = row.idiom, row.mode
            if key not in dearest or row.ratio > dearest[key].ratio:
                dearest[key] = row
    if not dearest:
        return None
    row = min(dearest.values(), key=lambda row: row.ratio)
    reason = None
    if row.ratio > AS_CHEAP_AS_LINEN:
        reason = (
            f"the cheapest, {_idiom(row.idiom, row.mode)}, takes "
            f"{row.ratio:.2f} times Linen's time{_at(row.layers)}"
        )
    return Cheapest(row.idiom, row.mode, row.ratio, row.layers, reason)


def slope(rows: Sequence[Measurement]) -> float | None:
    """Seconds that one more layer takes: of the least-squares line through the rows.

    Args:
        rows: measurements of one idiom with different numbers of layers.

    Returns:
        None if there are fewer than two different numbers.
    """
    points = [(row.layers, row.seconds) for row in rows if row.layers]
    if len({layers for layers, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points)).slope


def render(found: Sequence[Results]) -> Group:
    """A table per problem, its cheapest idiom, and what was not published.

    Args:
        found: results with one record of cost each.
    """
    parts: list[Table | Text] = []
    not_published, timed = [], []
    for results in found:
        (cost,) = (r for r in results.records if isinstance(r, Cost))
        if not (cost.measurements or cost.not_published):
            parts.append(Text(f"{results.problem} declares no cost\n"))
            continue
        parts += [_table(results.problem, cost.measurements), _verdict(cheapest(cost))]
        timed.append(cost)
        not_published += [f"{results.problem}, {line}" for line in cost.not_published]
    if timed:
        parts.append(_footer(timed[-1]))
    parts += [Text(f"not published: {line}", style="red") for line in not_published]
    return Group(*parts)


def _footer(cost: Cost) -> Text:
    env = cost.environment
    where = env["cpu_model"] if cost.device == "cpu" else env["device"]
    clock = cost.measurements[0].clock.replace("cpu", "CPU")
    return Text(
        f"Ratio to Linen's {clock}: the mean of {PROCESSES} processes, and their "
        f"range. flax {env['flax']}, jax {env['jax']}, python {env['python']}, {where}",
        style="dim",
    )


def _table(problem: str, rows: Sequence[Measurement]) -> Table:
    sizes = sorted({row.layers for row in rows if row.layers is not None})
    columns: list[int | None] = [*sizes] or [None]
    table = Table(title=problem, title_justify="left")
    for name in ("what", "idiom", "mode"):
        table.add_column(name)
    for depth in columns:
        head = "ratio" if depth is None else f"{depth} layer" + "s" * (depth > 1)
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("a call", justify="right", no_wrap=True)
    if sizes:
        table.add_column("a layer", justify="right", no_wrap=True)
    keys = list(dict.fromkeys((r.what, r.idiom, r.mode) for r in rows))
    last = None
    for what, idiom, mode in keys:
        found = [
            row
            for row in rows
            if (row.what, row.idiom, row.mode) == (what, idiom, mode)
        ]
        cells = {row.layers: _cell(row) for row in found}
        per_layer = slope(found)
        if last not in (None, what):
            table.add_section()
        table.add_row(
            what if what != last else "",
            idiom,
            mode or "",
            *(cells.get(depth, "") for depth in columns),
            _microseconds(found[0].seconds),
            *([_microseconds(per_layer)] if per_layer is not None else []),
        )
        last = what
    return table


def _cell(row: Measurement) -> Text:
    low, high = row.interval
    cell = Text(f"{row.ratio:.2f}", style="bold")
    if row.idiom != REFERENCE:
        cell.append(f" {low:.2f}-{high:.2f}", style="not bold dim")
    return cell


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us"


def _verdict(found: Cheapest | None) -> Text:
    if found is None:
        return Text("no idiom was published\n", style="red")
    if found.reason:
        return Text(
            f"no nnx idiom is within {AS_CHEAP_AS_LINEN} times Linen's jitted time: "
            f"{found.reason}\n",
            style="yellow",
        )
    return Text(
        f"jitted, {_idiom(found.idiom, found.mode)} takes {found.ratio:.2f} times "
        f"Linen's time{_at(found.layers)}\n",
        style="green",
    )


def _idiom(idiom: str, mode: str | None) -> str:
    return f"{idiom} in {mode} mode" if mode else idiom


def _at(layers: int | None) -> str:
    return f" at {layers} layer" + "s" * (layers > 1) if layers else ""


def _run(
    problem: catalog.ProblemFiles, folder: Path, progress: Progress
) -> dict[str, str]:
    """Time a problem in one process; the measurements that their control rejected."""
    done = 0
    rejected: dict[str, str] = {}
    errors: list[str] = []
    is_timed = True
    run = PytestRun(
        [problem.test_path()],
        [
            *("-m", "cost"),
            *("--benchmark-enable", "--benchmark-json", folder / "benchmark.json"),
        ],
        VARIABLES,
        folder,
    )
    try:
        running = True
        while running:
            running = run.is_running()
            for event in run.events():
                if event["event"] == "test":
                    done += 1
                    name, message = _short(event["test"]), event["message"] or ""
                    if "ControlError" in message.partition(":")[0]:
                        rejected[name] = message
                    elif event["outcome"] != "passed":
                        errors.append(f"{name}: {message}")
                    progress(done, run.total, name)
                elif event["event"] == "error":
                    errors.append(event["message"])
                elif event["event"] == "collected":
                    is_timed = event["tests"] > 0
            time.sleep(0.2)
        if errors:
            more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
            raise BenchError(f"{problem.name}: {errors[0]}{more}")
        if is_timed and (error := run.error()):
            raise BenchError(f"{problem.name}: its benchmark {error}")
    finally:
        run.stop()
    return rejected


def _short(test: str) -> str:
    """`.../test_x.py::TestX::test_cost[y]` is `y`, and `...::test_y` is `test_y`."""
    name, _, case = test.partition("[")
    return case.removesuffix("]") or name.rpartition("::")[2]
