"""A problem declares its pair once; its tests and its benchmark follow from that.

problem = Problem(linen, nnx_side, pair=dense, sizes=[(1, 33), (5, 5)], ...)
TestPureUpdate = problem.tests()
"""

import dataclasses
import functools
import inspect
import itertools
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.typing import DTypeLike

from linen2nnx import parity
from linen2nnx.cost import arms, paired
from linen2nnx.cost.arms import Benchmark
from linen2nnx.mapping import MappingError
from linen2nnx.modes import MODES, Mode, in_mode
from linen2nnx.parity import Pair, ParityError
from linen2nnx.suite import catalog
from linen2nnx.suite.entry import Entry, bad, odd, refused, wrong_variables
from linen2nnx.suite.training import Training

ENTRY_CALLS = 30  # in each mode
RED = (ParityError, MappingError, AssertionError, TypeError, KeyError, ValueError)


@dataclass(frozen=True)
class Run:
    """One way to run a case: op by op or jitted, in a dtype, from a seed."""

    jit: bool
    dtype: DTypeLike | None = None
    seed: int = 0


# Op by op names the module that differs; jitted is what users run; bfloat16 shows a
# cast that float32 hides.
OP_BY_OP = Run(jit=False)
JITTED = Run(jit=True, seed=1)
JITTED_BFLOAT16 = Run(jit=True, dtype=jnp.bfloat16, seed=1)


class Edit(parity.Edit):
    """An edit as both twins have it, and what it takes after variables and model.

    Attributes:
        arguments: the same on both sides.
        casts_to: the dtype of the leaves that it gives, where that is what it changes.
        name: of the function; the same in both twins.
    """

    arguments: tuple[Any, ...]
    casts_to: DTypeLike | None
    name: str

    def __init__(
        self,
        linen: Callable[..., Any],
        nnx: Callable[..., Any],
        *arguments: Any,
        changes: Sequence[str] = ("params",),
        casts_to: DTypeLike | None = None,
    ) -> None:
        """An edit that changes the Linen paths `changes`, and all else not."""
        super().__init__(
            lambda variables: linen(variables, *arguments),
            lambda model: nnx(model, *arguments),
            changes,
        )
        vars(self).update(
            arguments=arguments,
            casts_to=casts_to,
            name=getattr(nnx, "__name__", ""),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Compare:
    """One comparison of a problem: of which models, in which sizes, after which edit.

    Attributes:
        pair: makes the pair of a size; None is that of the problem.
        sizes: likewise.
        edit: made on both sides first. Where what it changes depends on the size, a
            function that makes it of one.
        checks: as for `linen2nnx.parity.assert_parity`.
        optimizer: likewise.
        tolerance: likewise.
    """

    pair: Callable[..., Pair] | None = None
    sizes: Sequence[tuple[Any, ...]] | None = None
    edit: Edit | Callable[..., Edit] | None = None
    checks: Sequence[str] = parity.CHECKS
    optimizer: optax.GradientTransformation | None = None
    tolerance: Mapping[str, parity.Tolerance] | None = None


@dataclass(frozen=True)
class Case:
    """A comparison that is run, or training: what a test calls.

    Attributes:
        id: in the name of the test, without blanks.
        of: the name of the comparison; `training` of that.
        run: raises `ParityError` if the sides differ.
    """

    id: str
    of: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Mistake:
    """Source of one twin that, read as other source, must turn a test red.

    Attributes:
        side: the twin.
        right: what stands in it, every place of which is changed.
        wrong: what it is changed to.
        of: the comparison that finds it, by its name in `Problem.compared`; `training`,
            `idioms`, or a test function of the file. Empty is any comparison or
            training.
    """

    side: catalog.Side
    right: str
    wrong: str
    of: str = ""


class Cost(Protocol):
    """What is timed: `linen2nnx.cost.forward.Forward` or `Edited`, or `step.Step`."""

    def benchmark(self, problem: str, pair: Callable[..., Pair]) -> Benchmark:
        """The benchmark of a problem with that name and pair."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a problem declares.

    Attributes:
        linen: the Linen twin.
        nnx: the nnx twin.
        pair: makes the pair of a size.
        sizes: of the pair. The first is compared op by op, the second jitted, and so
            on through `runs`.
        compared: what is compared, by name: an edit of the pair, or a comparison of its
            own. Empty compares the models as they are.
        runs: how the sizes are run, in turn.
        training: how both sides train, where they do.
        entry: the entry function, where the problem is stated with one.
        cost: what is timed; None times nothing.
        mistakes: in either twin; each must turn its test red.
    """

    linen: types.ModuleType
    nnx: types.ModuleType
    _: dataclasses.KW_ONLY
    pair: Callable[..., Pair]
    sizes: Sequence[tuple[Any, ...]]
    compared: Mapping[str, Edit | Compare] = field(default_factory=dict)
    runs: Sequence[Run] = (OP_BY_OP, JITTED_BFLOAT16)
    training: Training | None = None
    entry: Entry | None = None
    cost: Cost | None = None
    mistakes: Sequence[Mistake] = ()

    @property
    def files(self) -> catalog.ProblemFiles:
        """Its files."""
        _, _, name = self.nnx.__name__.partition(".")
        return catalog.find(name.replace(".", "/"))

    def tests(self) -> type:
        """The class of its tests, for pytest to find. What is not declared has none."""
        absent = [
            t
            for name, tests in _NEEDS.items()
            if not getattr(self, name)
            for t in tests
        ]
        if not (self.training and self.training.idioms):
            absent.append("test_idiom")
        return type("Tests", (_Tests,), {"problem": self, **dict.fromkeys(absent)})

    def cases(self) -> list[Case]:
        """Every comparison at every size, and training."""
        found = []
        for name, compared in (self.compared or {"model": Compare()}).items():
            if isinstance(compared, parity.Edit):
                compared = Compare(edit=compared)
            found += self._cases(name, compared)
        if self.training is not None:
            for size, run in zip(self.sizes, itertools.cycle(self.runs)):
                found.append(
                    Case(
                        _id("training", size, run),
                        "training",
                        functools.partial(self._train, size, run),
                    )
                )
        return found

    def _cases(self, name: str, compare: Compare) -> list[Case]:
        sizes = self.sizes if compare.sizes is None else compare.sizes
        return [
            Case(
                _id(name, size, run),
                name,
                functools.partial(self._compare, compare, size, run),
            )
            for size, run in zip(sizes, itertools.cycle(self.runs))
        ]

    def _compare(self, compare: Compare, size: tuple[Any, ...], run: Run) -> None:
        __tracebackhide__ = True
        edit = compare.edit
        if edit is not None and not isinstance(edit, parity.Edit):
            edit = edit(*size)
        dtypes: dict[str, Any] = {"dtype": run.dtype}
        if edit is not None and edit.casts_to is not None:
            dtypes = {"dtype": None, "input_dtype": edit.casts_to}
        made = (compare.pair or self.pair)(*size)
        parity.assert_parity(
            dataclasses.replace(made, seed=run.seed, **dtypes),
            edit=edit,
            jit=run.jit,
            checks=compare.checks,
            optimizer=compare.optimizer,
            tolerance=compare.tolerance,
        )

    def _train(self, size: tuple[Any, ...], run: Run) -> None:
        __tracebackhide__ = True
        assert self.training is not None
        made = dataclasses.replace(self.pair(*size), seed=run.seed, dtype=run.dtype)
        with jax.numpy_dtype_promotion("standard"):  # optax takes integer powers
            self.training.assert_same(made, jit=run.jit)

    def idiom_cases(self) -> list[Case]:
        """Every other way to train in nnx, in the first of its modes."""
        assert self.training is not None
        return [
            Case(name, "idioms", functools.partial(self.assert_idiom, name, modes[0]))
            for name, (_, modes) in self.training.idioms.items()
        ]

    def assert_idiom(self, name: str, mode: Mode) -> None:
        """One other way to train gives what `Training.nnx` gives, in that mode."""
        __tracebackhide__ = True
        assert self.training is not None
        with in_mode(mode), jax.numpy_dtype_promotion("standard"):
            self.training.assert_idiom(self.pair(*self.sizes[0]), name)

    def with_twins(self, **sources: str) -> types.ModuleType:
        """The problem's test file, run again with other sources of its twins.

        Nothing that the file made of a twin (an edit, a module) is kept.
        """
        path = self.files.test_path()
        module = types.ModuleType(path.stem)
        with pytest.MonkeyPatch.context() as patch:
            for side, source in sources.items():
                name = getattr(self, side).__name__
                parent, _, short = name.rpartition(".")
                twin = types.ModuleType(name)
                patch.setitem(sys.modules, name, twin)
                patch.setattr(sys.modules[parent], short, twin)
                exec(compile(source, f"{name}, changed", "exec"), vars(twin))
            patch.setitem(sys.modules, module.__name__, module)
            exec(compile(path.read_text(), str(path), "exec"), vars(module))
        return module

    @functools.cached_property
    def _unchanged(self) -> types.ModuleType:
        """The test file, run again with the sources as they are."""
        sides: tuple[catalog.Side, ...] = ("linen", "nnx")
        return self.with_twins(**{s: self.files.path(s).read_text() for s in sides})

    @functools.cached_property
    def _passes(self) -> dict[str, bool]:
        return {}

    def assert_found(self, mistake: Mistake) -> None:
        """A case that passes with the twins as they are fails with the mistake.

        Raises:
            AssertionError: if no case fails, or one that fails does so without it too.
            ValueError: if the mistake's source is not in the twin.
        """
        source = self.files.path(mistake.side).read_text()
        if mistake.right not in source:
            raise ValueError(f"{mistake.right!r} is not in the {mistake.side} twin")
        changed = source.replace(mistake.right, mistake.wrong)
        try:
            broken = self.with_twins(**{mistake.side: changed})
        except RED:  # the file itself does not run with it
            return
        for index, case in enumerate(runnable(broken, mistake.of)):
            try:
                case.run()
            except RED:
                if case.id not in self._passes:
                    runnable(self._unchanged, mistake.of)[index].run()
                    self._passes[case.id] = True
                return
        raise AssertionError(f"no case fails with {mistake.wrong!r} in its place")

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """What is timed.

        Raises:
            ValueError: if the problem declares no cost.
        """
        if self.cost is None:
            raise ValueError(f"{self.files.name} declares no cost")
        return self.cost.benchmark(self.files.name, self.pair)

    def entry_of(self, side: catalog.Side) -> Callable[..., Any]:
        """The entry function of one twin."""
        assert self.entry is not None
        return getattr(getattr(self, side), self.entry.name)


def runnable(module: types.ModuleType, of: str) -> list[Case]:
    """The cases of a test file that have that name, or of its test function.

    Raises:
        ValueError: if the file has none.
    """
    problem: Problem = module.problem
    if of == "idioms":
        return problem.idiom_cases()
    if not of.startswith("test_"):
        found = [case for case in problem.cases() if of in ("", case.of)]
        if not found:
            raise ValueError(f"{problem.files.name} compares no {of!r}")
        return found
    test = getattr(module, of)
    parameters = inspect.signature(test).parameters
    calls: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            names = re.split(r",\s*", names) if isinstance(names, str) else names
            rows = [value if len(names) > 1 else (value,) for value in values]
            calls = [
                {**call, **dict(zip(names, row))} for call in calls for row in rows
            ]
    if "nnx_mode" in parameters:
        calls = [{**call, "nnx_mode": mode} for call in calls for mode in MODES]

    def run(call: dict[str, Any]) -> None:
        with in_mode(call.get("nnx_mode")):
            test(**call)

    return [
        Case(f"{of}-{i}", of, functools.partial(run, call))
        for i, call in enumerate(calls)
    ]


def _id(name: str, size: Sequence[Any], run: Run) -> str:
    how = "jit" if run.jit else "op_by_op"
    return "-".join([name, "x".join(map(str, size)), how])


class _Tests:
    problem: ClassVar[Problem]

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        names, problem = metafunc.fixturenames, cls.problem
        if "case" in names:
            metafunc.parametrize("case", problem.cases(), ids=lambda case: case.id)
        if "train_by" in names:
            assert problem.training is not None
            metafunc.parametrize("train_by", problem.training.idioms)
        if "mistake" in names:
            ids = [f"{m.side}: {m.wrong}" for m in problem.mistakes]
            metafunc.parametrize("mistake", problem.mistakes, ids=ids)
        if "argument" in names:
            assert problem.entry is not None
            metafunc.parametrize("argument", problem.entry.good())
        if "side" in names:
            metafunc.parametrize("side", ["linen", "nnx"])
        if "idiom" in names:
            is_timed = metafunc.config.getoption("benchmark_enable", default=False)
            cases = list(problem.benchmark.cases(is_timed))
            metafunc.parametrize(
                ("what", "idiom", "mode", "layers"),
                cases,
                ids=[paired.label(*case) for case in cases],
            )

    def test_parity(self, case: Case) -> None:
        case.run()

    def test_idiom(self, train_by: str, nnx_mode: Mode) -> None:
        training = self.problem.training
        assert training is not None
        _, modes = training.idioms[train_by]
        if nnx_mode in modes:
            self.problem.assert_idiom(train_by, nnx_mode)

    @pytest.mark.meta
    def test_a_mistake_is_found(self, mistake: Mistake) -> None:
        self.problem.assert_found(mistake)

    def test_entry(self, nnx_mode: Mode) -> None:
        """Both from the nnx model of the seed, and as arrays alone have it."""
        problem, entry = self.problem, self.problem.entry
        assert entry is not None
        rng = np.random.default_rng(MODES.index(nnx_mode))
        for _ in range(ENTRY_CALLS):
            arguments, start, expected = entry.call(rng)
            output = problem.entry_of("nnx")(**arguments)
            parity.assert_equal(problem.entry_of("linen")(**arguments, **start), output)
            parity.assert_equal(expected, output)

    @pytest.mark.meta
    def test_bad_arguments(self, side: catalog.Side, argument: str) -> None:
        assert self.problem.entry is not None
        good, call = self.problem.entry.good(), self.problem.entry_of(side)
        values = bad(argument, good[argument])
        assert len(values) >= 8
        wrong = []
        for value in values:
            message = refused(call, {**good, argument: value})
            if not (message.startswith(f"{argument} takes ") and ", got " in message):
                wrong.append(f"{value!r:.60}: {message}")
        assert not wrong, "\n".join(wrong)

    @pytest.mark.meta
    def test_arguments_in_other_forms(self, side: catalog.Side) -> None:
        assert self.problem.entry is not None
        good, call = self.problem.entry.good(), self.problem.entry_of(side)
        expected = call(**good)
        assert expected.dtype == jnp.float32
        forms = {name: odd(name, value) for name, value in good.items()}
        for i in range(max(map(len, forms.values()))):
            given = {name: values[i % len(values)] for name, values in forms.items()}
            np.testing.assert_array_equal(call(**given), expected, err_msg=f"{given}")
        for seed in (-(2**31), -1, 2**31, 2**32 - 1):
            assert call(**{**good, "seed": seed}).shape == expected.shape

    @pytest.mark.meta
    def test_bad_starting_variables(self) -> None:
        entry, call = self.problem.entry, self.problem.entry_of("linen")
        assert entry is not None
        good = entry.good()
        sizes = [good[name] for name in entry.of_size]
        start = entry.start(0, len(good["x"]), *sizes)
        assert {*start} == {*entry.linen_start(self.problem.linen)}
        wrong = []
        for keyword, right in start.items():
            for what, got, named in wrong_variables(right):
                message = refused(call, {**good, **start, keyword: got})
                if not (re.match(rf"{keyword}.* takes ", message) and named in message):
                    wrong.append(f"{what}: {message}")
        assert not wrong, "\n".join(wrong)

    @pytest.mark.cost
    @pytest.mark.benchmark(timer=paired.recorded_time)
    def test_cost(
        self, benchmark: Any, what: str, idiom: str, mode: Any, layers: int | None
    ) -> None:
        bench = self.problem.benchmark
        arm = arms.checked_arm(bench, what, idiom, mode, layers)
        if benchmark.disabled:
            with in_mode(mode):
                benchmark(arm.function, *([arm.prepare()] if arm.prepare else []))
            return
        comparison = arms.comparison(bench, what, layers)
        labels = {"problem": bench.problem, "what": what, "layers": layers}
        paired.record(benchmark, comparison, arm.key, **labels)  # type: ignore[arg-type]


_NEEDS = {
    "training": ("test_idiom",),
    "entry": (
        *("test_entry", "test_bad_arguments", "test_arguments_in_other_forms"),
        "test_bad_starting_variables",
    ),
    "cost": ("test_cost",),
    "mistakes": ("test_a_mistake_is_found",),
}
