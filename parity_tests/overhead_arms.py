"""The idioms that the benchmarks of the problems time, and the test that times them.

A pair is one problem at one size: both sides hold the same weights. Every arm gives the
same output or the same edited kernel as Linen's, which is checked before it is timed.

A file `bench_<problem>.py` defines `BENCHMARK` and imports the test from here.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import mapping, overhead, parity, suite
from linen2nnx.bench import LIMIT, REFERENCE
from linen2nnx.overhead import Arm, Comparison, Mode

WIDTH = 32

EAGER, EDIT, JITTED = "eager", "edit", "jitted"
TRACE, COMPILE = "first call: trace", "first call: compile"
SECONDS = {EAGER: 0.7, EDIT: 0.7, JITTED: 0.7, TRACE: 1.2, COMPILE: 2.5}  # a comparison
MOST_COMPILED_LAYERS = 16  # compiling 64 takes as long as all the others

ASSIGNMENT = "attribute assignment", None
SPLIT_MAP_MERGE = [("split/map/merge", "graph"), ("split/map/merge", "tree")]

TRACED_IDIOMS = [
    (REFERENCE, None),
    ("held pure dict", None),
    ("jax.jit on split State", None),
    ("nnx.jit", "tree"),
    ("nnx.jit", "graph"),
    (LIMIT, None),
]
JITTED_IDIOMS = [
    *TRACED_IDIOMS[:3],
    ("nnx.jit_partial", "tree"),
    ("nnx.cached_partial", "graph"),
    *TRACED_IDIOMS[3:],
]
# What the others give the compiler is Linen's program to the letter, which is tested.
COMPILED_IDIOMS = [
    (REFERENCE, None),
    ("nnx.jit", "graph"),
    (LIMIT, None),
]
SAME_PROGRAM_IDIOMS = [
    ("held pure dict", None),
    ("jax.jit on split State", None),
    ("nnx.jit", "tree"),
]


Idiom = tuple[str, Mode | None]


@dataclass(frozen=True)
class Pair:
    """One problem at one size.

    Attributes:
        module: the Linen module that is applied to the edited variables.
        variables: what the Linen edit takes; the weights of each of its models.
        create: creates the nnx models that the nnx edit takes, in the same order.
        x: the input, shape (WIDTH,).
        linen_edit: takes `variables`, returns the edited ones.
        nnx_edits: by name of the idiom; each takes the models and returns the edited
            one. The first is the problem's own.
        pure_edit: the one of them that leaves the model's structure alone.
        plain_edit: the same with lists of `(kernel, bias)`.
        edited_layer: the index of a layer that the edit sets; None if the model is one.
    """

    module: Any
    variables: tuple[Mapping[str, Any], ...]
    create: Callable[[], tuple[nnx.Module, ...]]
    x: jax.Array
    linen_edit: Callable[..., Any]
    nnx_edits: Mapping[str, Callable[..., Any]]
    pure_edit: Callable[..., Any]
    plain_edit: Callable[..., Any]
    edited_layer: int | None = None

    def models(self) -> tuple[Any, ...]:
        """New nnx models, since most idioms edit theirs in place."""
        targets = nnx.eval_shape(self.create)
        return tuple(map(mapping.to_nnx, self.variables, targets))

    @property
    def own_edit(self) -> Callable[..., Any]:
        return next(iter(self.nnx_edits.values()))

    def plain(self) -> list[list[tuple[jax.Array, jax.Array]]]:
        return [plain_layers(variables) for variables in self.variables]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What is timed of one problem.

    Attributes:
        problem: its name.
        make_pair: the pair with that number of layers.
        edits: name and mode of the nnx idioms of the edit itself, run eagerly.
        layers: the numbers of layers; `[None]` if the problem has one layer only.
    """

    problem: str
    make_pair: Callable[[Any], Pair]
    edits: Sequence[Idiom]
    layers: Sequence[int | None]

    @property
    def idioms(self) -> dict[str, list[Idiom]]:
        """By what is timed, the idioms with Linen's first."""
        edits = [(REFERENCE, None), *self.edits, (LIMIT, None)]
        return {
            JITTED: JITTED_IDIOMS,
            EAGER: edits,
            EDIT: edits,
            TRACE: TRACED_IDIOMS,
            COMPILE: COMPILED_IDIOMS,
        }


@functools.cache
def checked_arm(
    bench: Benchmark, what: str, idiom: str, mode: Mode | None, layers: int | None
) -> Arm:
    """An arm that was found to compute what Linen's does."""
    arm = make_arm(_pair(bench, layers), what, idiom, mode)
    if what in (JITTED, EAGER, EDIT):
        with overhead.in_mode(mode):
            result = arm.function()
        if idiom == REFERENCE:
            assert jnp.isfinite(result).all()
        else:
            reference = checked_arm(bench, what, REFERENCE, None, layers)
            parity.assert_equal(reference.function(), result)
    return arm


@functools.cache
def _pair(bench: Benchmark, layers: int | None) -> Pair:
    return bench.make_pair(layers)


@functools.cache
def _comparison(
    bench: Benchmark, what: str, layers: int | None
) -> Comparison | overhead.ControlError:
    """All idioms of one thing, timed together, once for all their tests."""
    arms = [checked_arm(bench, what, *key, layers) for key in bench.idioms[what]]
    try:
        return overhead.compare(arms, max_seconds=SECONDS[what])
    except overhead.ControlError as error:
        return error


@pytest.fixture
def strict():
    """Not as in the parity tests: JAX as users run it, and each arm in its own mode."""


def pytest_generate_tests(metafunc):
    """Every idiom at every size; once each and at the smallest size if not timed."""
    bench = metafunc.module.BENCHMARK
    option = metafunc.config.getoption
    is_timed = option("benchmark_enable") or not option("benchmark_disable")
    if is_timed:
        overhead.use_one_thread()
    cases = [
        pytest.param(what, *key, layers, id=overhead.label(what, *key, layers))
        for layers in (bench.layers if is_timed else bench.layers[:1])
        for what, keys in bench.idioms.items()
        if what != COMPILE or (layers or 1) <= MOST_COMPILED_LAYERS
        for key in keys
    ]
    metafunc.parametrize(("what", "idiom", "mode", "layers"), cases)


@pytest.mark.benchmark(timer=overhead.recorded_time)
def test_overhead(request, benchmark, what, idiom, mode, layers):
    bench = request.module.BENCHMARK
    arm = checked_arm(bench, what, idiom, mode, layers)
    if benchmark.disabled:
        with overhead.in_mode(mode):
            benchmark(arm.function, *([arm.prepare()] if arm.prepare else []))
        return
    comparison = _comparison(bench, what, layers)
    labels = {"problem": bench.problem, "what": what, "layers": layers}
    overhead.record(benchmark, comparison, arm.key, **labels)


def twins(problem: str) -> tuple[ModuleType, ModuleType]:
    """The Linen and the nnx file of a problem, without the checks of their signatures.

    Under pytest the twins are imported with jaxtyping and beartype in every function,
    which is not what a user runs.
    """
    found = suite.find(problem)
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


def plain_layers(variables: Mapping[str, Any]) -> list[tuple[jax.Array, jax.Array]]:
    params = variables["params"]
    if "kernel" in params:
        return [(params["kernel"], params["bias"])]
    layers = [params[f"layers_{i}"] for i in range(len(params))]
    return [(layer["kernel"], layer["bias"]) for layer in layers]


def plain_apply(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for kernel, bias in layers:
        x = jnp.dot(x, kernel) + bias
    return x


def make_arm(pair: Pair, what: str, idiom: str, mode: Mode | None) -> Arm:
    """One arm, on models of its own."""
    with overhead.in_mode(mode):
        if what in (EAGER, EDIT):
            return Arm(idiom, _eager_or_edit(pair, what, idiom), mode)
        function, arguments = _program(pair, idiom)
    if what == JITTED:
        return Arm(idiom, lambda: function(*arguments), mode)

    def lower(_=None):
        function, arguments = _program(pair, idiom)
        return function.lower(*arguments)

    if what == TRACE:
        return Arm(idiom, lower, mode)
    return Arm(idiom, lambda lowered: lowered.compile(), mode, prepare=lower)


def _eager_or_edit(pair: Pair, what: str, idiom: str) -> Callable[[], jax.Array]:
    x, layer = pair.x, pair.edited_layer
    if idiom == REFERENCE:
        module, edit, variables = pair.module, pair.linen_edit, pair.variables

        def kernel(variables):
            params = variables["params"]
            return (params if layer is None else params[f"layers_{layer}"])["kernel"]

        if what == EAGER:
            return lambda: module.apply(edit(*variables), x)
        return lambda: kernel(edit(*variables))
    if idiom == LIMIT:
        edit, layers = pair.plain_edit, pair.plain()
        if what == EAGER:
            return lambda: plain_apply(edit(*layers), x)
        return lambda: edit(*layers)[layer or 0][0]
    edit, models = pair.nnx_edits[idiom], pair.models()
    if what == EAGER:
        return lambda: edit(*models)(x)
    if layer is None:
        return lambda: edit(*models).kernel.get_raw_value()
    return lambda: edit(*models).layers[layer].kernel.get_raw_value()


def _program(pair: Pair, idiom: str) -> tuple[Any, tuple[Any, ...]]:
    """Edit and apply inside a transform, and the arguments that it takes."""

    def linen_program(*arguments):
        *variables, x = arguments
        return pair.module.apply(pair.linen_edit(*variables), x)

    def plain_program(*arguments):
        *layers, x = arguments
        return plain_apply(pair.plain_edit(*layers), x)

    def nnx_program(*arguments):
        *models, x = arguments
        return pair.own_edit(*models)(x)

    def pure_program(*arguments):
        *models, x = arguments
        return pair.pure_edit(*models)(x)

    def merging_program(*arguments):
        *states, x = arguments
        return nnx_program(*map(nnx.merge, graphdefs, states), x)

    if idiom == REFERENCE:
        return jax.jit(linen_program), (*pair.variables, pair.x)
    if idiom == LIMIT:
        return jax.jit(plain_program), (*pair.plain(), pair.x)
    models = pair.models()
    if idiom == "nnx.jit":
        return nnx.jit(nnx_program), (*models, pair.x)
    if idiom == "nnx.cached_partial":
        return nnx.cached_partial(nnx.jit(pure_program), *models), (pair.x,)
    if idiom == "nnx.jit_partial":
        return nnx.jit_partial(nnx_program, *models, graph=False), (pair.x,)
    graphdefs, states = zip(*map(nnx.split, models))
    if idiom == "held pure dict":
        states = tuple(map(nnx.to_pure_dict, states))
    return jax.jit(merging_program), (*states, pair.x)
