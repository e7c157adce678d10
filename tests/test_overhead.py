import contextlib
import gc
import importlib
import io
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import flax
import pytest
from flax import nnx
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.cost import paired as overhead
from linen2nnx.cost.paired import Arm, Comparison
from linen2nnx.suite import bench, catalog

CLOCK = "cpu time"
ENVIRONMENT = {
    "python": "3.12.3",
    "flax": "0.12.12",
    "jax": "0.12.0.1",
    "device": "cpu: cpu",
    "cpu_model": "an exact one",
}


def work():
    return sum(range(3000))


def test_twice_the_work_takes_twice_as_long():
    times = overhead.compare(
        [Arm("once", work), Arm("twice", lambda: (work(), work()))],
        clock=CLOCK,
        max_seconds=3,
    )
    assert 1.8 < times.ratio(("twice", None)) < 2.2
    assert times.ratio(("once", None)) == 1
    assert abs(times.control_ratio - 1) <= 0.05
    for key in times.samples[CLOCK]:
        low, high = times.interval(key)
        assert low <= times.ratio(key) <= high
        assert len(times.samples["wall time"][key]) == times.rounds >= 3


def test_the_interval_is_the_range_over_fifths_of_the_rounds():
    linen, ours = ("Linen", None), ("nnx.jit", "tree")
    ratios = [2.0, 2.0, 3.0, 2.5, 2.0]
    times = Comparison(
        CLOCK,
        linen,
        {
            CLOCK: {
                linen: [1.0, 1.0] * 5,
                ours: [s for ratio in ratios for s in (ratio, ratio + 1)],
            }
        },
        {CLOCK: [1.01] * 10},
    )
    assert times.ratio(ours) == 2
    assert times.interval(ours) == (2, 3)
    assert not times.is_tight
    assert times.control_ratio == 1.01
    assert times.rounds == 10


@pytest.fixture
def controls(monkeypatch):
    """Every sample of the first arm as the control takes the next of these factors."""
    factors = []

    def measure(lanes, clock, max_seconds):
        samples = {CLOCK: {lane.arm.key: [1.0] * 5 for lane in lanes[:-1]}}
        first = lanes[0].arm.key
        return Comparison(clock, first, samples, {CLOCK: [factors.pop(0)] * 5})

    monkeypatch.setattr(overhead, "_measure", measure)
    return factors


def test_a_control_that_is_off_is_tried_again(controls):
    controls += [1.06, 0.94, 1.04]
    times = overhead.compare([Arm("a", work), Arm("b", work)], clock=CLOCK)
    assert times.control_ratio == 1.04


def test_a_control_that_stays_off_rejects_the_comparison(controls):
    controls += [1.06, 0.94, 1.2]
    with pytest.raises(overhead.ControlError, match=r"1\.060, 0\.940, 1\.200 in 3 tri"):
        overhead.compare([Arm("a", work), Arm("b", work)], clock=CLOCK)


def test_the_control_is_timed_like_any_other_arm():
    """Time that depends on when the arm runs within a round shows in the control."""
    now = 0

    def slower_and_slower():
        nonlocal now
        now += 1
        return sum(range(1000 * now))

    order = []
    lanes = [
        overhead._Lane(Arm("a", lambda: order.append("a")), 2, 1),
        overhead._Lane(Arm("b", lambda: order.append("b")), 1, 1),
        overhead._Lane(Arm("c", slower_and_slower), 1, 1),
    ]
    times = overhead._measure([*lanes, lanes[0]], CLOCK, 0)
    each = "aaa", "b", "aaa"  # one call untimed if there are several; c appends nothing
    there, back = "".join(each), "".join(reversed(each))
    assert "".join(order) == there + back + there
    assert times.rounds == 3


def test_a_short_arm_has_several_samples_in_a_round_and_keeps_the_least(monkeypatch):
    seconds = {"long": 0.1, "half": 0.03, "short": 0.001}
    monkeypatch.setattr(overhead, "_calibrate", lambda arm, _: (1, seconds[arm.idiom]))
    lanes = overhead._lanes([Arm(name, work) for name in seconds], CLOCK)
    assert [lane.samples for lane in lanes] == [1, 1, 4, 1]

    times = itertools.count(9, -1)
    monkeypatch.setattr(overhead, "_sample", lambda arm, calls: (next(times), 0.5))
    found = overhead._measure(lanes[2:], CLOCK, 0)
    assert found.samples[CLOCK]["short", None][0] == 6
    assert found.control[CLOCK][0] == 5
    assert len(found.samples["wall time"]["short", None]) == found.rounds


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_off_while_timing_and_restored(collects):
    seen = []

    def look():
        seen.append(gc.isenabled())
        if len(seen) > 3:
            raise ZeroDivisionError

    try:
        gc.enable() if collects else gc.disable()
        with pytest.raises(ZeroDivisionError):
            overhead.compare([Arm("a", look), Arm("b", look)], clock=CLOCK)
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert {*seen} == {False}


def test_an_arm_runs_in_its_mode():
    seen, before = set(), nnx.set_graph_mode.current_value()

    def look():
        seen.add(nnx.set_graph_mode.current_value())

    arms = [Arm("a", look, "tree"), Arm("b", look, "tree")]
    with contextlib.suppress(overhead.ControlError):
        overhead.compare(arms, clock=CLOCK, max_seconds=0)
    assert seen == {False}
    assert before == nnx.set_graph_mode.current_value()


def test_graph_mode_is_the_only_one_where_flax_cannot_set_it(monkeypatch):
    monkeypatch.delattr(nnx, "set_graph_mode")
    with overhead.in_mode("graph"):
        pass
    with pytest.raises(AttributeError, match="set_graph_mode"):
        overhead.in_mode("tree")


def test_each_prepared_thing_is_used_once():
    prepared, used = iter(range(10**6)), []
    arm = Arm("a", lambda n: used.append(n), prepare=lambda: next(prepared))
    overhead._sample(arm, 3)
    assert used == [0, 1, 2]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "a"]])
def test_arms_must_differ(names):
    with pytest.raises(ValueError, match="two or more different arms"):
        overhead.compare([Arm(name, work) for name in names], clock=CLOCK)


def row(idiom, ratio=2.0, **other):
    return {
        "problem": "c/p",
        "what": "jitted",
        "idiom": idiom,
        "mode": None,
        "layers": None,
        "ratio": ratio,
        "interval": [ratio, ratio],
        "clock": CLOCK,
        "seconds": ratio * 1e-5,
        **other,
    }


def content(*rows, **other):
    return {
        "format": "linen2nnx bench",
        "version": 1,
        "command": bench.COMMAND,
        "sources": {},
        "environment": ENVIRONMENT,
        "measurements": list(rows),
        **other,
    }


def test_cheapest_is_judged_by_its_dearest_size():
    result = content(
        row("Linen", 1.0, layers=1),
        row("jax.numpy", 0.5, layers=1),
        row("held pure dict", 0.9, layers=1),
        row("held pure dict", 1.04, layers=4),
        row("nnx.jit", 0.8, layers=1, mode="tree"),
        row("nnx.jit", 1.2, layers=4, mode="tree"),
        row("attribute assignment", 0.1, what="eager"),
    )
    assert bench.cheapest(result, "c/p") == bench.Cheapest(
        "held pure dict", None, 1.04, 4, None
    )
    assert bench.cheapest(result, "c/other") is None


def test_cheapest_says_why_none_is_as_cheap_as_linen():
    result = content(row("nnx.jit", 1.3, layers=4, mode="tree"), row("x", 1.4))
    reason = bench.cheapest(result, "c/p").reason
    assert reason == (
        "the cheapest, nnx.jit in tree mode, takes 1.30 times Linen's time at 4 layers"
    )


def test_slope_is_of_the_least_squares_line():
    rows = [row("x", layers=n, seconds=2.0 * n + 5) for n in (1, 4, 16)]
    assert bench.slope(rows) == pytest.approx(2)
    assert bench.slope(rows[:1]) is None
    assert bench.slope([row("x"), row("x")]) is None


def test_render_shows_every_figure_and_what_is_missing():
    from rich.console import Console

    result = content(
        row("nnx.jit", 1.23, layers=1, mode="tree", interval=[1.2, 1.27], seconds=1e-5),
        row("nnx.jit", 4.56, layers=4, mode="tree", interval=[4.5, 4.6], seconds=4e-5),
    )
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(bench.render(result, ["c/p, jitted: the control was off"]))
    text = console.export_text()
    for expected in (
        "1.23 1.20-1.27",
        "4.56 4.50-4.60",
        "10.0 us",
        "tree",
        "no nnx idiom is within 1.05",
        "not published: c/p, jitted: the control was off",
        "an exact one",
    ):
        assert expected in text


def test_save_and_load_are_inverse(tmp_path):
    result = content(row("Linen", 1.0))
    bench.save(result, tmp_path / "r.json")
    assert bench.load(tmp_path / "r.json") == result
    bench.save({**result, "version": 2}, tmp_path / "r.json")
    with pytest.raises(ValueError, match="no linen2nnx bench result of version 1"):
        bench.load(tmp_path / "r.json")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A suite of one problem, whose benchmark is to be written."""
    root = tmp_path / "clone"
    for folder in ("linen_impl/c", "nnx_impl/c", "parity_tests/c", "docs"):
        (root / folder).mkdir(parents=True)
    for file in ("linen_impl/c/p.py", "nnx_impl/c/p.py", "parity_tests/c/bench_p.py"):
        (root / file).write_text('"""A problem."""\n')
    (root / "parity_tests/overhead_arms.py").write_text("")
    shutil.copy(catalog.root() / "pyproject.toml", root)
    monkeypatch.setattr(catalog, "root", lambda: root)
    return root


def test_a_result_older_than_its_sources_is_found(clone):
    sources = bench.sha256_of_sources([catalog.ProblemFiles("c/p")])
    assert "linen2nnx/overhead.py" in sources
    result = content(sources=sources)
    assert bench.stale(result) == []
    (clone / "nnx_impl/c/p.py").write_text("changed")
    (clone / "parity_tests/c/bench_p.py").unlink()
    assert bench.stale(result) == [
        "nnx_impl/c/p.py has changed since the result was measured; "
        "`linen2nnx bench --save` renews it",
        "parity_tests/c/bench_p.py has gone since the result was measured; "
        "`linen2nnx bench --save` renews it",
    ]


TINY_BENCHMARK = """
import pytest
from linen2nnx.cost import paired as overhead

overhead.use_one_thread()

@pytest.mark.benchmark(timer=overhead.recorded_time)
def test_overhead(benchmark):
    linen, ours = ("Linen", None), ("nnx.jit", "tree")
    samples = {linen: [1.0, 1.5, 1.0, 1.0, 1.0], ours: [2.5, 2.0, 2.0, 2.0, 9.0]}
    times = overhead.Comparison(
        "cpu time", linen, {"cpu time": samples}, {"cpu time": samples[linen]}
    )
    labels = {"problem": "c/p", "what": "jitted", "layers": 4}
    overhead.record(benchmark, times, ours, **labels)
"""
NOISY_BENCHMARK = """
import pytest
from linen2nnx.cost import paired as overhead

@pytest.mark.benchmark(timer=overhead.recorded_time)
def test_noisy(benchmark):
    error = overhead.ControlError("the control was 1.08")
    labels = {"problem": "c/p", "what": "eager", "layers": 4}
    overhead.record(benchmark, error, ("nnx.jit", "tree"), **labels)
"""


def test_bench_of_a_tiny_problem(clone, tmp_path, monkeypatch):
    """The whole way: pytest, the samples in pytest-benchmark's file, the result."""
    problem, seen = catalog.ProblemFiles("c/p"), []
    (clone / "parity_tests/c/bench_p.py").write_text(TINY_BENCHMARK + NOISY_BENCHMARK)
    rejected = bench._run(
        [bench.bench_path(problem)], tmp_path, lambda *done: seen.append(done)
    )
    error = "linen2nnx.cost.paired.ControlError: the control was 1.08"
    assert rejected == {"c/p, test_noisy": error}
    assert seen == [(1, 2, "c/p, test_overhead"), (2, 2, "c/p, test_noisy")]
    kept = tmp_path / "benchmark.json"
    (benchmark,) = json.loads(kept.read_text())["benchmarks"]
    assert benchmark["extra_info"]["interval"] == [1.3333333333333333, 9.0]
    assert benchmark["stats"]["data"] == [2.5, 2.0, 2.0, 2.0, 9.0]
    assert benchmark["stats"]["min"] == 2
    assert benchmark["group"] == "c/p, jitted, 4 layers"

    def run(files, folder, progress):
        shutil.copy(kept, folder)
        progress(1, 2, "c/p")
        measured = "c/p, jitted, nnx.jit (tree mode), 4 layers"
        return {**rejected, measured: "by one of the processes only"}

    seen.clear()
    monkeypatch.setattr(bench, "_run", run)
    monkeypatch.setattr(bench, "PROCESSES", 3)
    result, missing = bench.bench([problem], lambda *done: seen.append(done))
    assert missing == [f"c/p, test_noisy: {error}"]
    assert seen == [(1, 6, "c/p"), (3, 6, "c/p"), (5, 6, "c/p")]
    assert result["measurements"] == [
        {
            "problem": "c/p",
            "what": "jitted",
            "idiom": "nnx.jit",
            "mode": "tree",
            "layers": 4,
            "ratio": 2.0,
            "interval": [2.0, 2.0],
            "rounds": 15,
            "control": 1.0,
            "clock": CLOCK,
            "seconds": 2.0,
            "linen_seconds": 1.0,
        }
    ]
    environment = result["environment"]
    assert environment["flax"] == flax.__version__
    assert environment["device"] == "cpu: cpu"
    assert environment["cpu_model"]
    assert environment["async_dispatch"] == "off"
    assert environment["cores"] == "1" or not hasattr(os, "sched_setaffinity")
    assert result["commit"] is None
    assert result["sources"] == bench.sha256_of_sources([problem])
    bench.save(result, clone / "docs" / "r.json")
    assert bench.load(clone / "docs" / "r.json") == result


def test_processes_are_merged():
    """The second is slow on both sides, the last measured something else as well."""
    times = {"rounds": 10, "linen_seconds": 1.0, "control": 1.0}
    slow = {**times, "linen_seconds": 2.0, "seconds": 4.2}
    runs = [
        [row("x", 2.5, **times, seconds=2.5)],
        [row("x", 2.1, **slow)],
        [row("x", 2.2, **{**times, "control": 0.96}, seconds=2.2)],
        [row("y", 3.0, **times, seconds=3.0)],
    ]
    (merged,) = overhead.merge(runs)
    ratio = merged.pop("ratio")
    assert ratio == pytest.approx((2.5 * 2.1 * 2.2) ** (1 / 3))
    assert merged | {"ratio": 2.2} == row(
        "x",
        2.2,
        interval=[2.1, 2.5],
        rounds=30,
        control=0.96,
        seconds=2.2,
        linen_seconds=1.0,
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def test_x():\n    raise KeyError('gone')", "c/p, test_x: KeyError: 'gone'"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_benchmarks_that_fail_are_an_error(clone, code, message):
    (clone / "parity_tests/c/bench_p.py").write_text(code)
    with pytest.raises(bench.BenchError) as error:
        bench.bench([catalog.ProblemFiles("c/p")])
    assert message in str(error.value)


def test_a_run_of_which_nothing_is_published_is_an_error(clone, monkeypatch):
    monkeypatch.setattr(bench, "_run", lambda *_: {"c/p": "the control was 1.08"})
    with pytest.raises(bench.BenchError, match="nothing was published: c/p: the cont"):
        bench.bench([catalog.ProblemFiles("c/p")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "no problem is named 'no_such'"),
        (["replace_kernel", "--save"], "--save keeps a run of all problems"),
        (["--json", "/no/such/folder/x.json"], "is no folder to write x.json to"),
    ],
)
def test_command_says_what_is_wrong(arguments, message):
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_command_prints_and_writes(clone, monkeypatch, tmp_path):
    result = content(row("held pure dict", 0.99))
    monkeypatch.setattr(catalog, "problems", lambda: [catalog.ProblemFiles("c/p")])
    monkeypatch.setattr(bench, "bench", lambda *_: (result, []))
    file = tmp_path / "x.json"
    ran = CliRunner().invoke(cli.app, ["bench", "--save", "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    assert "held pure dict takes 0.99 times" in ran.stdout
    assert bench.load(file) == bench.load(clone / "docs/results/overhead-cpu.json")

    monkeypatch.setattr(bench, "bench", lambda *_: (result, ["c/p: too noisy"]))
    assert CliRunner().invoke(cli.app, ["bench"]).exit_code == 1


PROBLEMS = [problem.name for problem in catalog.problems()]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_idiom_that_is_not_compiled_has_the_program_of_one_that_is(problem):
    """So that their compilation, and what runs on the device, are not timed apart."""
    arms = importlib.import_module("linen2nnx.cost.arms")
    module = "parity_tests." + problem.replace("/", ".bench_")
    benchmark = importlib.import_module(module).BENCHMARK
    pair = benchmark.make_pair(benchmark.layers[0])
    programs = {
        key: _program_text(arms.make_arm(pair, arms.TRACE, *key))
        for key in benchmark.idioms[arms.TRACE]
    }
    compiled = [programs[key] for key in benchmark.idioms[arms.COMPILE]]
    assert set(programs.values()) == set(compiled)
    assert len(set(compiled[:-1])) == len(compiled) - 1  # the last one is the limit


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_traced_is_not_known_to_jax(problem):
    """Else a first call would be found in a cache, and cost next to nothing."""
    module = "parity_tests." + problem.replace("/", ".bench_")
    benchmark = importlib.import_module(module).BENCHMARK
    pair = benchmark.make_pair(benchmark.layers[0])
    for idiom in ("Linen", "jax.numpy", "held pure dict"):
        first, second = (pair.program(idiom)[0].__wrapped__ for _ in range(2))
        assert first != second


def _program_text(arm):
    """The lowered program without names, its arguments in the order of their use.

    Leaves are ordered by collection in Linen and by module in nnx, so that the
    statistics of a norm are in other places.
    """
    with overhead.in_mode(arm.mode):
        first, *rest = arm.function(arm.prepare()).as_text().splitlines()
    assert first.startswith("module @")
    text = re.sub(r'jax.result_info = "[^"]*"', "", "\n".join(rest))
    before, name, main = text.partition("  func.func public @main(")
    assert name
    signature, _, main = main.partition(") -> (")
    body, _, others = main.partition("\n  }\n")
    types = dict(re.findall(r"(%arg\d+): (.*?)(?:, (?=%arg)|$)", signature))
    used = dict.fromkeys(re.findall(r"%arg\d+\b", body))
    order = {old: f"%in{i}" for i, old in enumerate([*used, *(types.keys() - used)])}
    signature = [f"{order[old]}: {types[old]}" for old in order]
    body = re.sub(r"%arg\d+\b", lambda old: order[old[0]], body)
    return "\n".join([before, *signature, body, others])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_has_a_benchmark_with_every_measured_thing(problem):
    module = "parity_tests." + problem.replace("/", ".bench_")
    benchmark = importlib.import_module(module).BENCHMARK
    assert benchmark.problem == problem
    always = {"jitted", "first call: trace", "first call: compile"}
    assert always <= set(benchmark.idioms) <= {*always, "eager", "edit"}
    for keys in benchmark.idioms.values():
        assert keys[0] == ("Linen", None)
        assert keys[-1] == ("jax.numpy", None)


KEPT = sorted(Path(catalog.root(), "docs", "results").glob("overhead-*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_kept_results_are_of_this_code(path):
    result = bench.load(path)
    assert not bench.stale(result)
    assert {row["problem"] for row in result["measurements"]} == set(PROBLEMS)
    assert all(abs(row["control"] - 1) <= 0.05 for row in result["measurements"])
    for row in result["measurements"]:
        low, high = row["interval"]
        assert low <= row["ratio"] <= high
