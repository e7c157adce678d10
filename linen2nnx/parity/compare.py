"""Do a Linen module and an nnx model compute the same numbers?

`assert_parity` runs both sides on the same inputs from the same values and compares, in
the order in which one difference causes the next: structure, edit, outputs, state,
gradients, optimizer step, round trip. The first of these that differs is raised as a
`ParityError` that lists every differing leaf by path, and the first module that
diverges. `compare` returns the same as a report, for a notebook.

Comparison is exact. A tolerance is given for one check and states its cause.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import optax
from flax import nnx

from linen2nnx.leaves import Variables
from linen2nnx.parity import randomness as keys
from linen2nnx.parity.comparison import CHECKS, Comparison
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.edit import Edit
from linen2nnx.parity.equal import ParityError, recording
from linen2nnx.parity.report import Report
from linen2nnx.parity.sides import (
    Arguments,
    linen_apply,
    nnx_call,
    refuse_wrong_inputs,
    refuse_wrong_sides,
)
from linen2nnx.parity.values import with_values


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
    randomness: str = "deterministic",
    optimizer: optax.GradientTransformation | None = None,
    checks: Sequence[str] = CHECKS,
    tolerance: Mapping[str, Tolerance] | None = None,
) -> Report:
    """Check that both sides, started from the same values, compute the same.

    Gradients are those of a random linear function of the output, with respect to every
    floating leaf of every collection: of the values before the edit, through it, and of
    the values after it.

    Args:
        linen_module: a Linen module, or a function `(variables, *inputs) -> output`. A
            module may update all its collections but `params`.
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
        TypeError: if the sides are swapped or classes, or do not take these inputs.
        ValueError: if `checks`, `tolerance` or `randomness` names nothing known, if
            `variables` are empty, without collections or nan, if the output is nan
            throughout, or if a path in `edit.changes` is no leaf and no module.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (3,))
        >>> model = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> assert_parity(nn.Dense(2), None, model, x).largest_difference
        0.0
    """
    tolerance = dict(tolerance or {})
    for name in (*checks, *tolerance):
        if name not in CHECKS:
            raise ValueError(f"check is {name!r}; it takes one of {', '.join(CHECKS)}")
    if randomness not in keys.KINDS:
        kinds = ", ".join(keys.KINDS)
        raise ValueError(f"randomness is {randomness!r}; it takes one of {kinds}")
    linen_arguments = Arguments(inputs, linen_kwargs or {})
    nnx_arguments = Arguments(inputs, nnx_kwargs or {})
    refuse_wrong_sides(linen_module, variables, nnx_model)
    if isinstance(linen_module, nn.Module):
        refuse_wrong_inputs("Linen", linen_module, linen_arguments)
    if call is None:
        refuse_wrong_inputs("nnx", nnx_model, nnx_arguments)
    comparison = Comparison(
        apply=linen_apply(linen_module, linen_arguments, randomness),
        call=nnx_call(call, nnx_arguments, randomness),
        linen_arrays=linen_arguments.arrays,
        nnx_arrays=nnx_arguments.arrays,
        edit=edit,
        rename=rename or {},
        jit=jit,
        optimizer=optimizer or optax.sgd(0.1, momentum=0.9),
        checks=[
            check
            for check in CHECKS
            if check in checks
            and (check != "edit" or edit is not None)
            and (randomness != "statistics" or check not in keys.NOT_IN_STATISTICS)
        ],
        tolerance=tolerance,
        statistics=randomness == "statistics",
        returns_state=isinstance(linen_module, nn.Module),
    )

    def report(**of_failure: Any) -> Report:
        return Report(
            rows=rows,
            checks=tuple(comparison.checks),
            randomness=randomness,
            jit=jit,
            tolerance=tolerance,
            **of_failure,
        )

    with recording() as rows:
        try:
            comparison.run(
                *with_values(
                    linen_module, variables, nnx_model, linen_arguments, rename
                )
            )
        except ParityError as error:
            found, where = comparison.located(rows)
            message = f"{error}\n{where}".rstrip()
            error.args = (message,)
            error.report = report(
                failed=comparison.check, failure=message, divergence=found
            )
            raise
    return report()


def compare(*arguments: Any, **keywords: Any) -> Report:
    """Compare as `assert_parity` does, and return the report also where it differs.

    Args:
        *arguments: those of `assert_parity`.
        **keywords: likewise.

    Raises:
        TypeError: as `assert_parity` does.
        ValueError: likewise.

    Example:
        >>> model = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> report = compare(nn.Dense(2), None, model, np.arange(3.0, dtype="float32"))
        >>> report.failed
        ''
    """
    try:
        return assert_parity(*arguments, **keywords)
    except ParityError as error:
        return error.report
