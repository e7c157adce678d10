"""What the benchmarks of the problems time, and the test that times it.

A pair is one problem at one size: both sides hold the same weights. An arm is one idiom
of it. Every arm gives the same numbers as Linen's, which is checked before it is timed.
`overhead_forward.py` has pairs whose models are applied, `overhead_step.py` those whose
models are trained.

A file `bench_<problem>.py` defines `BENCHMARK` and imports the test from here.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linen2nnx import parity
from linen2nnx.cost import paired
from linen2nnx.cost.paired import LIMIT, REFERENCE, Arm, Comparison, Mode
from linen2nnx.parity.differences import Tolerance
from linen2nnx.suite import catalog

WIDTH = 32

EAGER, EDIT, JITTED = "eager", "edit", "jitted"
TRACE, COMPILE = "first call: trace", "first call: compile"
SECONDS = {EAGER: 0.7, EDIT: 0.7, JITTED: 0.7, TRACE: 1.2, COMPILE: 2.5}  # a comparison

Idiom = tuple[str, Mode | None]

TRACED_IDIOMS: list[Idiom] = [
    (REFERENCE, None),
    ("held pure dict", None),
    ("jax.jit on split State", None),
    ("nnx.jit", "tree"),
    ("nnx.jit", "graph"),
    (LIMIT, None),
]
JITTED_IDIOMS: list[Idiom] = [
    *TRACED_IDIOMS[:3],
    ("nnx.jit_partial", "tree"),
    ("nnx.cached_partial", "graph"),
    *TRACED_IDIOMS[3:],
]
# The others give the compiler the program of one of these, which is tested.
COMPILED_IDIOMS: list[Idiom] = [
    (REFERENCE, None),
    ("nnx.jit", "graph"),
    (LIMIT, None),
]
TRANSFORMED = {JITTED: JITTED_IDIOMS, TRACE: TRACED_IDIOMS, COMPILE: COMPILED_IDIOMS}


class Pair(Protocol):
    """One problem at one size."""

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        """What an idiom does, as a function to be timed that returns arrays."""

    def program(self, idiom: str) -> tuple[Any, tuple[Any, ...]]:
        """The transformed function of an idiom, and the arguments that it takes."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What is timed of one problem.

    Attributes:
        problem: its name.
        make_pair: the pair with that number of layers.
        idioms: by what is timed, the idioms with Linen's first.
        layers: the numbers of layers; `[None]` if the number does not vary.
        most_traced: no more layers are traced.
        most_compiled: no more layers are compiled.
        checked_calls: how many calls of an arm are compared before it is timed.
        draws_keys: whether the two frameworks draw other random numbers, so that the
            arms of nnx are compared with each other, and with Linen's by parity tests.
        limit_tolerance: of what arrays without a framework give; else it is exact.
    """

    problem: str
    make_pair: Callable[[Any], Pair]
    idioms: Mapping[str, Sequence[Idiom]]
    layers: Sequence[int | None] = (None,)
    most_traced: int = 64
    most_compiled: int = 16  # compiling 64 takes as long as all the others
    checked_calls: int = 1
    draws_keys: bool = False
    limit_tolerance: Tolerance | None = None


def checked_arm(
    bench: Benchmark, what: str, idiom: str, mode: Mode | None, layers: int | None
) -> Arm:
    """An arm that was found to compute what Linen's does."""
    arm, found = _called(bench, what, idiom, mode, layers)
    if idiom == REFERENCE:
        for leaf in jax.tree.leaves(found):
            assert jnp.isfinite(leaf).all()
    else:
        expected = bench.idioms[what][1 if bench.draws_keys else 0]
        reference = _called(bench, what, *expected, layers)[1]
        tolerance = bench.limit_tolerance if idiom == LIMIT else None
        if tolerance and layers != bench.layers[0]:  # depth and steps amplify rounding
            reference, found, tolerance = reference[:1], found[:1], None
        parity.assert_equal(reference, found, tolerance=tolerance)
    return arm


@functools.cache
def _called(
    bench: Benchmark, what: str, idiom: str, mode: Mode | None, layers: int | None
) -> tuple[Arm, list[Any]]:
    """An arm, and what its first calls gave; nothing of one that traces or compiles."""
    arm = make_arm(_pair(bench, layers), what, idiom, mode)
    calls = 0 if what in (TRACE, COMPILE) else bench.checked_calls
    with paired.in_mode(mode):
        return arm, [arm.function() for _ in range(calls)]


@functools.cache
def _pair(bench: Benchmark, layers: int | None) -> Pair:
    return bench.make_pair(layers)


def anew(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a new function: JAX does not trace one again that it knows."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def make_arm(pair: Pair, what: str, idiom: str, mode: Mode | None) -> Arm:
    """One arm, on models of its own."""
    if what not in (TRACE, COMPILE):
        with paired.in_mode(mode):
            return Arm(idiom, pair.call(what, idiom), mode)

    def program() -> tuple[Any, tuple[Any, ...]]:
        return pair.program(idiom)

    def lower(program: tuple[Any, tuple[Any, ...]]) -> Any:
        function, arguments = program
        return function.lower(*arguments)

    if what == TRACE:
        return Arm(idiom, lower, mode, prepare=program)
    return Arm(idiom, compile_lowered, mode, prepare=lambda: lower(program()))


def compile_lowered(lowered: Any) -> Any:
    return lowered.compile()


@functools.cache
def _comparison(
    bench: Benchmark, what: str, layers: int | None
) -> Comparison | paired.ControlError:
    """All idioms of one thing, timed together, once for all their tests."""
    arms = [checked_arm(bench, what, *key, layers) for key in bench.idioms[what]]
    try:
        return paired.compare(arms, max_seconds=SECONDS[what])
    except paired.ControlError as error:
        return error


@pytest.fixture
def strict():
    """Not as in the parity tests: JAX as users run it, and each arm in its own mode."""


def pytest_generate_tests(metafunc):
    """Every idiom at every size; if not timed, once at the smallest.

    Of what is done in a first call it is then Linen's only: the others do no more than
    when they are called.
    """
    bench = metafunc.module.BENCHMARK
    option = metafunc.config.getoption
    is_timed = option("benchmark_enable") or not option("benchmark_disable")
    if is_timed:
        paired.use_one_thread()
    cases = [
        pytest.param(what, *key, layers, id=paired.label(what, *key, layers))
        for layers in (bench.layers if is_timed else bench.layers[:1])
        for what, keys in bench.idioms.items()
        if what != TRACE or (layers or 1) <= bench.most_traced
        if what != COMPILE or (layers or 1) <= bench.most_compiled
        for key in (keys if is_timed or what not in (TRACE, COMPILE) else keys[:1])
    ]
    metafunc.parametrize(("what", "idiom", "mode", "layers"), cases)


@pytest.mark.benchmark(timer=paired.recorded_time)
def test_overhead(request, benchmark, what, idiom, mode, layers):
    bench = request.module.BENCHMARK
    arm = checked_arm(bench, what, idiom, mode, layers)
    if benchmark.disabled:
        with paired.in_mode(mode):
            benchmark(arm.function, *([arm.prepare()] if arm.prepare else []))
        return
    comparison = _comparison(bench, what, layers)
    labels = {"problem": bench.problem, "what": what, "layers": layers}
    paired.record(benchmark, comparison, arm.key, **labels)


def twins(problem: str) -> tuple[ModuleType, ModuleType]:
    """The Linen and the nnx file of a problem, without the checks of their signatures.

    Under pytest the twins are imported with jaxtyping and beartype in every function,
    which is not what a user runs.
    """
    found = catalog.find(problem)
    modules = []
    for side in ("linen", "nnx"):
        name = f"{side}_{found.name.replace('/', '_')}_unchecked"
        spec = importlib.util.spec_from_file_location(name, found.path(side))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        modules.append(module)
    return tuple(modules)


def random_variables(module: Any, seed: int) -> Mapping[str, Any]:
    """Random in every leaf, and of a size that 64 layers neither grow nor shrink."""
    rng = np.random.default_rng(seed)
    key, x = jax.random.key(0), jnp.ones(WIDTH)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.standard_normal(leaf.shape) / WIDTH**0.5, leaf.dtype
        ),
        jax.eval_shape(module.init, key, x),
    )


def random_input() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (WIDTH,))
