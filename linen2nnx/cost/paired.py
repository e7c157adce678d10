"""What an idiom costs beside another: paired measurement in one process.

Two programs timed one after the other on a shared machine differ by half for no
reason. `compare` times them in one process, in turn, and takes the ratio of the two
minima. Each round calls every arm: once untimed, unless one call fills a sample, then
often enough for a sample of several milliseconds, every result blocked; an arm that is
short beside the longest has up to four samples and keeps the least. The next round goes
through the arms in the opposite order. The first arm is timed a second time as if
it were another one: that ratio, the control, is 1 but for noise, and a comparison whose
control is off by more than 5% is an error.

On CPU the ratio is one of CPU time (`time.process_time`), which other processes disturb
little; on another device it is one of wall time.
"""

import functools
import gc
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from linen2nnx.environment import environment
from linen2nnx.modes import Mode, in_mode

Clock = Literal["cpu time", "wall time"]
Key = tuple[str, Mode | None]

REFERENCE, LIMIT = "Linen", "jax.numpy"  # idioms that the others stand beside
CONTROL_LIMIT = 0.05
SAMPLE_SECONDS = 0.004
MOST_SAMPLES = 4  # of a short arm, in a round
BLOCKS = 5  # an interval is the range of the ratio over these parts of the rounds
MIN_ROUNDS, ENOUGH_ROUNDS, MAX_ROUNDS = 3, 25, 500
WIDEST_INTERVAL = 0.03
TRIES = 3


class ControlError(RuntimeError):
    """A function timed against itself was not 1: the machine is too noisy."""


@dataclass(frozen=True)
class Arm:
    """One way to compute something, to be timed.

    Attributes:
        idiom: its name.
        function: computes it. If it returns arrays, they are blocked.
        mode: nnx is set to this mode while it runs; None leaves nnx as it is.
        prepare: if given, it is called untimed before each call, and `function` gets
            what it returns: for what is done only once, such as a compilation.
    """

    idiom: str
    function: Callable[..., Any]
    mode: Mode | None = None
    prepare: Callable[[], Any] | None = None

    @property
    def key(self) -> Key:
        """Idiom and mode, which name an arm within a comparison."""
        return self.idiom, self.mode


@dataclass
class Comparison:
    """The samples of a paired measurement.

    Attributes:
        clock: which time the ratios are of.
        reference: key of the arm that the others are divided by.
        samples: by clock and arm, the seconds per call of each round.
        control: the same of the reference timed a second time.
    """

    clock: Clock
    reference: Key
    samples: dict[Clock, dict[Key, list[float]]] = field(default_factory=dict)
    control: dict[Clock, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many samples each arm has."""
        return len(self.control[self.clock])

    def seconds(self, key: Key) -> float:
        """Least seconds per call of an arm."""
        return min(self.samples[self.clock][key])

    def ratio(self, key: Key) -> float:
        """Least time of an arm, divided by the reference's."""
        return _ratio(self._of(key), self._of(self.reference))

    def interval(self, key: Key) -> tuple[float, float]:
        """Least and greatest of the ratios in up to five equal parts of the rounds.

        The rounds are divided in the order in which they ran, so that a machine that
        became slower halfway widens the interval. The ratio always lies within.
        """
        return _interval(self._of(key), self._of(self.reference))

    @property
    def control_ratio(self) -> float:
        """The ratio of the reference to itself."""
        return _ratio(self.control[self.clock], self._of(self.reference))

    @property
    def is_tight(self) -> bool:
        """Whether no interval is wider than 3% of its ratio."""
        for key in self.samples[self.clock]:
            low, high = self.interval(key)
            if high - low > WIDEST_INTERVAL * self.ratio(key):
                return False
        return True

    def _of(self, key: Key) -> list[float]:
        return self.samples[self.clock][key]


def compare(
    arms: Sequence[Arm],
    *,
    clock: Clock | None = None,
    max_seconds: float = 1.5,
) -> Comparison:
    """Time arms against the first of them, in this process.

    Rounds go on until every interval is tight, or the time is up, with the garbage
    collector off. If the control is off, it is all done again for twice as long, and
    once more for four times: a sample that is too short would stay the least one.

    Args:
        arms: at least two; the first is the reference.
        clock: the time that is compared; by default CPU time if JAX computes on the
            CPU, and wall time if not.
        max_seconds: no new round starts after that many seconds of CPU time in the
            first try, or five times as many of wall time, once there are three.

    Raises:
        ValueError: if there are fewer than two arms, or two of one name and mode.
        ControlError: if the control differs from 1 by more than 0.05 in every try.

    Example:
        >>> def once():
        ...     return sum(range(2000))
        >>> def twice():
        ...     return once() + once()
        >>> times = compare([Arm("once", once), Arm("twice", twice)], max_seconds=1)
        >>> 1.8 < times.ratio(("twice", None)) < 2.2
        True
    """
    if len(arms) < 2 or len({arm.key for arm in arms}) < len(arms):
        raise ValueError(f"compare takes two or more different arms, got {arms}")
    clock = clock or default_clock()
    controls = []
    with _undisturbed():
        lanes = _lanes(arms, clock)
        for n in range(TRIES):
            comparison = _measure(lanes, clock, 2**n * max_seconds)
            if abs(comparison.control_ratio - 1) <= CONTROL_LIMIT:
                return comparison
            controls.append(f"{comparison.control_ratio:.3f}")
    raise ControlError(
        f"{arms[0].idiom} against itself was {', '.join(controls)} in {TRIES} tries, "
        f"and not 1 +- {CONTROL_LIMIT}: not published"
    )


def use_one_thread() -> None:
    """Let JAX compute in the thread that asks for it, on one core.

    Else another thread may or may not do it, and CPU time counts what waking it takes:
    a call of 7 us takes 7 to 30, and one of 200 us takes 200 to 600. Call it before JAX
    is used: the client for the CPU reads both settings once. The environment variable
    of the first has no effect in jax 0.10 to 0.12.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(_cores())})


def default_clock() -> Clock:
    """CPU time if JAX computes on the CPU, else wall time."""
    import jax

    return "cpu time" if jax.default_backend() == "cpu" else "wall time"


def label(what: str, idiom: str, mode: Mode | None, layers: int | None) -> str:
    """What was timed, in words: `jitted, nnx.jit (tree mode), 4 layers`."""
    parts = [what, idiom + (f" ({mode} mode)" if mode else "")]
    if layers is not None:
        parts.append(f"{layers} layer" + "s" * (layers > 1))
    return ", ".join(parts)


def timed_environment() -> dict[str, str]:
    """Versions, device and settings that a time was measured with."""
    import jax

    is_async = jax.config.read("jax_cpu_enable_async_dispatch")
    return {
        **environment(),
        "cpu_model": _cpu_model(),
        "async_dispatch": "on" if is_async else "off",
        "cores": str(len(_cores())),
    }


@dataclass(frozen=True)
class _Lane:
    """An arm, how many calls make a sample, and how many samples a round takes."""

    arm: Arm
    calls: int
    samples: int


def _lanes(arms: Sequence[Arm], clock: Clock) -> list[_Lane]:
    """All arms, and at the end the first one again, as its control."""
    calls, seconds = zip(*(_calibrate(arm, clock) for arm in arms))
    longest = max(seconds)
    lanes = [
        _Lane(arm, n, min(MOST_SAMPLES, max(1, int(longest / s / 2))))
        for arm, n, s in zip(arms, calls, seconds)
    ]
    return [*lanes, lanes[0]]


def _measure(lanes: Sequence[_Lane], clock: Clock, max_seconds: float) -> Comparison:
    arms = [lane.arm for lane in lanes[:-1]]
    samples: dict[Clock, list[list[float]]] = {
        "cpu time": [[] for _ in lanes],
        "wall time": [[] for _ in lanes],
    }
    comparison = Comparison(clock, arms[0].key)
    for name, of_lanes in samples.items():
        comparison.samples[name] = {a.key: s for a, s in zip(arms, of_lanes)}
        comparison.control[name] = of_lanes[-1]
    order = list(range(len(lanes)))
    gc.collect()
    cpu_end = time.process_time() + max_seconds
    wall_end = time.perf_counter() + 5 * max_seconds
    while comparison.rounds < MAX_ROUNDS:
        is_late = time.process_time() > cpu_end or time.perf_counter() > wall_end
        if is_late and comparison.rounds >= MIN_ROUNDS:
            break
        is_due = comparison.rounds >= ENOUGH_ROUNDS and comparison.rounds % BLOCKS == 0
        if is_due and comparison.is_tight:
            break
        for i in order:
            lane = lanes[i]
            found = [_sample(lane.arm, lane.calls) for _ in range(lane.samples)]
            for name, times in zip(samples, zip(*found)):
                samples[name][i].append(min(times))
        order.reverse()
    return comparison


def _sample(arm: Arm, repeats: int) -> tuple[float, float]:
    """Seconds per call of CPU and of wall time, after an untimed one if it is short."""
    with in_mode(arm.mode):
        function, block = arm.function, _block
        if arm.prepare is None:
            if repeats > 1:
                block(function())
            calls = range(repeats)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in calls:
                block(function())
        else:
            inputs = [arm.prepare() for _ in range(repeats)]
            wall, cpu = time.perf_counter(), time.process_time()
            for prepared in inputs:
                block(function(prepared))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / repeats, wall / repeats


def _calibrate(arm: Arm, clock: Clock) -> tuple[int, float]:
    """How many calls take the time of a sample, and how many seconds they take."""
    repeats = 1
    if arm.prepare is None:
        _sample(arm, repeats)  # the first call is slower
    while True:
        cpu, wall = _sample(arm, repeats)
        a_call = cpu if clock == "cpu time" else wall
        if a_call * repeats > SAMPLE_SECONDS / 4:
            calls = max(1, math.ceil(SAMPLE_SECONDS / a_call))
            return calls, calls * a_call
        repeats *= 4


def _block(result: Any) -> None:
    """`jax.block_until_ready`; its Python part, 1 us, is left out for an array."""
    try:
        result.block_until_ready()
    except AttributeError:
        import jax

        jax.block_until_ready(result)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without garbage collection."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _cores() -> set[int]:
    """The cores that this process may use; all where the system cannot say."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _raise(error: Exception) -> NoReturn:
    raise error


def _ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    return min(times) / min(reference)


def _interval(
    times: Sequence[float], reference: Sequence[float]
) -> tuple[float, float]:
    blocks = min(BLOCKS, len(times))
    bounds = [len(times) * i // blocks for i in range(blocks + 1)]
    ratios = [
        _ratio(times[start:stop], reference[start:stop])
        for start, stop in itertools.pairwise(bounds)
    ]
    return min(ratios), max(ratios)


@functools.cache
def _cpu_model() -> str:
    import cpuinfo

    model = cpuinfo.get_cpu_info().get("brand_raw") or platform.processor()
    return str(model)


class _RecordedTime:
    """A clock that stands still but for what `record` adds to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


recorded_time = _RecordedTime()


def record(
    benchmark: Any,
    comparison: Comparison | ControlError,
    key: Key,
    *,
    problem: str,
    what: str,
    layers: int | None,
) -> None:
    """Hand the samples of one arm to pytest-benchmark.

    It times calls, and the arms of a comparison take turns, which it cannot do. So the
    samples are played back to it, on a clock that they move: the test carries
    `@pytest.mark.benchmark(timer=paired.recorded_time)`.

    Args:
        benchmark: the fixture of pytest-benchmark; its `extra_info` gets the
            measurement as it stands in a result file, and the environment.
        comparison: what was measured, or why it was rejected.
        key: idiom and mode of the arm.
        problem: the name of the problem.
        what: what the arm does, such as `jitted`.
        layers: number of layers, if it varies.

    Raises:
        ControlError: if `comparison` is one.
    """
    if isinstance(comparison, ControlError):
        benchmark.pedantic(_raise, (comparison,))  # so that it leaves the test out
        raise comparison
    samples = iter(comparison.samples[comparison.clock][key])

    def play() -> None:
        recorded_time.now += next(samples)

    benchmark.group = ", ".join(
        [problem, what, *([] if layers is None else [f"{layers} layers"])]
    )
    benchmark.pedantic(play, rounds=comparison.rounds)
    benchmark.extra_info.update(
        {
            "problem": problem,
            "what": what,
            "idiom": key[0],
            "mode": key[1],
            "layers": layers,
            "ratio": comparison.ratio(key),
            "interval": list(comparison.interval(key)),
            "rounds": comparison.rounds,
            "control": comparison.control_ratio,
            "clock": comparison.clock,
            "seconds": comparison.seconds(key),
            "linen_seconds": comparison.seconds(comparison.reference),
            "environment": timed_environment(),
        }
    )


def merge(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The measurements of several processes as one.

    Some figures differ more from process to process than within one: where things lie
    in memory decides. So the ratio is the geometric mean of the processes' ratios, and
    its interval their range. What only one process could measure is left out.
    """
    by_name: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in itertools.chain(*runs):
        name = tuple(row[k] for k in ("problem", "what", "idiom", "mode", "layers"))
        by_name.setdefault(name, []).append(row)
    merged = []
    for rows in by_name.values():
        if len(rows) < 2:
            continue
        ratios = [row["ratio"] for row in rows]
        merged.append(
            {
                **rows[0],
                "ratio": statistics.geometric_mean(ratios),
                "interval": [min(ratios), max(ratios)],
                "rounds": sum(row["rounds"] for row in rows),
                "control": max((row["control"] for row in rows), key=_from_one),
                "seconds": min(row["seconds"] for row in rows),
                "linen_seconds": min(row["linen_seconds"] for row in rows),
            }
        )
    return merged


def _from_one(ratio: float) -> float:
    return abs(ratio - 1)
