"""What the benchmark of every problem times."""

import importlib
import re

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from linen2nnx.cost import arms
from linen2nnx.modes import in_mode
from linen2nnx.suite import catalog

PROBLEMS = [problem.name for problem in catalog.problems()]


def benchmark_of(problem):
    tests = importlib.import_module("parity_tests." + problem.replace("/", ".test_"))
    return tests.problem.benchmark


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_idiom_that_is_not_compiled_has_the_program_of_one_that_is(problem):
    """So that their compilation, and what runs on the device, are not timed apart."""
    benchmark = benchmark_of(problem)
    timed = benchmark.at(benchmark.layers[0])
    programs = {
        key: _program_text(arms.make_arm(timed, arms.TRACE, *key))
        for key in benchmark.idioms[arms.TRACE]
    }
    compiled = [programs[key] for key in benchmark.idioms[arms.COMPILE]]
    assert set(programs.values()) == set(compiled)
    assert len(set(compiled[:-1])) == len(compiled) - 1  # the last one is the limit


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_traced_is_not_known_to_jax(problem):
    """Else a first call would be found in a cache, and cost next to nothing."""
    benchmark = benchmark_of(problem)
    timed = benchmark.at(benchmark.layers[0])
    for idiom in ("Linen", "jax.numpy", "held pure dict"):
        first, second = (timed.program(idiom)[0].__wrapped__ for _ in range(2))
        assert first != second


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A compilation cache of its own: the list of what JAX says of it."""
    said = []
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}

    def listen(event, **_):
        if "cache_hits" in event or "cache_misses" in event:
            said.append(event.rpartition("/")[2])

    jax.monitoring.register_event_listener(listen)
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield said
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.monitoring.unregister_event_listener(listen)


def test_what_is_timed_is_compiled_anew_and_what_is_called_is_cached(cached):
    def compile_once():
        jax.jit(lambda x: x * 3.25 + 1).lower(1.5).compile()
        found, cached[:] = [*cached], []
        return found

    assert compile_once() == ["cache_misses"]
    assert compile_once() == ["cache_hits"]
    with arms.compiled_anew():
        assert compile_once() == []
    assert compile_once() == ["cache_hits"]


def _program_text(arm):
    """The lowered program without names, its arguments in the order of their use.

    Leaves are ordered by collection in Linen and by module in nnx, so that the
    statistics of a norm are in other places.
    """
    with in_mode(arm.mode):
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
    benchmark = benchmark_of(problem)
    assert benchmark.problem == problem
    always = {"jitted", "first call: trace", "first call: compile"}
    assert always <= set(benchmark.idioms) <= {*always, "eager", "edit"}
    for keys in benchmark.idioms.values():
        assert keys[0] == ("Linen", None)
        assert keys[-1] == ("jax.numpy", None)
