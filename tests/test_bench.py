"""What of a problem's cost is measured, kept, and said."""

import io
import json
import os

import flax
import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.suite import bench, catalog, kept, records
from linen2nnx.suite.bench import Cheapest
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import Cost, Measurement, Results

CLOCK = "cpu time"
ENVIRONMENT = {
    **dict.fromkeys(kept.VERSIONS, "1.2"),
    "linen2nnx": "0.1",
    "device": "cpu: cpu",
    "cpu_model": "an exact one",
    "async_dispatch": "off",
}
P, Q = catalog.ProblemFiles("state/p"), catalog.ProblemFiles("state/q")


def row(idiom, ratio=2.0, **other):
    plain = {
        "what": "jitted",
        "idiom": idiom,
        "mode": None,
        "layers": None,
        "ratio": ratio,
        "interval": [ratio, ratio],
        "rounds": 10,
        "control": 1.0,
        "clock": CLOCK,
        "seconds": ratio * 1e-5,
        "linen_seconds": 1e-5,
        **other,
    }
    return msgspec.convert(plain, Measurement)


def cost(*rows, **other):
    plain = {
        "digest": "",
        "environment": ENVIRONMENT,
        "date": "2026-11-26T01:15:00+00:00",
        "command": bench.COMMAND,
        "device": "cpu",
        "measurements": [*rows],
    }
    return Cost(**plain | other)


def text_of(*found):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(bench.render(found))
    return console.export_text()


def test_cheapest_is_judged_by_its_dearest_size():
    found = cost(
        row("Linen", 1.0, layers=1),
        row("jax.numpy", 0.5, layers=1),
        row("held pure dict", 0.9, layers=1),
        row("held pure dict", 1.04, layers=4),
        row("nnx.jit", 0.8, layers=1, mode="tree"),
        row("nnx.jit", 1.2, layers=4, mode="tree"),
        row("attribute assignment", 0.1, what="eager"),
    )
    assert bench.cheapest(found) == Cheapest("held pure dict", None, 1.04, 4, None)
    assert bench.cheapest(cost(row("Linen", 1.0))) is None


def test_cheapest_says_why_none_is_as_cheap_as_linen():
    found = cost(row("nnx.jit", 1.3, layers=4, mode="tree"), row("x", 1.4))
    assert bench.cheapest(found).reason == (
        "the cheapest, nnx.jit in tree mode, takes 1.30 times Linen's time at 4 layers"
    )


def test_slope_is_of_the_least_squares_line():
    rows = [row("x", layers=n, seconds=2.0 * n + 5) for n in (1, 4, 16)]
    assert bench.slope(rows) == pytest.approx(2)
    assert bench.slope(rows[:1]) is None
    assert bench.slope([row("x"), row("x")]) is None


def test_render_shows_every_figure_and_what_is_missing():
    found = cost(
        row("nnx.jit", 1.23, layers=1, mode="tree", interval=[1.2, 1.27], seconds=1e-5),
        row("nnx.jit", 4.56, layers=4, mode="tree", interval=[4.5, 4.6], seconds=4e-5),
        not_published=["edit, Linen: the control was off"],
    )
    other = cost(row("held pure dict", 0.99))
    text = text_of(
        Results(problem="state/p", records=[found]),
        Results(problem="state/q", records=[other]),
    )
    for expected in (
        "1.23 1.20-1.27",
        "4.56 4.50-4.60",
        "10.0 us",
        "tree",
        "no nnx idiom is within 1.05",
        "held pure dict takes 0.99 times",
        "not published: state/p, edit, Linen: the control was off",
        "an exact one",
    ):
        assert expected in text


NOISY = """
@pytest.mark.cost
@pytest.mark.benchmark(timer=paired.recorded_time)
def test_noisy(benchmark):
    error = paired.ControlError("the control was 1.08")
    labels = {"problem": "state/p", "what": "eager", "layers": 4}
    paired.record(benchmark, error, ("nnx.jit", "tree"), **labels)
"""


def test_bench_of_a_small_problem(clone, monkeypatch):
    """The whole way: pytest, the file of pytest-benchmark, the record that is kept."""
    tests = P.test_path()
    tests.write_text(tests.read_text() + NOISY)
    monkeypatch.setattr(bench, "PROCESSES", 2)
    seen = []
    (found,) = bench.bench([P], save=True, progress=lambda *done: seen.append(done))
    measured = "state/p, jitted, nnx.jit (tree mode), 4 layers"
    assert seen == [
        (1, 4, measured),
        (2, 4, "state/p, test_noisy"),
        (3, 4, measured),
        (4, 4, "state/p, test_noisy"),
    ]
    (record,) = found.records
    assert record.measurements == [
        row(
            "nnx.jit",
            mode="tree",
            layers=4,
            interval=[2.0, 2.0],
            seconds=2.0,
            linen_seconds=1.0,
        )
    ]
    error = "linen2nnx.cost.paired.ControlError: the control was 1.08"
    assert record.not_published == [f"test_noisy: {error}"]
    assert (record.device, record.digest) == ("cpu", digest_of(P, "cost"))
    assert record.command == "linen2nnx bench --save state/p"
    environment = record.environment
    assert environment["flax"] == flax.__version__
    assert environment["device"] == "cpu: cpu"
    assert environment["cpu_model"]
    assert environment["async_dispatch"] == "off"
    assert environment["cores"] == "1" or not hasattr(os, "sched_setaffinity")
    assert records.load(clone / "docs/results/state/p.json") == found


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import pytest\n@pytest.mark.cost\ndef test_x():\n    raise KeyError('x')",
            "state/p: test_x: KeyError: 'x'",
        ),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("import os\nos._exit(3)", "state/p: its benchmark stopped with exit status 3"),
    ],
)
def test_a_benchmark_that_fails_is_an_error_and_not_kept(clone, quick, code, message):
    P.test_path().write_text(code)
    quick.undo()
    with pytest.raises(bench.BenchError) as error:
        bench.bench([P], save=True)
    assert message in str(error.value)
    assert not [*clone.glob("docs/results/**/*.json")]
    assert kept._find(P, "cost", ENVIRONMENT) is None


def test_a_problem_that_declares_no_cost_has_none(clone, quick, monkeypatch):
    P.test_path().write_text("def test_x():\n    pass")
    quick.undo()
    monkeypatch.setattr(bench, "PROCESSES", 1)
    (found,) = bench.bench([P])
    (record,) = found.records
    assert (record.measurements, record.environment) == ([], ENVIRONMENT)
    assert "state/p declares no cost" in text_of(found)


@pytest.fixture
def quick(monkeypatch):
    """Processes that end at once; `ran` has the problem of each, `ending` what ends it.

    Undone, real ones run.
    """

    class Quick:
        ran, ending, undo = [], {}, None
        environment = ENVIRONMENT

    def run(problem, folder, progress):
        Quick.ran.append(problem.name)
        result = Quick.ending.get(problem.name, {})
        if callable(result):
            result()
        measured = {**msgspec.to_builtins(row("nnx.jit")), "environment": ENVIRONMENT}
        benchmarks = [{"extra_info": {"problem": problem.name, **measured}}]
        (folder / "benchmark.json").write_text(json.dumps({"benchmarks": benchmarks}))
        return {} if callable(result) else result

    Quick.ran = []
    Quick.ending = {}
    original = bench._run
    Quick.undo = lambda: monkeypatch.setattr(bench, "_run", original)
    monkeypatch.setattr(bench, "_run", run)
    monkeypatch.setattr(bench, "_environment", lambda: Quick.environment)
    monkeypatch.setattr(bench, "PROCESSES", 2)
    return Quick


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("save", [True, False])
def test_an_interrupted_bench_goes_on_where_it_was(clone, quick, save):
    quick.ending = {Q.name: interrupt}
    with pytest.raises(KeyboardInterrupt):
        bench.bench([P, Q], save=save)
    assert quick.ran == [P.name, P.name, Q.name]
    assert (clone / "docs/results/state/p.json").is_file() == save
    quick.ending = {}
    quick.ran.clear()
    found = bench.bench([P, Q], save=save)
    assert quick.ran == [Q.name, Q.name]
    assert [results.problem for results in found] == [P.name, Q.name]
    if save:
        folder = kept.results_folder()
        assert [kept.load(problem, folder) for problem in (P, Q)] == found


def test_what_is_kept_in_the_clone_only_is_not_measured_again(
    clone, quick, monkeypatch
):
    """As in a fresh clone on another machine of the same versions."""
    bench.bench([P], save=True)
    monkeypatch.setenv("LINEN2NNX_CACHE", str(clone.parent / "another"))
    quick.ran.clear()
    quick.environment = {**ENVIRONMENT, "cpu_model": "another", "linen2nnx": "0.2"}
    bench.bench([P])
    assert quick.ran == []
    for other in ({"flax": "1.3"}, {"python": "3.13.0"}, {"device": "gpu: H"}):
        quick.environment = ENVIRONMENT | other
        assert kept._find(P, "cost", quick.environment) is None


def test_a_saved_result_comes_from_the_cache(clone, quick):
    found = bench.bench([P])
    quick.ran.clear()
    bench.bench([P], save=True)
    assert quick.ran == []
    assert [kept.load(P, kept.results_folder())] == found


def test_fresh_measures_all(clone, quick):
    bench.bench([P, Q])
    quick.ran.clear()
    bench.bench([P, Q], fresh=True)
    assert [*dict.fromkeys(quick.ran)] == [P.name, Q.name]


def test_a_comment_makes_no_cost_stale_and_an_edit_that_of_one_problem(clone, quick):
    bench.bench([P, Q], save=True)
    quick.ran.clear()
    twin = P.path("nnx")
    twin.write_text('"""Another docstring."""\n# A comment.\n')
    bench.bench([P, Q])
    assert quick.ran == []
    twin.write_text("x = 1\n")
    bench.bench([P, Q])
    assert [*dict.fromkeys(quick.ran)] == [P.name]


def test_code_that_changes_while_it_is_measured_is_not_kept(clone, quick):
    quick.ending = {P.name: lambda: P.path("nnx").write_text("x = 1\n")}
    with pytest.raises(kept.NotKeptError, match="state/p: its code changed"):
        bench.bench([P], save=True)
    assert kept._find(P, "cost", ENVIRONMENT) is None


def test_a_kept_file_that_is_damaged(clone, quick):
    bench.bench([P])
    (cached,) = clone.parent.glob("cache/results/state/p/*.json")
    cached.write_text('{"format": "linen2nnx res')
    bench.bench([P])
    assert records.load(cached).problem == P.name
    cached.unlink()
    path = clone / "docs/results/state/p.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    ran = CliRunner().invoke(cli.app, ["bench", "p"])
    assert ran.exit_code == 2
    assert ran.stderr == f"linen2nnx: {path} holds no linen2nnx results of version 1\n"


def test_what_nothing_is_published_of_is_an_error(clone, quick, monkeypatch):
    monkeypatch.setattr(bench, "_run", lambda *_: {"x": "the control was 1.08"})
    with pytest.raises(
        bench.BenchError, match=r"state/p: nothing was published: x: the control"
    ):
        bench.bench([P])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "no problem is named 'no_such'"),
        (["--json", "/no/such/folder/x.json"], "is no folder to write x.json to"),
    ],
)
def test_command_says_what_is_wrong(arguments, message):
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_command_prints_and_writes(clone, quick):
    file = clone.parent / "x.json"
    ran = CliRunner().invoke(cli.app, ["bench", "q", "--save", "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    assert "takes 2.00 times" in ran.stdout
    assert records.load_all(file) == [kept.load(Q, kept.results_folder())]
    assert not kept.load(P, kept.results_folder()).records

    quick.ending = {P.name: {"eager, Linen": "too noisy"}}
    ran = CliRunner().invoke(cli.app, ["bench", "p"])
    assert ran.exit_code == 1
    assert "not published: state/p, eager, Linen: too noisy" in ran.stdout

    (clone / "docs/results/state/q.json").unlink()
    (clone / "docs/results/state").rmdir()
    (clone / "docs/results").rmdir()
    (clone / "docs").rmdir()
    ran = CliRunner().invoke(cli.app, ["bench", "--save"])
    assert ran.exit_code == 2
    assert "results are kept in a clone of linen2nnx" in ran.stderr


@pytest.mark.parametrize("problem", catalog.problems(), ids=lambda p: p.name)
def test_kept_costs_are_sound(problem):
    results = kept.load(problem, kept.results_folder())
    for record in results.records:
        if isinstance(record, Cost):
            for measured in record.measurements:
                assert abs(measured.control - 1) <= 0.05
                low, high = measured.interval
                assert low <= measured.ratio <= high
