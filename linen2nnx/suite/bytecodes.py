"""Count the Python bytecodes that the idioms of problems execute, and keep the counts.

They depend on the versions of Python, flax and jax. The counting runs in a process of
its own, `python -m linen2nnx.suite.bytecodes PROBLEM ...`, which prints a line as each
problem ends:

    {"problem": "surgery/replace_kernel", "counts": [{"what": "jitted", ...}, ...]}

`rows` reads that.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version

import msgspec
from rich.table import Table

from linen2nnx.cost.paired import label
from linen2nnx.files import compilation_cache, compiled_folder
from linen2nnx.suite import catalog, kept, records
from linen2nnx.suite.bench import BenchError
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import Bytecodes, Count, Results

COMMAND = "linen2nnx bench --bytecodes --save"


class _Line(msgspec.Struct):
    problem: str
    counts: list[Count]


def bytecodes(
    problems: Sequence[catalog.ProblemFiles],
    *,
    fresh: bool = False,
    save: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Results]:
    """The counts of these problems: kept, or else counted, and kept as each ends.

    Args:
        problems: which, at least one.
        fresh: count all of them.
        save: keep the records in `docs/results` of the clone too.
        progress: called with the number of problems that are counted, that of all to
            be counted, and the last one.

    Returns:
        For each problem its results: one record of its bytecodes.

    Raises:
        BenchError: before Python 3.12, or if the process failed or an idiom raised an
            error.
        NotKeptError: if this is no clone to save in, or code changes meanwhile.
        RecordError: if a file of the clone holds no records.
        OSError: if a record cannot be written.
    """
    if sys.version_info < (3, 12):
        raise BenchError("counting bytecodes takes Python 3.12 or newer")

    def measure(
        missing: Sequence[catalog.ProblemFiles],
    ) -> Iterator[tuple[catalog.ProblemFiles, Bytecodes]]:
        for done, (problem, record) in enumerate(_measure(missing), 1):
            progress(done, len(missing), problem.name)
            yield problem, record

    folder = kept.results_folder() if save else None
    return kept.complete(
        problems, "bytecodes", environment(), measure, fresh=fresh, folder=folder
    )


def _measure(
    problems: Sequence[catalog.ProblemFiles],
) -> Iterator[tuple[catalog.ProblemFiles, Bytecodes]]:
    """Count in one process; each problem's as it ends."""
    by_name = {problem.name: problem for problem in problems}
    code = {name: digest_of(problem, "bytecodes") for name, problem in by_name.items()}
    command = [sys.executable, "-m", "linen2nnx.suite.bytecodes", *by_name]
    variables = {**os.environ, **compilation_cache(compiled_folder())}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            env={**variables, "PYTHONHASHSEED": "0"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                for name, counts in rows(line).items():
                    for row in counts:
                        if row.error:
                            raise BenchError(f"{name}, {row.idiom}: {row.error}")
                    yield (
                        by_name[name],
                        Bytecodes(
                            digest=code.pop(name),
                            environment=environment(),
                            date=records.now(),
                            command=f"{COMMAND} {name}",
                            counts=counts,
                        ),
                    )
        finally:
            process.kill()
        if code:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no output"])[-1]
            raise BenchError(f"counting bytecodes of {next(iter(code))} failed: {last}")


def environment() -> dict[str, str]:
    """What the counts depend on."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "flax": version("flax"),
        "jax": version("jax"),
    }


def rows(text: str) -> dict[str, list[Count]]:
    r"""The counts by problem, of the lines that the counting process printed.

    Other lines are left out: a problem may print too.

    Raises:
        msgspec.DecodeError: if a line of counts is none that this version reads.

    Example:
        >>> row = '{"what": "eager", "idiom": "x", "mode": null, "layers": null'
        >>> line = '{"problem": "c/p", "counts": [' + row + ', "bytecodes": 9}]}'
        >>> rows("printed by a problem\n" + line)["c/p"][0].bytecodes
        9
    """
    lines = (line for line in text.splitlines() if line.startswith('{"problem"'))
    found = (msgspec.json.decode(line, type=_Line) for line in lines)
    return {line.problem: line.counts for line in found}


def changes(
    before: Mapping[str, Sequence[Count]], after: Mapping[str, Sequence[Count]]
) -> list[str]:
    """One line for each count that differs, or that one lacks.

    Args:
        before: counts by problem.
        after: likewise.

    Example:
        >>> before, after = (
        ...     {"p": [Count("jitted", "nnx.jit", "tree", 4, n)]} for n in (9, 12)
        ... )
        >>> changes(before, after)
        ['p, jitted, nnx.jit (tree mode), 4 layers: 9 bytecodes before, 12 now']
    """
    old, new = by_name(before), by_name(after)
    return [
        f"{name}: {old.get(name, 'no')} bytecodes before, {new.get(name, 'none')} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def by_name(counts: Mapping[str, Sequence[Count]]) -> dict[str, int]:
    """As one dict: `surgery/x, jitted, nnx.jit (tree mode), 4 layers` to number.

    Rows without a number, of idioms that a flax does not have, are left out.
    """
    return {
        f"{name}, {label(row.what, row.idiom, row.mode, row.layers)}": row.bytecodes
        for name, of_problem in counts.items()
        for row in of_problem
        if row.bytecodes is not None
    }


def render(found: Sequence[Results]) -> Table:
    """The counts as a table: a row per idiom and number of layers.

    Args:
        found: results with one record of bytecodes each.
    """
    env = environment()
    versions = ", ".join(f"{name} {env[name]}" for name in ("flax", "jax", "python"))
    table = Table(title=f"bytecodes per call, {versions}", title_justify="left")
    for name in ("problem", "what", "idiom", "mode"):
        table.add_column(name)
    for name in ("layers", "bytecodes"):
        table.add_column(name, justify="right")
    for results in found:
        for record in results.bytecodes():
            for row in record.counts:
                table.add_row(
                    results.problem,
                    row.what,
                    row.idiom,
                    row.mode or "",
                    str(row.layers or ""),
                    f"{row.bytecodes:,}",
                )
    return table


def _print_counts(names: Sequence[str]) -> None:
    """Count these problems in this process, and print a line for each as it ends."""
    sys.path.insert(0, str(catalog.root()))
    cost = importlib.import_module("linen2nnx.cost.bytecodes")
    for problem in map(catalog.find, names):
        file = problem.test_path().relative_to(catalog.root()).with_suffix("")
        declared = importlib.import_module(".".join(file.parts)).problem
        counts = cost.counts(declared.benchmark) if declared.cost else []
        print(json.dumps({"problem": problem.name, "counts": counts}), flush=True)


if __name__ == "__main__":
    _print_counts(sys.argv[1:])
