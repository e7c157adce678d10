"""What is timed of a problem: its idioms, each an arm that was checked before.

An arm is one idiom at one number of layers, on models of its own. Every arm gives the
same numbers as Linen's, which is checked before it is timed. `forward.py` has problems
whose models are applied or edited, `step.py` those whose models are trained.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from linen2nnx.cost import paired
from linen2nnx.cost.paired import LIMIT, REFERENCE, Arm, Comparison
from linen2nnx.modes import Mode, in_mode
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.equal import assert_equal

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


class Timed(Protocol):
    """A problem at one size: both sides hold the same weights."""

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        """What an idiom does, as a function to be timed that returns arrays."""

    def program(self, idiom: str) -> tuple[Any, tuple[Any, ...]]:
        """The transformed function of an idiom, and the arguments that it takes."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What is timed of one problem.

    Attributes:
        problem: its name.
        at: the problem with that number of layers.
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
    at: Callable[[int | None], Timed]
    idioms: Mapping[str, Sequence[Idiom]]
    layers: Sequence[int | None] = (None,)
    most_traced: int = 16
    most_compiled: int = 4  # 16 take as long as all that is called
    checked_calls: int = 1
    draws_keys: bool = False
    limit_tolerance: Tolerance | None = None

    def cases(
        self, is_timed: bool
    ) -> Iterator[tuple[str, str, Mode | None, int | None]]:
        """What, idiom, mode and layers of every arm; if not timed, of the smallest.

        Of what is done in a first call it is then Linen's only: the others do no more
        than when they are called.
        """
        for layers in self.layers if is_timed else self.layers[:1]:
            for what, idioms in self.idioms.items():
                is_first = what in (TRACE, COMPILE)
                most = {TRACE: self.most_traced, COMPILE: self.most_compiled}
                if is_first and (layers or 1) > most[what]:
                    continue
                for idiom, mode in idioms if is_timed or not is_first else idioms[:1]:
                    yield what, idiom, mode, layers


def checked_arm(
    bench: Benchmark, what: str, idiom: str, mode: Mode | None, layers: int | None
) -> Arm:
    """An arm that was found to compute what Linen's does.

    Raises:
        linen2nnx.parity.ParityError: if it does not.
    """
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
        assert_equal(reference, found, tolerance=tolerance)
    return arm


@functools.cache
def _called(
    bench: Benchmark, what: str, idiom: str, mode: Mode | None, layers: int | None
) -> tuple[Arm, list[Any]]:
    """An arm, and what its first calls gave; nothing of one that traces or compiles."""
    arm = make_arm(_at(bench, layers), what, idiom, mode)
    calls = 0 if what in (TRACE, COMPILE) else bench.checked_calls
    with in_mode(mode):
        return arm, [arm.function() for _ in range(calls)]


@functools.cache
def _at(bench: Benchmark, layers: int | None) -> Timed:
    return bench.at(layers)


def anew(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a new function: JAX does not trace one again that it knows."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def make_arm(timed: Timed, what: str, idiom: str, mode: Mode | None) -> Arm:
    """One arm, on models of its own."""
    if what not in (TRACE, COMPILE):
        with in_mode(mode):
            return Arm(idiom, timed.call(what, idiom), mode)

    def program() -> tuple[Any, tuple[Any, ...]]:
        return timed.program(idiom)

    def lower(program: tuple[Any, tuple[Any, ...]]) -> Any:
        function, arguments = program
        return function.lower(*arguments)

    if what == TRACE:
        return Arm(idiom, lower, mode, prepare=program)
    return Arm(
        idiom,
        lambda lowered: lowered.compile(),
        mode,
        prepare=lambda: lower(program()),
    )


@functools.cache
def comparison(
    bench: Benchmark, what: str, layers: int | None
) -> Comparison | paired.ControlError:
    """All idioms of one thing, timed together, once for all their tests."""
    arms = [checked_arm(bench, what, *key, layers) for key in bench.idioms[what]]
    try:
        return paired.compare(arms, max_seconds=SECONDS[what])
    except paired.ControlError as error:
        return error
