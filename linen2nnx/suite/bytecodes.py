"""Count the Python bytecodes that an idiom executes per call: the same every time.

A change in this number is a change in what a framework does on a call, whatever the
machine and its noise. Work in C++ is not in it: it is no time. Counting needs Python
3.12 or newer, whose `sys.monitoring` reports each instruction.

The counts depend on the versions of Python, flax and jax. The file that keeps them is

    {
      "format": "linen2nnx bytecodes",
      "version": 1,
      "command": "linen2nnx bench --bytecodes --save",
      "recorded": [
        {
          "environment": {"python": "3.12", "flax": "0.12.12", "jax": "0.12.0.1"},
          "date": "2026-11-20T18:15:00+00:00",
          "commit": "8a6f3ef...",
          "sources": {"linen_impl/surgery/replace_kernel.py": "<sha256>", ...},
          "counts": [
            {"problem": "surgery/replace_kernel", "what": "jitted",
             "idiom": "nnx.jit", "mode": "tree", "layers": null, "bytecodes": 3021}, ...
          ]
        }
      ]
    }
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from linen2nnx.cost.paired import in_mode, label
from linen2nnx.files import write_whole
from linen2nnx.suite import catalog
from linen2nnx.suite.bench import (
    BenchError,
    bench_path,
    commit,
    results_folder,
    sha256_of_sources,
)

FORMAT, VERSION = "linen2nnx bytecodes", 1
COMMAND = "linen2nnx bench --bytecodes --save"
WHATS = ("jitted", "eager", "edit")
SIZES = 2  # the smallest numbers of layers that are counted

_MOST_CALLS = 20
_ALIKE = 3


def count(function: Callable[[], Any]) -> int:
    """Bytecodes that one call of `function` executes, once its caches are filled.

    Args:
        function: is called until three calls in a row execute as many.

    Raises:
        RuntimeError: before Python 3.12, or if no three of twenty calls in a row agree.

    Example:
        >>> import sys
        >>> if sys.version_info >= (3, 12):
        ...     assert count(lambda: [abs(i) for i in range(9)]) > count(lambda: 0)
    """
    if sys.version_info < (3, 12):
        raise RuntimeError("counting bytecodes takes Python 3.12 or newer")
    counts: list[int] = []
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(_MOST_CALLS):
            counts.append(_count_once(function))
            if len(counts) >= _ALIKE and len(set(counts[-_ALIKE:])) == 1:
                return counts[-1]
    finally:
        if collects:
            gc.enable()
    raise RuntimeError(f"calls do not execute the same bytecodes: {counts}")


def _count_once(function: Callable[[], Any]) -> int:
    monitoring = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    tool = monitoring.PROFILER_ID
    thread = threading.get_ident()
    executed = 0

    def add(code: Any, offset: int) -> None:
        nonlocal executed
        if threading.get_ident() == thread:
            executed += 1

    monitoring.use_tool_id(tool, "linen2nnx")
    try:
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, add)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            function()
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
    finally:
        monitoring.free_tool_id(tool)
    return executed


def measure(problems: Sequence[catalog.ProblemFiles]) -> dict[str, Any]:
    """Count the idioms of these problems, in a process of its own.

    Returns:
        One entry of `recorded`.

    Raises:
        BenchError: if the process failed, or an idiom raised an error.
    """
    if sys.version_info < (3, 12):
        raise BenchError("counting bytecodes takes Python 3.12 or newer")
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "linen2nnx.suite.bytecodes",
            *(p.name for p in problems),
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no output"])[-1]
        raise BenchError(f"counting bytecodes failed: {last}")
    counts = json.loads(found.stdout.splitlines()[-1])
    for row in counts:
        if "error" in row:
            raise BenchError(f"{row['problem']}, {row['idiom']}: {row['error']}")
    return {
        "environment": environment(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "sources": sha256_of_sources(problems),
        "counts": counts,
    }


def environment() -> dict[str, str]:
    """What the counts depend on."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "flax": version("flax"),
        "jax": version("jax"),
    }


def load(path: Path) -> dict[str, Any]:
    """Read the file that keeps the counts; empty if there is none yet.

    Raises:
        ValueError: if the file is none of a version that this one reads.
    """
    if not path.is_file():
        return {
            "format": FORMAT,
            "version": VERSION,
            "command": COMMAND,
            "recorded": [],
        }
    content = json.loads(path.read_text())
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} keeps no {FORMAT} of version {VERSION}")
    return content


def save(entry: dict[str, Any], path: Path) -> None:
    """Keep counts, in place of older ones of the same versions."""
    content = load(path)
    others = [
        e for e in content["recorded"] if e["environment"] != entry["environment"]
    ]
    recorded = sorted([*others, entry], key=lambda e: sorted(e["environment"].items()))
    write_whole(path, json.dumps({**content, "recorded": recorded}, indent=1) + "\n")


def path() -> Path:
    """The file that keeps the counts, in a clone."""
    return results_folder() / "bytecodes.json"


def recorded(content: dict[str, Any]) -> dict[str, Any] | None:
    """The entry that was recorded with the installed versions, if there is one."""
    return next(
        (e for e in content["recorded"] if e["environment"] == environment()), None
    )


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each count that differs between two entries, or that one lacks.

    Example:
        >>> row = {"problem": "p", "what": "jitted", "idiom": "nnx.jit", "mode": "tree"}
        >>> before, after = (
        ...     {"counts": [{**row, "layers": 4, "bytecodes": n}]} for n in (9, 12)
        ... )
        >>> changes(before, after)
        ['p, jitted, nnx.jit (tree mode), 4 layers: 9 bytecodes before, 12 now']
    """
    old, new = by_name(before["counts"]), by_name(after["counts"])
    return [
        f"{name}: {old.get(name, 'no')} bytecodes before, {new.get(name, 'none')} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def render(entry: dict[str, Any]) -> Table:
    """The counts as a table: a row per idiom, a column per number of layers."""
    env = entry["environment"]
    versions = ", ".join(f"{name} {env[name]}" for name in ("flax", "jax", "python"))
    table = Table(title=f"bytecodes per call, {versions}", title_justify="left")
    for name in ("problem", "what", "idiom", "mode"):
        table.add_column(name)
    for name in ("layers", "bytecodes"):
        table.add_column(name, justify="right")
    for row in entry["counts"]:
        table.add_row(
            row["problem"],
            row["what"],
            row["idiom"],
            row["mode"] or "",
            str(row["layers"] or ""),
            f"{row['bytecodes']:,}",
        )
    return table


def by_name(counts: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Rows as one dict: `surgery/x, jitted, nnx.jit (tree mode), 4 layers` to number.

    Rows without a number, of idioms that a flax does not have, are left out.
    """
    keys = ("what", "idiom", "mode", "layers")
    return {
        f"{row['problem']}, {label(*(row[k] for k in keys))}": row["bytecodes"]
        for row in counts
        if row["bytecodes"] is not None
    }


def _count_all(names: Sequence[str]) -> list[dict[str, Any]]:
    """The counts of these problems, in this process.

    Where an idiom raises an error, `bytecodes` is None and `error` says which: an older
    flax does not have all of them.
    """
    sys.path.insert(0, str(catalog.root()))
    arms = importlib.import_module("linen2nnx.cost.arms")
    counts = []
    for problem in map(catalog.find, names):
        file = bench_path(problem).relative_to(catalog.root()).with_suffix("")
        bench = importlib.import_module(".".join(file.parts)).BENCHMARK
        for layers in bench.layers[:SIZES]:
            for what in WHATS:
                for idiom, mode in bench.idioms.get(what, []):
                    row = {"problem": problem.name, "what": what, "idiom": idiom}
                    row |= {"mode": mode, "layers": layers, "bytecodes": None}
                    try:
                        arm = arms.checked_arm(bench, what, idiom, mode, layers)
                        with in_mode(mode):
                            row["bytecodes"] = count(arm.function)
                    except Exception as error:
                        row["error"] = f"{type(error).__name__}: {error}"
                    counts.append(row)
    return counts


if __name__ == "__main__":
    print(json.dumps(_count_all(sys.argv[1:])))
