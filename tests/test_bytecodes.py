import sys
import threading

import pytest
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.suite import bench, bytecodes, catalog

counting = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12"
)

ROW = {"problem": "c/p", "what": "jitted", "idiom": "nnx.jit", "mode": "tree"}


def entry(*counts, **environment):
    return {
        "environment": {**bytecodes.environment(), **environment},
        "date": "2026-11-20T18:15:00+00:00",
        "sources": {},
        "counts": [
            {**ROW, "layers": layers, "bytecodes": count} for layers, count in counts
        ],
    }


def adding(times):
    total = 0
    for i in range(times):
        total += i
    return total


@counting
def test_count_is_exact():
    """An iteration executes the same bytecodes each time, so counts are on a line."""
    one, two, ten = (bytecodes.count(lambda n=n: adding(n)) for n in (1, 2, 10))
    assert two > one
    assert ten - one == 9 * (two - one)
    assert bytecodes.count(lambda: adding(10)) == ten


@counting
def test_count_is_of_the_call_once_its_caches_are_filled():
    cache = {}

    def cached():
        if "x" not in cache:
            cache["x"] = adding(100)
        return cache["x"]

    assert bytecodes.count(cached) < bytecodes._count_once(lambda: adding(100))


@counting
def test_count_leaves_other_threads_out():
    alone = bytecodes.count(lambda: adding(1000))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [adding(9) for _ in iter(stop.is_set, 1)])
    thread.start()
    try:
        assert bytecodes.count(lambda: adding(1000)) == alone
    finally:
        stop.set()
        thread.join()


@counting
def test_a_call_that_always_differs_is_an_error():
    calls = iter(range(1, 100))
    with pytest.raises(RuntimeError, match="do not execute the same"):
        bytecodes.count(lambda: adding(next(calls)))


def test_changes_name_each_count():
    before, after = entry((1, 9), (4, 20)), entry((4, 21), (16, 50))
    assert bytecodes.changes(before, before) == []
    assert bytecodes.changes(before, after) == [
        "c/p, jitted, nnx.jit (tree mode), 1 layer: 9 bytecodes before, none now",
        "c/p, jitted, nnx.jit (tree mode), 4 layers: 20 bytecodes before, 21 now",
        "c/p, jitted, nnx.jit (tree mode), 16 layers: no bytecodes before, 50 now",
    ]


def test_counts_are_kept_by_version(tmp_path):
    path = tmp_path / "bytecodes.json"
    assert bytecodes.recorded(bytecodes.load(path)) is None
    older = entry((1, 5), flax="0.0.1")
    for kept in (entry((1, 8)), older, entry((1, 9))):
        bytecodes.save(kept, path)
    content = bytecodes.load(path)
    assert bytecodes.recorded(content) == entry((1, 9))
    assert content["recorded"] == [older, entry((1, 9))]
    path.write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="no linen2nnx bytecodes"):
        bytecodes.load(path)


def test_command(monkeypatch, tmp_path):
    file = tmp_path / "x.json"
    monkeypatch.setattr(bytecodes, "measure", lambda problems: entry((4, 1234)))
    result = CliRunner().invoke(cli.app, ["bench", "--bytecodes", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "1,234" in result.stdout
    assert bytecodes.recorded(bytecodes.load(file)) == entry((4, 1234))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="it can count")
def test_command_where_nothing_can_be_counted():
    result = CliRunner().invoke(cli.app, ["bench", "--bytecodes"])
    assert result.exit_code == 2
    assert "takes Python 3.12" in result.stderr


KEPT = catalog.root() / "docs" / "results" / "bytecodes.json"


@pytest.mark.parametrize(
    "kept",
    bytecodes.load(KEPT)["recorded"],
    ids=lambda kept: " ".join(kept["environment"].values()),
)
def test_kept_counts_are_of_this_code(kept):
    assert bench.stale({**kept, "command": bytecodes.COMMAND}) == []


def test_the_versions_of_the_constraint_file_are_counted():
    """The recount below is skipped elsewhere, and is not to be where CI runs it."""
    pins = (catalog.root() / "constraints" / "python3.12.txt").read_text().splitlines()
    versions = dict(pin.split("==") for pin in pins if "==" in pin)
    environment = {"python": "3.12", "flax": versions["flax"], "jax": versions["jax"]}
    kept = bytecodes.load(KEPT)["recorded"]
    assert environment in [entry["environment"] for entry in kept]


# One problem of each kind of benchmark; `linen2nnx bench --bytecodes` counts all.
COUNTED_AGAIN = [
    "surgery/warm_start",
    "definition/compact_mlp",
    "training/adam_optimizer",
]


@counting
def test_idioms_execute_as_many_bytecodes_as_recorded():
    """More of them is more work in Python on every call, whatever the machine."""
    kept = bytecodes.recorded(bytecodes.load(KEPT))
    if kept is None:
        versions = bytecodes.environment()
        pytest.skip(f"no counts of {versions} yet; `{bytecodes.COMMAND}` records them")
    before = [row for row in kept["counts"] if row["problem"] in COUNTED_AGAIN]
    again = bytecodes.measure([catalog.find(name) for name in COUNTED_AGAIN])
    changes = bytecodes.changes({"counts": before}, again)
    assert not changes, "\n".join([*changes, f"`{bytecodes.COMMAND}` records them"])
