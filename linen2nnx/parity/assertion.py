"""Do a Linen module and an nnx model compute the same numbers?

`assert_parity` runs both sides on the same inputs from the same values and compares, in
the order in which one difference causes the next: structure, edit, outputs, state,
gradients, optimizer step, round trip. The first of these that differs is raised as a
`ParityError` that lists every differing leaf by path, and the first module that
diverges. `compare` returns the same as a report, for a notebook.

Comparison is exact. A tolerance is given for one check and states its cause.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, overload

import flax.linen as nn
import optax
from flax import nnx

from linen2nnx.leaves import MappingError, Variables
from linen2nnx.modes import in_mode
from linen2nnx.parity import randomness as keys
from linen2nnx.parity.comparison import CHECKS, Comparison
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.edit import Edit
from linen2nnx.parity.equal import ParityError, recording
from linen2nnx.parity.pair import Pair
from linen2nnx.parity.randomness import Randomness
from linen2nnx.parity.report import Report
from linen2nnx.parity.sides import (
    Arguments,
    linen_apply,
    nnx_call,
    refuse_wrong_inputs,
    refuse_wrong_sides,
)
from linen2nnx.parity.values import with_values


@overload
def assert_parity(
    pair: Pair,
    /,
    *,
    edit: Edit | None = None,
    jit: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    checks: Sequence[str] = CHECKS,
    tolerance: Mapping[str, Tolerance] | None = None,
) -> Report: ...


@overload
def assert_parity(
    linen_module: nn.Module | Callable[..., Any],
    variables: Variables | None,
    nnx_model: nnx.Module,
    *inputs: Any,
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
    edit: Edit | None = None,
    call: Callable[..., Any] | None = None,
    rename: Mapping[str, str] | None = None,
    jit: bool = False,
    randomness: Randomness = "deterministic",
    optimizer: optax.GradientTransformation | None = None,
    checks: Sequence[str] = CHECKS,
    tolerance: Mapping[str, Tolerance] | None = None,
) -> Report: ...


def assert_parity(  # the first form is the second one of what the pair holds
    linen_module: Pair | nn.Module | Callable[..., Any],
    variables: Variables | None = None,
    nnx_model: nnx.Module | None = None,
    *inputs: Any,
    linen_kwargs: Mapping[str, Any] | None = None,
    nnx_kwargs: Mapping[str, Any] | None = None,
    edit: Edit | None = None,
    call: Callable[..., Any] | None = None,
    rename: Mapping[str, str] | None = None,
    jit: bool = False,
    randomness: Randomness = "deterministic",
    optimizer: optax.GradientTransformation | None = None,
    checks: Sequence[str] = CHECKS,
    tolerance: Mapping[str, Tolerance] | None = None,
) -> Report:
    """Check that both sides, started from the same values, compute the same.

    Gradients are those of a random linear function of the output, with respect to every
    floating leaf of every collection: of the values before the edit, through it, and of
    the values after it.

    A `Pair` says what both sides are and are called with, and stands in the place of
    all arguments but those that say how it is compared: `edit`, `jit`, `optimizer`,
    `checks` and `tolerance`.

    Args:
        linen_module: a `Pair`; or a Linen module, which may update all its collections
            but `params`; or a function `(variables, *inputs) -> output`.
        variables: its variables, such as a checkpoint. None makes every leaf of both
            sides random, as `random_pair` does.
        nnx_model: the nnx model, in the mode to be compared (a new one is in train
            mode). It is not changed. With `variables` it must hold the same values; one
            from `nnx.eval_shape` holds none and takes those.
        *inputs: what both sides are called with, arrays or pytrees of arrays.
        linen_kwargs: keyword inputs of the Linen side, such as `{"train": False}`.
        nnx_kwargs: likewise of the nnx side. Under `jit`, arrays are traced and all
            else is static.
        edit: a change to make to both sides first.
        call: how to call the model, `(model, *inputs) -> output`; None calls it as
            `model(*inputs)`.
        rename: as for `linen2nnx.mapping.table`.
        jit: whether both sides run under `jax.jit`, or both run op by op.
        randomness: "deterministic" lets neither side draw random numbers that matter;
            random keys among the inputs are inputs as any other. "same keys" makes the
            n-th key that either side draws the same. "statistics" compares mean and
            variance of the outputs over 1000 draws, and neither state nor gradients.
        optimizer: makes the optimizer step; None is SGD with momentum.
        checks: which of `CHECKS` to make.
        tolerance: by the name of a check; all other checks are exact.

    Returns:
        A report with a row for every leaf of every check.

    Raises:
        ParityError: at the first check that differs, listing every leaf that does and
            the first module that diverges. Its `report` has the rows.
        TypeError: if the sides are swapped or classes, or do not take these inputs; if
            an argument is given that the pair says itself.
        ValueError: if `checks`, `tolerance` or `randomness` names nothing known, if
            `variables` are empty, without collections or nan, if the output is nan
            throughout, or if a path in `edit.changes` is no leaf and no module.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (3,))
        >>> model = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> assert_parity(nn.Dense(2), None, model, x).largest_difference
        0.0
    """
    __tracebackhide__ = True
    how = _How(edit, jit, optimizer, tuple(checks), dict(tolerance or {}))
    if not isinstance(linen_module, Pair):
        if nnx_model is None:
            raise TypeError("nnx_model is missing; the order is Linen, variables, nnx")
        refuse_wrong_sides(linen_module, variables, nnx_model)
        arguments = Arguments(inputs, linen_kwargs or {})
        sides = _Sides(
            linen_module,
            lambda: with_values(linen_module, variables, nnx_model, arguments, rename),
            nnx_model,
            inputs,
            linen_kwargs or {},
            nnx_kwargs or {},
            call,
            rename,
            randomness,
        )
        return _assert_parity(sides, how)
    given = {
        "variables": variables,
        "nnx_model": nnx_model,
        "inputs": inputs or None,
        "linen_kwargs": linen_kwargs,
        "nnx_kwargs": nnx_kwargs,
        "call": call,
        "rename": rename,
        "randomness": None if randomness == "deterministic" else randomness,
    }
    if double := [name for name, value in given.items() if value is not None]:
        raise TypeError(f"the pair says itself what {', '.join(double)} are; got both")
    with in_mode(linen_module.mode):
        return _assert_parity(_Sides.of(linen_module), how)


@dataclass(frozen=True)
class _How:
    """How two sides are compared."""

    edit: Edit | None
    jit: bool
    optimizer: optax.GradientTransformation | None
    checks: tuple[str, ...]
    tolerance: dict[str, Tolerance]


@dataclass(frozen=True)
class _Sides:
    """What is compared."""

    linen: nn.Module | Callable[..., Any]
    values: Callable[[], tuple[Variables, nnx.Module]]
    model: nnx.Module
    inputs: tuple[Any, ...]
    linen_kwargs: Mapping[str, Any]
    nnx_kwargs: Mapping[str, Any]
    call: Callable[..., Any] | None
    rename: Mapping[str, str] | None
    randomness: Randomness

    @classmethod
    def of(cls, pair: Pair) -> "_Sides":
        __tracebackhide__ = True
        refuse_wrong_sides(pair.linen, pair.checkpoint, pair.abstract_model)
        linen: nn.Module | Callable[..., Any] = pair.linen
        if pair.linen_call is not None:
            linen = functools.partial(pair.linen_call, pair.linen)
        return cls(
            linen,
            lambda: (pair.variables, pair.model),
            pair.abstract_model,
            pair.arrays,
            pair.linen_kwargs,
            pair.nnx_kwargs,
            pair.nnx_call,
            pair.rename,
            pair.randomness,
        )


def _values(sides: _Sides) -> tuple[Variables, nnx.Module]:
    try:
        return sides.values()
    except MappingError as error:
        raise ParityError(f"structure: {error}") from None


def _assert_parity(sides: _Sides, how: _How) -> Report:
    __tracebackhide__ = True
    checks, tolerance, randomness = how.checks, how.tolerance, sides.randomness
    for name in (*checks, *tolerance):
        if name not in CHECKS:
            raise ValueError(f"check is {name!r}; it takes one of {', '.join(CHECKS)}")
    if randomness not in keys.KINDS:
        kinds = ", ".join(keys.KINDS)
        raise ValueError(f"randomness is {randomness!r}; it takes one of {kinds}")
    linen_arguments = Arguments(sides.inputs, sides.linen_kwargs)
    nnx_arguments = Arguments(sides.inputs, sides.nnx_kwargs)
    if isinstance(sides.linen, nn.Module):
        refuse_wrong_inputs("Linen", sides.linen, linen_arguments)
    if sides.call is None:
        refuse_wrong_inputs("nnx", sides.model, nnx_arguments)
    comparison = Comparison(
        apply=linen_apply(sides.linen, linen_arguments, randomness),
        call=nnx_call(sides.call, nnx_arguments, randomness),
        linen_arrays=linen_arguments.arrays,
        nnx_arrays=nnx_arguments.arrays,
        edit=how.edit,
        rename=sides.rename or {},
        jit=how.jit,
        optimizer=how.optimizer or optax.sgd(0.1, momentum=0.9),
        checks=[
            check
            for check in CHECKS
            if check in checks
            and (check != "edit" or how.edit is not None)
            and (randomness != "statistics" or check not in keys.NOT_IN_STATISTICS)
        ],
        tolerance=tolerance,
        statistics=randomness == "statistics",
        returns_state=isinstance(sides.linen, nn.Module),
    )

    if not comparison.checks:
        raise ValueError(
            f"checks is {[*checks]}, of which nothing is compared"
            + (" without an edit" if how.edit is None else "")
            + (" by statistics" if comparison.statistics else "")
        )

    def report(**of_failure: Any) -> Report:
        return Report(
            rows=rows,
            checks=tuple(comparison.checks),
            randomness=randomness,
            jit=how.jit,
            tolerance=tolerance,
            **of_failure,
        )

    with recording() as rows:
        try:
            comparison.run(*_values(sides))
        except ParityError as error:
            found, where = comparison.located(rows)
            message = f"{error}\n{where}".rstrip()
            error.args = (message,)
            error.report = report(
                failed=comparison.check, failure=message, divergence=found
            )
            raise
    return report()


P = ParamSpec("P")


def _reporting(check: Callable[P, Report]) -> Callable[P, Report]:
    @functools.wraps(check)
    def reported(*arguments: P.args, **keywords: P.kwargs) -> Report:
        try:
            return check(*arguments, **keywords)
        except ParityError as error:
            return error.report

    return reported


compare = _reporting(assert_parity)
compare.__name__ = compare.__qualname__ = "compare"
compare.__doc__ = """Compare as `assert_parity` does, and return a report in any case.

Args, returns and errors are those of `assert_parity`, but for `ParityError`.

Example:
    >>> import jax
    >>> model = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> report = compare(nn.Dense(2), None, model, jax.numpy.arange(3.0))
    >>> report.failed
    ''
"""
