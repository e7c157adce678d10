"""What the benchmark of every problem times."""

import importlib
import re

import pytest

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
