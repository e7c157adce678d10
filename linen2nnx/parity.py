"""Do a Linen module and an nnx model compute the same numbers?

`assert_parity` runs both sides on the same inputs from the same values and compares, in
the order in which one difference causes the next: structure, edit, outputs, state,
gradients, optimizer step, round trip. The first of these that differs is raised as a
`ParityError` that lists every differing leaf by path, and the first module that
diverges. `compare` returns the same as a report, for a notebook.

Comparison is exact. A tolerance is given for one check and states its cause.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.core import FrozenDict, freeze
from jax.typing import DTypeLike

from linen2nnx import divergence as modules
from linen2nnx import mapping
from linen2nnx import randomness as keys
from linen2nnx.differences import Tolerance, difference, is_float, leaves
from linen2nnx.divergence import Divergence
from linen2nnx.mapping import Variables
from linen2nnx.parity_report import Report, Row

CHECKS = (
    "structure",
    "edit",
    "outputs",
    "state",
    "gradients",
    "optimizer step",
    "round trip",
)
GRADIENTS = ("gradients", "optimizer step")
ADVICE = {  # what to do about an error of the Linen side
    flax.errors.InvalidRngError: (
        "The Linen side draws random numbers. Set its mode, such as "
        "linen_kwargs={'train': False}, or give randomness='same keys'."
    ),
    flax.errors.ModifyScopeVariableError: (
        "Linen may update the collections that variables hold, params apart; "
        "module.init gives them all. A function as linen_module names them itself, in "
        "apply(..., mutable=...)."
    ),
    flax.errors.CallCompactUnboundModuleError: (
        "A function as linen_module takes (variables, *inputs) and calls "
        "module.apply(variables, *inputs)."
    ),
    flax.errors.CallSetupUnboundModuleError: (
        "A function as linen_module takes (variables, *inputs) and calls "
        "module.apply(variables, *inputs)."
    ),
    flax.errors.ScopeParamNotFoundError: (
        "These variables are not those of this module; module.init gives some that are."
    ),
    flax.errors.ScopeParamShapeError: (
        "These variables are not those of this module on these inputs."
    ),
}


@dataclass(frozen=True)
class Edit:
    """The same change of a model, made on both sides before the model is applied.

    Attributes:
        linen: takes variables and returns new ones.
        nnx: takes a model, and changes it in place and returns None, or returns a new
            one and leaves the one it got as it was.
        changes: the Linen paths, of leaves or whole modules, that the edit changes,
            such as `params/layers_0`. Each leaf there must change and every other leaf
            stay bit-identical, so that an edit that does nothing is found.
    """

    linen: Callable[[Any], Variables]
    nnx: Callable[[Any], nnx.Module | None]
    changes: Sequence[str]


class ParityError(AssertionError):
    """The two sides differ.

    Attributes:
        report: of the comparison; empty where only two pytrees were compared.
    """

    report = Report()


_recordings: ContextVar[tuple[list[Row], ...]] = ContextVar("recordings", default=())


@contextlib.contextmanager
def recording() -> Iterator[list[Row]]:
    """Collect the rows of every comparison made inside the `with` block.

    Example:
        >>> with recording() as rows:
        ...     _ = assert_equal(np.ones(2), np.ones(2))
        >>> [(row.check, row.difference) for row in rows]
        [('outputs', 0.0)]
    """
    rows: list[Row] = []
    token = _recordings.set((*_recordings.get(), rows))
    try:
        yield rows
    finally:
        _recordings.reset(token)


def assert_equal(
    linen: Any,
    nnx: Any,
    *,
    check: str = "outputs",
    tolerance: Tolerance | None = None,
) -> Report:
    """Compare two pytrees of arrays leaf by leaf: structure, shape, dtype, value.

    Args:
        linen: what the Linen side computed, a pytree of arrays.
        nnx: what the nnx side computed, the same pytree.
        check: what is compared, for the message and the report.
        tolerance: None is exact: the same bits, except that any nan equals any nan.

    Raises:
        ParityError: listing every leaf that differs, with its largest difference.

    Example:
        >>> assert_equal({"a": np.ones(2)}, {"a": np.ones(2)}).largest_difference
        0.0
    """
    linen_leaves, nnx_leaves = leaves(linen), leaves(nnx)
    rows = []
    for path, leaf in (nnx_leaves | linen_leaves).items():
        ours, theirs = linen_leaves.get(path), nnx_leaves.get(path)
        size, note = difference(ours, theirs, tolerance)
        name = path or check
        rows.append(Row(check, name, leaf.shape, str(leaf.dtype), size, note))
    _record(rows)
    return Report(rows)


def _record(rows: list[Row]) -> None:
    """Add rows of one check to every recording; raise if any differs."""
    for recorded in _recordings.get():
        recorded.extend(rows)
    wrong = [row for row in rows if row.note]
    if wrong:
        head = f"{wrong[0].check}: {len(wrong)} of {len(rows)} leaves differ"
        raise ParityError("\n    ".join([head, *map(str, wrong)]))


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
    linen_arguments = _Arguments(inputs, linen_kwargs or {})
    nnx_arguments = _Arguments(inputs, nnx_kwargs or {})
    _refuse_wrong_sides(linen_module, variables, nnx_model)
    if isinstance(linen_module, nn.Module):
        _refuse_wrong_inputs("Linen", linen_module, linen_arguments)
    if call is None:
        _refuse_wrong_inputs("nnx", nnx_model, nnx_arguments)
    comparison = _Comparison(
        apply=_linen_apply(linen_module, linen_arguments, randomness),
        call=_nnx_call(call, nnx_arguments, randomness),
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
                *_with_values(
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


def random_pair(
    linen_target: Variables,
    nnx_target: nnx.Module,
    *,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    rename: Mapping[str, str] | None = None,
) -> tuple[Variables, nnx.Module]:
    """Variables and a model that hold the same random values in every leaf.

    Parameters are drawn from a normal distribution. Its deviation is 1; of two axes or
    more it is one over the root of the product of all axes but the last, so that what
    passes through many layers stays of a size at which no small error is rounded away.
    Every other floating leaf (statistics, caches) is drawn from [0.5, 1.5), so that a
    variance stays positive, and integers from 0 to 9. Fresh initial values would hide
    errors: two biases that are both zero look the same wherever they went.

    Args:
        linen_target: gives the structure of the variables, for instance
            `jax.eval_shape(module.init, key, x)`.
        nnx_target: gives the structure of the model, for instance from
            `nnx.eval_shape`. It is not changed.
        seed: of the random values.
        dtype: of every floating leaf on both sides; None keeps each leaf's own.
        rename: as for `linen2nnx.mapping.table`.

    Raises:
        linen2nnx.mapping.MappingError: if the two do not correspond leaf by leaf.
    """
    rng = np.random.default_rng(seed)

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        cast = dtype is not None and is_float(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if not is_float(leaf):
            values = rng.integers(0, 10, leaf.shape)
        elif path[0].key == "params":
            fan_in = math.prod(leaf.shape[:-1])
            values = rng.standard_normal(leaf.shape) / max(fan_in, 1) ** 0.5
        else:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values.astype(leaf.dtype))

    def seed_rng(leaf: Any) -> Any:
        """RNG state has no Linen leaf to come from."""
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            keys = jax.random.split(jax.random.key(seed), math.prod(leaf.shape))
            return keys.reshape(leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    linen_target = jax.tree.map(abstract, linen_target)
    variables = jax.tree_util.tree_map_with_path(draw, linen_target)
    graphdef, state = nnx.split(nnx_target)
    rng_state, state = nnx.split_state(state, nnx.RngState, ...)
    state = mapping.to_nnx(variables, jax.tree.map(abstract, state), rename=rename)
    return variables, nnx.merge(graphdef, jax.tree.map(seed_rng, rng_state), state)


class _Arguments:
    """What one side is called with: `jit` traces the arrays and leaves the rest."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        found, self._treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
        self.arrays = [leaf for leaf in found if hasattr(leaf, "dtype")]
        self._rest = [None if hasattr(leaf, "dtype") else leaf for leaf in found]

    def filled(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        remaining = iter(arrays)
        found = [next(remaining) if leaf is None else leaf for leaf in self._rest]
        return jax.tree.unflatten(self._treedef, found)


def _refuse_wrong_sides(
    linen_module: Any, variables: Variables | None, nnx_model: Any
) -> None:
    for name, given in (("linen_module", linen_module), ("nnx_model", nnx_model)):
        if isinstance(given, type):
            it = given.__name__
            raise TypeError(f"{name} is the class {it}; it takes a model, {it}(...)")
    if isinstance(linen_module, nnx.Module) or isinstance(nnx_model, nn.Module):
        raise TypeError(
            f"linen_module is a {type(linen_module).__name__} and nnx_model a "
            f"{type(nnx_model).__name__}; the order is Linen, variables, nnx"
        )
    if variables is None:
        if not isinstance(linen_module, nn.Module):
            raise TypeError(
                "variables is None, which takes a Linen module that says their shapes; "
                "linen_module is a function"
            )
        return
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"variables is {type(variables).__name__}; it takes a dict by collection, "
            "or None for random values"
        )
    has_params = bool(jax.tree.leaves(nnx.state(nnx_model, nnx.Param)))
    if has_params and not variables:
        raise ValueError(
            "variables is empty; it takes what module.init returns, a checkpoint, or "
            "None for random values"
        )
    names = {nnx.variable_name_from_type(kind) for kind in _COLLECTIONS}
    if has_params and not names & {*variables}:
        raise ValueError(
            f"variables has the keys {', '.join(map(repr, variables))} and no "
            "collection such as 'params'; if these are the params, it takes "
            "{'params': ...}"
        )


_COLLECTIONS = (nnx.Param, nnx.BatchStat, nnx.Cache, nnx.Intermediate)


def _refuse_wrong_inputs(side: str, module: Any, arguments: _Arguments) -> None:
    if not hasattr(module, "__call__"):  # noqa: B004 - a model with other methods only
        raise TypeError(
            f"{side} {type(module).__name__} has no __call__; give "
            "call=lambda model, x: model.method(x)"
        )
    args, kwargs = arguments.filled(arguments.arrays)
    signature = inspect.signature(module.__call__)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [f"{len(args)} inputs", *(f"{name}=" for name in kwargs)]
        raise TypeError(
            f"{side} {type(module).__name__} takes {signature} and got "
            f"{', '.join(given)}: {error}"
        ) from None


def _with_values(
    linen_module: Any,
    variables: Variables | None,
    nnx_model: nnx.Module,
    arguments: _Arguments,
    rename: Mapping[str, str] | None,
) -> tuple[Variables, nnx.Module]:
    """Random values in both if there are no variables; theirs if the model has none."""
    state = jax.tree.leaves(nnx.state(nnx_model))
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in state)

    def init(arrays: Any) -> Any:
        args, kwargs = arguments.filled(arrays)
        return linen_module.init(jax.random.key(0), *args, **kwargs)

    try:
        if variables is None:
            shapes = jax.eval_shape(init, arguments.arrays)
            return random_pair(shapes, nnx_model, rename=rename)
        if is_abstract:
            _, seeded = random_pair(variables, nnx_model, rename=rename)
            return variables, mapping.to_nnx(variables, seeded, rename=rename)
    except mapping.MappingError as error:
        raise ParityError(f"structure: {error}") from error
    return variables, nnx_model


def _linen_apply(
    module: nn.Module | Callable[..., Any], arguments: _Arguments, randomness: str
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Variables and arrays to the output and the updated variables."""

    def apply(variables: Any, arrays: Any) -> tuple[Any, Any]:
        args, kwargs = arguments.filled(arrays)
        with _keys(randomness), _advice():
            if not isinstance(module, nn.Module):
                return module(variables, *args, **kwargs), variables
            mutable = [name for name in variables if name != "params"]
            output, updated = module.apply(variables, *args, mutable=mutable, **kwargs)
        return output, _like(variables, {**variables, **updated})

    return apply


def _nnx_call(
    call: Callable[..., Any] | None, arguments: _Arguments, randomness: str
) -> Callable[[Any, Any], Any]:
    """Model and arrays to the output; the model is updated."""

    def run(model: Any, arrays: Any) -> Any:
        args, kwargs = arguments.filled(arrays)
        with _keys(randomness):
            if call is not None:
                return call(model, *args, **kwargs)
            return model(*args, **kwargs)

    return run


def _keys(randomness: str) -> contextlib.AbstractContextManager[None]:
    if randomness == "same keys":
        return keys.same_keys(jax.random.key(0))
    return contextlib.nullcontext()


@contextlib.contextmanager
def _advice() -> Iterator[None]:
    """Tell what to do about an error of the Linen side."""
    try:
        yield
    except flax.errors.FlaxError as error:
        if advice := ADVICE.get(type(error)):
            error.add_note(advice)
        raise


@dataclass
class _Comparison:
    """The checks of one comparison.

    Attributes:
        check: the one that is being made.
    """

    apply: Callable[[Any, Any], tuple[Any, Any]]
    call: Callable[[Any, Any], Any]
    linen_arrays: list[Any]
    nnx_arrays: list[Any]
    edit: Edit | None
    rename: Mapping[str, str]
    jit: bool
    optimizer: optax.GradientTransformation
    checks: list[str]
    tolerance: Mapping[str, Tolerance]
    statistics: bool
    returns_state: bool
    check: str = "structure"

    def run(self, variables: Variables, nnx_model: nnx.Module) -> None:
        """Make the checks in order."""
        if "structure" in self.checks:
            self._compare("structure", variables, nnx.state(nnx_model))
        for path, leaf in mapping.flatten(variables).items():
            if is_float(leaf) and np.isnan(np.asarray(leaf)).any():
                raise ValueError(
                    f"{path} holds nan; parity takes values that are not nan"
                )
        maybe_jit: Callable[..., Any] = jax.jit if self.jit else lambda run: run
        graphdef, state = nnx.split(nnx_model)
        self.drop_sown = "intermediates" not in variables
        self.linen_values: Any = variables
        self.nnx_values: Any = (graphdef, state)
        if self.edit is not None:
            edit_linen, edit_nnx = (
                maybe_jit(_linen_edit(self.edit)),
                maybe_jit(_nnx_edit(self.edit, graphdef)),
            )
            self.linen_values, linen_source = edit_linen(variables)
            *edited, nnx_source = edit_nnx(state)
            self.nnx_values = tuple(edited)
            if "edit" in self.checks:
                self._compare("edit", self.linen_values, self.nnx_values[1])
                _assert_changes(variables, self.linen_values, self.edit.changes)
                _assert_untouched(variables, linen_source)
                if nnx_source is not None:
                    self._compare("edit", variables, nnx_source, "source of the edit")
        if self.statistics:
            self._compare_statistics()
        elif {*self.checks} - {"structure", "edit", "round trip"}:
            linen = maybe_jit(self._linen_program())(
                variables, self.linen_values, self.linen_arrays
            )
            ours = maybe_jit(self._nnx_program(graphdef, self.nnx_values[0]))(
                state, self.nnx_values[1], self.nnx_arrays
            )
            self._compare_results(linen, ours)
        if "round trip" in self.checks:
            back = mapping.to_nnx(variables, state, rename=self.rename)
            self._compare_trees("round trip", _plain(state), _plain(back))

    def _compare(self, check: str, linen: Any, state: Any, part: str = "") -> None:
        """`state` is nnx state to be read as Linen variables like `linen`."""
        self.check = check
        try:
            values = mapping.to_linen(state, linen, rename=self.rename)
        except mapping.MappingError as error:
            raise ParityError(f"{check}: {part}{error}") from error
        self._compare_trees(check, linen, values, part)

    def _compare_trees(self, check: str, linen: Any, nnx: Any, part: str = "") -> None:
        self.check = check
        if part:
            linen, nnx = {part: linen}, {part: nnx}
        assert_equal(linen, nnx, check=check, tolerance=self.tolerance.get(check))

    def _compare_results(self, linen: dict[str, Any], ours: dict[str, Any]) -> None:
        if "outputs" in self.checks:
            self._compare_trees("outputs", linen["output"], ours["output"])
            for path, leaf in leaves(linen["output"]).items():
                if leaf.size and is_float(leaf) and np.isnan(leaf).all():
                    raise ValueError(
                        f"the output {path} is nan throughout on both sides, which "
                        "shows nothing; parity takes inputs that give numbers"
                    )
        if "state" in self.checks:
            self._compare("state", linen["state"], ours["state"])
        for check in ("gradients", "optimizer step"):
            parts = linen.get(check, {}) if check in self.checks else {}
            for part, values in parts.items():
                self._compare(check, values, ours[check][part], part)

    def _compare_statistics(self) -> None:
        if "outputs" not in self.checks:
            return
        self.check = "outputs"
        graphdef, state = self.nnx_values
        found = keys.compare_statistics(
            lambda: self.apply(self.linen_values, self.linen_arrays)[0],
            lambda: self.call(nnx.merge(graphdef, _snapshot(state)), self.nnx_arrays),
        )
        _record(
            [
                Row("outputs", name, value.shape, str(value.dtype), size, note)
                for name, value, size, note in found
            ]
        )

    def located(self, rows: Sequence[Row]) -> tuple[Divergence | None, str]:
        """Where the check that differs first does, and the same in words."""
        wrong = [row for row in rows if row.check == self.check and row.note]
        if self.check == "structure" and wrong:
            return None, (
                "nnx_model does not hold the values of variables; "
                "linen2nnx.mapping.to_nnx(variables, nnx_model) gives one that does"
            )
        if self.statistics or self.check in ("structure", "edit", "round trip"):
            return None, ""
        try:
            found = self._divergence(wrong)
        except Exception as error:  # the difference is what counts
            kind = type(error).__name__
            return None, f"no module is named: op by op, {kind}: {error}"
        return found, str(found)

    def _divergence(self, wrong: Sequence[Row]) -> Divergence:
        """Where the forward passes first differ; `wrong` are the leaves that do."""
        paths = [row.path for row in wrong]
        graphdef, state = self.nnx_values
        model = nnx.merge(graphdef, _snapshot(state))
        linen_calls = modules.record_linen(
            lambda: self.apply(self.linen_values, self.linen_arrays)
        )
        with keys.counted() as drawn:
            nnx_calls = modules.record_nnx(
                model, lambda: self.call(model, self.nnx_arrays)
            )
        found = modules.first_divergence(
            linen_calls,
            nnx_calls,
            rename=_module_names(self.linen_values, model, self.rename),
            tolerance=self.tolerance.get("outputs"),
        )
        hints = [*found.hints]
        if drawn and found.found:
            hints.append(
                f"the nnx model drew {len(drawn)} random keys; nnx_model.eval() turns "
                "dropout off, and randomness='same keys' gives both sides the same"
            )
        if self.check == "outputs" and not found.found:
            if self.jit:
                hints.append("run op by op both are equal: it arises under jax.jit")
            elif found.compared:
                hints.append("the output is changed after the last of these calls")
        if self.check == "state" and not found.found:
            names = dict.fromkeys(_module(path, 1) for path in paths)
            hints.append(f"what is kept differs, in {', '.join(names)}")
            if not self.returns_state:
                hints.append(
                    "linen_module is a function, whose updates are not seen; give the "
                    "module, or leave out the check 'state'"
                )
        largest = max((row.difference for row in wrong), default=0.0)
        if self.check in GRADIENTS and 0 < largest <= modules.ROUNDING:
            hints.append(
                f"none differs by more than {largest:.2g}, which may be rounding; if "
                "one side sums in another order, tolerance= takes that as its cause"
            )
        if self.check == "gradients" and not found.found:
            hints += _gradient_hints({_module(path, 2) for path in paths}, linen_calls)
        if self.check == "optimizer step" and "gradients" in self.checks:
            hints.append("the gradients match: what the optimizer updates differs")
        return dataclasses.replace(found, hints=tuple(hints))

    def _linen_program(self) -> Callable[..., dict[str, Any]]:
        """Everything that the Linen side computes, as one function to be jitted."""

        def run(variables: Any, edited: Any, arrays: Any) -> dict[str, Any]:
            def loss(edited: Any) -> Any:
                return _loss(self.apply(edited, arrays)[0])

            output, state = self.apply(edited, arrays)
            result = {"output": output, "state": state}
            if not {"gradients", "optimizer step"} & {*self.checks}:
                return result
            gradients = {"model": _gradients(loss, edited)}
            if self.edit is not None:
                through = _pull_back(self.edit.linen, variables, gradients["model"])
                gradients["before the edit"] = through
            result["gradients"] = gradients
            if "optimizer step" in self.checks and "params" in edited:
                params, of_params = edited["params"], gradients["model"]["params"]
                start = self.optimizer.init(params)
                updates, _ = self.optimizer.update(of_params, start, params)
                stepped = {**edited, "params": optax.apply_updates(params, updates)}
                result["optimizer step"] = {"model": _like(edited, stepped)}
            return result

        return run

    def _nnx_program(
        self, graphdef: Any, edited_graphdef: Any
    ) -> Callable[..., dict[str, Any]]:
        """Everything that the nnx side computes, as one function to be jitted."""

        def run(state: Any, edited: Any, arrays: Any) -> dict[str, Any]:
            def loss(edited: Any) -> Any:
                model = nnx.merge(edited_graphdef, _snapshot(edited))
                return _loss(self.call(model, arrays))

            model = nnx.merge(edited_graphdef, _snapshot(edited))
            output = self.call(model, arrays)
            sown = nnx.Intermediate if self.drop_sown else nnx.Nothing()
            result = {"output": output, "state": _state(model, nnx.Not(sown))}
            if not {"gradients", "optimizer step"} & {*self.checks}:
                return result
            gradients = {"model": _gradients(loss, edited)}
            if self.edit is not None:
                make = _nnx_edit(self.edit, graphdef)
                gradients["before the edit"] = _pull_back(
                    lambda start: make(start)[1], state, gradients["model"]
                )
            result["gradients"] = gradients
            if "optimizer step" in self.checks:
                model = nnx.merge(edited_graphdef, _snapshot(edited))
                of_params = nnx.filter_state(gradients["model"], nnx.Param)
                _optimizer_step(model, self.optimizer, of_params)
                result["optimizer step"] = {"model": _state(model)}
            return result

        return run


def _module_names(
    variables: Variables, model: nnx.Module, rename: Mapping[str, str]
) -> dict[str, str]:
    """The nnx path of every Linen module that the mapping of leaves tells."""
    names = {}
    for row in mapping.table(variables, model, rename=rename):
        linen, _, leaf = row.linen.partition("/")[2].rpartition("/")
        ours, _, nnx_leaf = row.nnx.rpartition("/")
        if linen and ours and leaf == nnx_leaf and row.columns is None:
            names[linen] = ours
    return names | dict(rename)


def _module(path: str, prefix: int) -> str:
    """`model/params/layers_0/kernel` without its prefix is of module `layers_0`."""
    return "/".join(path.split("/")[prefix:-1]) or "the model"


def _gradient_hints(differing: set[str], calls: Sequence[modules.Call]) -> list[str]:
    found = modules.last_before_match(differing, calls)
    if found is None:
        return []
    last, following = found
    between = f", or between it and {following}, called next" if following else ""
    return [
        f"gradients flow from the last call to the first, and {last} is called last of "
        f"the modules whose gradients differ: look there{between}"
    ]


def _linen_edit(edit: Edit) -> Callable[[Any], Any]:
    """Variables to edited variables and to what the edit left of its source."""

    def run(variables: Any) -> tuple[Any, Any]:
        source = _snapshot(variables)
        return edit.linen(source), source

    return run


def _nnx_edit(edit: Edit, graphdef: Any) -> Callable[[Any], Any]:
    """State to edited graphdef and state, and to the source's state if it is kept."""

    def run(state: Any) -> tuple[Any, Any, Any]:
        model = nnx.merge(graphdef, _snapshot(state))
        edited = edit.nnx(model)
        source = None if edited is None else _state(model)
        edited_graphdef, edited_state = nnx.split(model if edited is None else edited)
        return edited_graphdef, _snapshot(edited_state), source

    return run


def _optimizer_step(
    model: nnx.Module, optimizer: optax.GradientTransformation, gradients: Any
) -> None:
    stepping = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    if "model" in inspect.signature(stepping.update).parameters:
        stepping.update(model, gradients)
    else:  # before flax 0.11 the optimizer holds the model
        stepping.update(gradients)  # type: ignore[call-arg]


def _floating(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The floating leaves of `tree`, and what puts others in their place."""
    leaves, treedef = jax.tree.flatten(tree)

    def fill(values: Sequence[Any]) -> Any:
        remaining = iter(values)
        filled = [next(remaining) if is_float(leaf) else leaf for leaf in leaves]
        return jax.tree.unflatten(treedef, filled)

    return [leaf for leaf in leaves if is_float(leaf)], fill


def _gradients(loss: Callable[[Any], Any], tree: Any) -> Any:
    """The gradient for every floating leaf of `tree`; other leaves as they are."""
    values, fill = _floating(tree)
    return fill(jax.grad(lambda values: loss(fill(values)))(values))


def _pull_back(edit: Callable[[Any], Any], start: Any, gradients: Any) -> Any:
    """From the gradients for what `edit` makes of `start` to those for `start`."""
    values, fill = _floating(start)
    _, pull = jax.vjp(lambda values: _floating(edit(fill(values)))[0], values)
    return fill(*pull(_floating(gradients)[0]))


def _loss(output: Any) -> Any:
    """A random linear function of every floating leaf of an output."""
    rng = np.random.default_rng(0)
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(output):
        if is_float(leaf):
            weights = rng.standard_normal(leaf.shape).astype(np.float32)
            total += jnp.sum(weights * leaf.astype(jnp.float32))
    return total


def _assert_changes(
    before: Variables, after: Variables, changes: Sequence[str]
) -> None:
    """Leaves under `changes` changed; every other leaf is bit-identical."""
    old, new = leaves(before), leaves(after)
    wrong = []
    for path in old | new:
        changed = bool(difference(old.get(path), new.get(path), None)[1])
        named = any(f"{path}/".startswith(f"{change}/") for change in changes)
        if changed and not named:
            wrong.append(f"{path}: changed, though the edit is not to change it")
        if named and not changed:
            wrong.append(f"{path}: not changed, though the edit is to change it")
    for change in changes:
        if not any(f"{path}/".startswith(f"{change}/") for path in old | new):
            raise ValueError(f"edit.changes names {change!r}; the leaves are {[*old]}")
    if wrong:
        raise ParityError("\n    ".join([f"edit: {len(wrong)} leaves", *wrong]))


def _assert_untouched(before: Variables, after: Variables) -> None:
    old, new = leaves(before), leaves(after)
    wrong = [p for p in old | new if difference(old.get(p), new.get(p), None)[1]]
    if wrong:
        lines = ["edit: the Linen edit changed its own source", *wrong]
        raise ParityError("\n    ".join(lines))


def _snapshot(tree: Any) -> Any:
    """The same arrays in new containers and new Variables."""
    return jax.tree.map(lambda leaf: leaf, tree)


def _state(model: nnx.Module, kept: Any = ...) -> nnx.State:
    return _snapshot(nnx.state(model, kept))


def _plain(state: nnx.State) -> Any:
    return nnx.to_pure_dict(state)


def _like(variables: Variables, new: dict[str, Any]) -> Variables:
    """`new` as the kind of dict that `variables` is."""
    return freeze(new) if isinstance(variables, FrozenDict) else new
