"""Run the benchmarks of the suite, keep what they measured, and say what it means.

`bench` runs them in four processes, one after the other, each of them a run of pytest.

A result file is JSON:

    {
      "format": "linen2nnx bench",
      "version": 1,
      "command": "linen2nnx bench --save",
      "date": "2026-11-20T18:15:00+00:00",
      "commit": "8a6f3ef...",
      "sources": {"linen_impl/surgery/replace_kernel.py": "<sha256>", ...},
      "environment": {"python": "3.12.3", "flax": "0.12.12", "device": "cpu: cpu",
                      "cpu_model": "...", "async_dispatch": "off", "cores": "1",
                      ...},
      "measurements": [
        {"problem": "surgery/replace_kernel", "what": "jitted", "idiom": "nnx.jit",
         "mode": "tree", "layers": null, "ratio": 3.4, "interval": [3.37, 3.46],
         "rounds": 40, "control": 1.003, "clock": "cpu time",
         "seconds": 5.1e-05, "linen_seconds": 1.5e-05}, ...
      ]
    }

`mode` is that of nnx, null where it makes no difference. `layers` is null for a problem
of one layer. Seconds are per call, the least of any process.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from linen2nnx.cost import paired
from linen2nnx.cost.paired import LIMIT, REFERENCE
from linen2nnx.files import write_whole
from linen2nnx.suite import catalog
from linen2nnx.suite.pytest_run import PytestRun

FORMAT, VERSION = "linen2nnx bench", 1
COMMAND = "linen2nnx bench --save"
AS_CHEAP_AS_LINEN = 1.05
PROCESSES = 4
MEASURING = "linen2nnx/cost/paired.py"


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
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> tuple[dict[str, Any], list[str]]:
    """Time every idiom of these problems.

    Args:
        problems: which, at least one.
        progress: called with the number of measurements done, of all, and the last one.

    Returns:
        The content of a result file, and why what is missing there was not published:
        its control was off in all processes but one.

    Raises:
        BenchError: if pytest could not run the benchmarks, or one of them failed other
            than by its control.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    files = [bench_path(problem) for problem in problems]
    runs: list[list[dict[str, Any]]] = []
    rejected: dict[str, str] = {}
    for run in range(PROCESSES):

        def in_all(done: int, total: int, name: str, before: int = run) -> None:
            progress(before * total + done, PROCESSES * total, name)

        with tempfile.TemporaryDirectory() as name:
            rejected |= _run(files, Path(name), in_all)
            kept = Path(name) / "benchmark.json"
            if kept.is_file():
                benchmarks = json.loads(kept.read_text())["benchmarks"]
                runs.append([benchmark["extra_info"] for benchmark in benchmarks])
    measurements = paired.merge(runs)
    published = {f"{row['problem']}, {_label(row)}" for row in measurements}
    missing = [f"{k}: {why}" for k, why in rejected.items() if k not in published]
    if not measurements:
        raise BenchError(f"nothing was published: {'; '.join(missing)}")
    environments = [row.pop("environment") for row in measurements]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "command": COMMAND,
        "date": date,
        "commit": commit(),
        "sources": sha256_of_sources(problems),
        "environment": environments[0],
        "measurements": measurements,
    }
    return content, missing


def _label(row: dict[str, Any]) -> str:
    return paired.label(row["what"], row["idiom"], row["mode"], row["layers"])


def bench_path(problem: catalog.ProblemFiles) -> Path:
    """The file of a problem's benchmark."""
    test = problem.test_path()
    return test.with_name(test.name.replace("test_", "bench_", 1))


def sources(problem: catalog.ProblemFiles) -> list[str]:
    """The files that a measurement of a problem depends on, and that which makes it."""
    files = [
        problem.path("linen"),
        problem.path("nnx"),
        bench_path(problem),
    ]
    return [*(file.relative_to(catalog.root()).as_posix() for file in files), MEASURING]


def sha256_of_sources(problems: Sequence[catalog.ProblemFiles]) -> dict[str, str]:
    """The SHA-256 of those files, by name."""
    names = [name for problem in problems for name in sources(problem)]
    return {name: _sha256(_source_path(name)) for name in names}


def _source_path(name: str) -> Path:
    is_library = name == MEASURING
    return Path(paired.__file__) if is_library else catalog.root() / name


def result_path(content: dict[str, Any]) -> Path:
    """Where the result of a whole run is kept in a clone.

    Raises:
        BenchError: if this is no clone.
    """
    folder = results_folder()
    on_cpu = content["environment"]["device"].startswith("cpu")
    return folder / f"overhead-{'cpu' if on_cpu else 'gpu'}.json"


def results_folder() -> Path:
    """The folder of kept results, in a clone.

    Raises:
        BenchError: if this is no clone.
    """
    if not (catalog.root() / "docs").is_dir():
        raise BenchError("results are kept in a clone of linen2nnx only: use --json")
    folder = catalog.root() / "docs" / "results"
    folder.mkdir(exist_ok=True)
    return folder


def save(content: dict[str, Any], path: Path) -> None:
    """Write a result file in one step. The inverse of `load`."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read a result file. The inverse of `save`.

    Raises:
        ValueError: if the file is no result of a version that this one reads.
    """
    content = json.loads(path.read_text())
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} is no {FORMAT} result of version {VERSION}")
    return content


def stale(content: dict[str, Any]) -> list[str]:
    """What a result is older than: one line for each file that has changed since.

    Example:
        >>> stale({"sources": {}, "command": "linen2nnx bench --save"})
        []
    """
    lines = []
    for name, sha256 in content["sources"].items():
        path = _source_path(name)
        if not path.is_file() or _sha256(path) != sha256:
            change = "changed" if path.is_file() else "gone"
            lines.append(
                f"{name} has {change} since the result was measured; "
                f"`{content['command']}` renews it"
            )
    return lines


def cheapest(content: dict[str, Any], problem: str) -> Cheapest | None:
    """The nnx idiom that costs least when jitted; None if the problem has no figures.

    An idiom counts with the number of layers where it is dearest beside Linen's.

    Example:
        >>> row = {"problem": "p", "what": "jitted", "mode": None, "layers": 4}
        >>> rows = [{**row, "idiom": "nnx.jit", "ratio": 9.0}]
        >>> rows += [{**row, "idiom": "held pure dict", "ratio": 0.99}]
        >>> found = cheapest({"measurements": rows}, "p")
        >>> found.idiom, found.ratio, found.reason
        ('held pure dict', 0.99, None)
    """
    dearest: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in content["measurements"]:
        of_nnx = row["idiom"] not in (REFERENCE, LIMIT)
        if row["problem"] == problem and row["what"] == "jitted" and of_nnx:
            key = row["idiom"], row["mode"]
            if key not in dearest or row["ratio"] > dearest[key]["ratio"]:
                dearest[key] = row
    if not dearest:
        return None
    row = min(dearest.values(), key=lambda row: row["ratio"])
    reason = None
    if row["ratio"] > AS_CHEAP_AS_LINEN:
        reason = (
            f"the cheapest, {_idiom(row['idiom'], row['mode'])}, takes "
            f"{row['ratio']:.2f} times Linen's time{_at(row['layers'])}"
        )
    return Cheapest(row["idiom"], row["mode"], row["ratio"], row["layers"], reason)


def slope(rows: Sequence[dict[str, Any]]) -> float | None:
    """Seconds that one more layer takes: of the least-squares line through the rows.

    Args:
        rows: measurements of one idiom with different numbers of layers.

    Returns:
        None if there are fewer than two different numbers.

    Example:
        >>> slope([{"layers": 1, "seconds": 3.0}, {"layers": 5, "seconds": 11.0}])
        2.0
    """
    points = [(row["layers"], row["seconds"]) for row in rows if row["layers"]]
    if len({layers for layers, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return covariance / sum((x - mean_x) ** 2 for x, _ in points)


def render(content: dict[str, Any], rejected: Sequence[str] = ()) -> Group:
    """A table per problem, its cheapest idiom, and what was not published."""
    parts: list[Table | Text] = []
    rows = content["measurements"]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        parts += [
            _table(problem, [row for row in rows if row["problem"] == problem]),
            _verdict(cheapest(content, problem)),
        ]
    env = content["environment"]
    where = env["cpu_model"] if env["device"].startswith("cpu") else env["device"]
    clock = rows[0]["clock"].replace("cpu", "CPU")
    parts.append(
        Text(
            f"Ratio to Linen's {clock}: the mean of {PROCESSES} processes, and their "
            "range. "
            f"flax {env['flax']}, jax {env['jax']}, python {env['python']}, {where}",
            style="dim",
        )
    )
    parts += [Text(f"not published: {line}", style="red") for line in rejected]
    return Group(*parts)


def _table(problem: str, rows: list[dict[str, Any]]) -> Table:
    depths = sorted({row["layers"] for row in rows if row["layers"] is not None})
    table = Table(title=problem, title_justify="left")
    for name in ("what", "idiom", "mode"):
        table.add_column(name)
    for depth in depths or [None]:
        head = "ratio" if depth is None else f"{depth} layer" + "s" * (depth > 1)
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("a call", justify="right", no_wrap=True)
    if depths:
        table.add_column("a layer", justify="right", no_wrap=True)
    keys = list(dict.fromkeys((r["what"], r["idiom"], r["mode"]) for r in rows))
    last = None
    for what, idiom, mode in keys:
        found = [
            row
            for row in rows
            if (row["what"], row["idiom"], row["mode"]) == (what, idiom, mode)
        ]
        cells = {row["layers"]: _cell(row) for row in found}
        per_layer = slope(found)
        if last not in (None, what):
            table.add_section()
        table.add_row(
            what if what != last else "",
            idiom,
            mode or "",
            *(cells.get(depth, "") for depth in depths or [None]),
            _microseconds(found[0]["seconds"]),
            *([_microseconds(per_layer)] if per_layer is not None else []),
        )
        last = what
    return table


def _cell(row: dict[str, Any]) -> Text:
    low, high = row["interval"]
    cell = Text(f"{row['ratio']:.2f}", style="bold")
    if row["idiom"] != REFERENCE:
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
    files: Sequence[Path], folder: Path, progress: Callable[[int, int, str], None]
) -> dict[str, str]:
    """Run pytest on these files; the measurements that their control rejected."""
    done = 0
    rejected: dict[str, str] = {}
    errors: list[str] = []
    run = PytestRun(
        files,
        [
            "--noconftest",
            *("--benchmark-enable", "--benchmark-json", folder / "benchmark.json"),
        ],
        {
            "PYTHONHASHSEED": "0",
            "PYTEST_XDIST_WORKER": "",  # inherited, it would disable the benchmarks
            "JAX_ENABLE_COMPILATION_CACHE": "0",
        },
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
                    errors.append(f"{event['test']}: {event['message']}")
            time.sleep(0.2)
        if errors:
            raise BenchError("; ".join(errors))
        if error := run.error():
            raise BenchError(f"the benchmarks {error}")
    finally:
        run.stop()
    return rejected


def _short(test: str) -> str:
    """`.../surgery/bench_x.py::test_overhead[y]` is `surgery/x, y`."""
    path, _, name = test.partition("::")
    file = Path(path)
    case = name.partition("[")[2].removesuffix("]")
    return f"{file.parent.name}/{file.stem.removeprefix('bench_')}, {case or name}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commit() -> str | None:
    """The commit of the clone; None outside of one."""
    if not (catalog.root() / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=catalog.root(), capture_output=True, text=True
    )
    return found.stdout.strip() or None
