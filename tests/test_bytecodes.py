"""How bytecodes are counted, and the counts of problems kept."""

import sys
import threading

import pytest
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.cost import arms
from linen2nnx.cost import bytecodes as cost
from linen2nnx.suite import bytecodes, catalog, kept, records
from linen2nnx.suite.bench import BenchError
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import Count

counting = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12"
)
P, Q = catalog.ProblemFiles("state/p"), catalog.ProblemFiles("state/q")


def row(layers, number, **other):
    return Count("jitted", "nnx.jit", "tree", layers, number, **other)


def adding(times):
    total = 0
    for i in range(times):
        total += i
    return total


@counting
def test_count_is_exact():
    """An iteration executes the same bytecodes each time, so counts are on a line."""
    one, two, ten = (cost.count(lambda n=n: adding(n)) for n in (1, 2, 10))
    assert two > one
    assert ten - one == 9 * (two - one)
    assert cost.count(lambda: adding(10)) == ten


@counting
def test_count_is_of_the_call_once_its_caches_are_filled():
    cache = {}

    def cached():
        if "x" not in cache:
            cache["x"] = adding(100)
        return cache["x"]

    assert cost.count(cached) < cost._count_once(lambda: adding(100))


@counting
def test_count_leaves_other_threads_out():
    alone = cost.count(lambda: adding(1000))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [adding(9) for _ in iter(stop.is_set, 1)])
    thread.start()
    try:
        assert cost.count(lambda: adding(1000)) == alone
    finally:
        stop.set()
        thread.join()


@counting
def test_a_call_that_always_differs_is_an_error():
    calls = iter(range(1, 100))
    with pytest.raises(RuntimeError, match="do not execute the same"):
        cost.count(lambda: adding(next(calls)))


class TwoIdioms:
    """A pair of which one idiom is gone."""

    def call(self, what, idiom):
        if idiom == "gone":
            raise AttributeError("nnx has no gone")
        return lambda: adding(10) or []


@counting
def test_every_idiom_of_the_smallest_sizes_is_counted():
    idioms = {"jitted": [("Linen", None), ("gone", None)], "first call: trace": [1]}
    benchmark = arms.Benchmark("c/p", lambda _: TwoIdioms(), idioms, [1, 4, 16])
    found = cost.counts(benchmark)
    keys = ("what", "layers", "idiom", "error")
    assert [[row[key] for key in keys] for row in found] == [
        ["jitted", 1, "Linen", ""],
        ["jitted", 1, "gone", "AttributeError: nnx has no gone"],
        ["jitted", 4, "Linen", ""],
        ["jitted", 4, "gone", "AttributeError: nnx has no gone"],
    ]
    assert found[0]["bytecodes"] == found[2]["bytecodes"] > 50
    assert found[1]["bytecodes"] is None


def test_changes_name_each_count():
    before = {"c/p": [row(1, 9), row(4, 20), row(64, None, error="gone")]}
    after = {"c/p": [row(4, 21), row(16, 50)]}
    assert bytecodes.changes(before, before) == []
    assert bytecodes.changes(before, after) == [
        "c/p, jitted, nnx.jit (tree mode), 1 layer: 9 bytecodes before, none now",
        "c/p, jitted, nnx.jit (tree mode), 4 layers: 20 bytecodes before, 21 now",
        "c/p, jitted, nnx.jit (tree mode), 16 layers: no bytecodes before, 50 now",
    ]


# Stands for the interpreter: prints what the counting process does.
COUNTING = """#!/bin/sh
shift 2
echo "$@" >> ran
for name in "$@"; do
  [ "$name" = "$(cat breaks)" ] && { echo "KeyError: gone" >&2; exit 1; }
  echo "printed by a problem"
  echo '{"problem": "'$name'", "counts": [{"what": "jitted", "idiom": "nnx.jit",
    "mode": "tree", "layers": 4, "bytecodes": 1234, "error": "'$(cat error)'"}]}' \
    | tr -d "\\n"
  echo
done
"""


@pytest.fixture
def process(clone, monkeypatch):
    """The folder of a counting process that counts nothing."""
    folder = clone.parent / "process"
    folder.mkdir()
    for name in ("ran", "breaks", "error"):
        (folder / name).touch()
    executable = folder / "python"
    executable.write_text(COUNTING)
    executable.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(bytecodes.sys, "executable", str(executable))
    return folder


@counting
def test_counts_are_kept_as_each_problem_ends(clone, process):
    (process / "breaks").write_text(Q.name)
    with pytest.raises(BenchError, match="of state/q failed: KeyError: gone"):
        bytecodes.bytecodes([P, Q], save=True)
    (process / "breaks").write_text("")
    seen = []
    found = bytecodes.bytecodes(
        [P, Q], save=True, progress=lambda *done: seen.append(done)
    )
    assert (process / "ran").read_text() == "state/p state/q\nstate/q\n"
    assert seen == [(1, 1, Q.name)]
    for problem, results in zip([P, Q], found):
        (record,) = results.records
        assert record.counts == [row(4, 1234)]
        assert record.digest == digest_of(problem, "bytecodes")
        assert record.environment == bytecodes.environment()
        assert kept.load(problem, kept.results_folder()) == results


@counting
def test_an_idiom_that_raises_is_an_error_and_not_kept(clone, process):
    (process / "error").write_text("KeyError: x")
    with pytest.raises(BenchError, match=r"state/p, nnx\.jit: KeyError: x"):
        bytecodes.bytecodes([P], save=True)
    assert not [*clone.glob("docs/results/**/*.json")]


@counting
def test_command(clone, process):
    file = clone.parent / "x.json"
    ran = CliRunner().invoke(
        cli.app, ["bench", "p", "--bytecodes", "--json", str(file)]
    )
    assert ran.exit_code == 0, ran.output
    assert "1,234" in ran.stdout
    (results,) = records.load_all(file)
    assert (results.problem, results.records[0].counts) == (P.name, [row(4, 1234)])


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="it can count")
def test_command_where_nothing_can_be_counted():
    result = CliRunner().invoke(cli.app, ["bench", "--bytecodes"])
    assert result.exit_code == 2
    assert "takes Python 3.12" in result.stderr


# One problem of each kind of benchmark; `linen2nnx bench --bytecodes` counts all.
COUNTED_AGAIN = [
    "surgery/warm_start",
    "definition/compact_mlp",
    "training/adam_optimizer",
]


def kept_counts(name, environment):
    """The record of these versions; None if there is none."""
    found = kept.load(catalog.find(name), kept.results_folder()).bytecodes()
    return next((r for r in found if r.environment == environment), None)


@pytest.mark.parametrize("name", COUNTED_AGAIN)
def test_the_versions_of_the_constraint_file_are_counted(name):
    """The recount below is skipped elsewhere, and is not to be where CI runs it."""
    pins = (catalog.root() / "constraints" / "python3.12.txt").read_text().splitlines()
    versions = dict(pin.split("==") for pin in pins if "==" in pin)
    environment = {"python": "3.12", "flax": versions["flax"], "jax": versions["jax"]}
    assert kept_counts(name, environment) is not None


@counting
def test_idioms_execute_as_many_bytecodes_as_recorded(tmp_path, monkeypatch):
    """More of them is more work in Python on every call, whatever the machine."""
    monkeypatch.setenv("LINEN2NNX_CACHE", str(tmp_path))
    environment = bytecodes.environment()
    found = {name: kept_counts(name, environment) for name in COUNTED_AGAIN}
    before = {
        name: record.counts
        for name, record in found.items()
        if record and record.digest == digest_of(catalog.find(name), "bytecodes")
    }
    if not before:
        pytest.skip(f"no counts of this code and {environment} are kept")
    again = bytecodes.bytecodes([*map(catalog.find, before)], fresh=True)
    after = {results.problem: results.records[0].counts for results in again}
    changes = bytecodes.changes(before, after)
    assert not changes, "\n".join([*changes, f"`{bytecodes.COMMAND}` records them"])
