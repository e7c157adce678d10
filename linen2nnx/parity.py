"""Do a Linen module and an nnx model compute the same numbers?

`assert_parity` runs both sides on the same inputs from the same values and compares, in
the order in which one difference causes the next: structure, edit, outputs, state,
gradients, optimizer step, round trip. The first of these that differs is raised as a
`ParityError` that lists every differing leaf by path.

Comparison is exact. A tolerance is given for one check and states its cause.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.core import FrozenDict, freeze
from jax.typing import DTypeLike

from linen2nnx import mapping
from linen2nnx.mapping import Variables

CHECKS = (
    "structure",
    "edit",
    "outputs",
    "state",
    "gradients",
    "optimizer step",
    "round trip",
)


class ParityError(AssertionError):
    """The two sides differ."""


@dataclass(frozen=True)
class Tolerance:
    """How far one check may differ, and why: `|linen - nnx| <= atol + rtol * |linen|`.

    Raises:
        ValueError: if a bound is negative or not finite, or the cause is empty.

    Example:
        >>> Tolerance("the two sums run in a different order", atol=1e-6).atol
        1e-06
    """

    cause: str
    atol: float = 0.0
    rtol: float = 0.0

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            bound = getattr(self, name)
            if not (math.isfinite(bound) and bound >= 0):
                raise ValueError(f"{name} is {bound!r}; it takes a number from 0 up")
        if not self.cause.strip():
            raise ValueError("cause is empty; it takes the reason for the tolerance")


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


@dataclass(frozen=True)
class Row:
    """One leaf of one check.

    Attributes:
        check: one of `CHECKS`.
        path: the leaf's Linen path.
        shape: its shape on the Linen side.
        dtype: its dtype on the Linen side.
        difference: the largest absolute difference; inf where shapes differ or one side
            has no such leaf, nan where one side is nan and the other is not.
        note: what differs, in words; empty where it is within the check's tolerance.
    """

    check: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    difference: float
    note: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.shape} {self.dtype}: {self.note or 'equal'}"


@dataclass(frozen=True)
class Report:
    """All rows of one comparison."""

    rows: list[Row] = field(default_factory=list)

    @property
    def largest_difference(self) -> float:
        """The largest difference of any row, nan if any is nan, 0.0 without rows."""
        return float(np.max([row.difference for row in self.rows], initial=0.0))


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
    linen_leaves, nnx_leaves = _leaves(linen), _leaves(nnx)
    rows = []
    for path, leaf in (nnx_leaves | linen_leaves).items():
        ours, theirs = linen_leaves.get(path), nnx_leaves.get(path)
        difference, note = _difference(ours, theirs, tolerance)
        name = path or check
        rows.append(Row(check, name, leaf.shape, str(leaf.dtype), difference, note))
    for recorded in _recordings.get():
        recorded.extend(rows)
    wrong = [row for row in rows if row.note]
    if wrong:
        lines = [
            f"{check}: {len(wrong)} of {len(rows)} leaves differ",
            *map(str, wrong),
        ]
        raise ParityError("\n    ".join(lines))
    return Report(rows)


def assert_parity(
    linen_module: nn.Module | Callable[..., Any],
    variables: Variables,
    nnx_model: nnx.Module,
    *inputs: Any,
    edit: Edit | None = None,
    call: Callable[..., Any] | None = None,
    rename: Mapping[str, str] | None = None,
    jit: bool = False,
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
        variables: its variables; `random_pair` makes every leaf of both sides random.
        nnx_model: the nnx model, which must hold the same values. It is not changed.
        *inputs: what both sides are called with, arrays or pytrees of arrays.
        edit: a change to make to both sides first.
        call: how to call the model, `(model, *inputs) -> output`; None calls it as
            `model(*inputs)`.
        rename: as for `linen2nnx.mapping.table`.
        jit: whether both sides run under `jax.jit`, or both run op by op.
        optimizer: makes the optimizer step; None is SGD with momentum.
        checks: which of `CHECKS` to make.
        tolerance: by the name of a check; all other checks are exact.

    Returns:
        A report with a row for every leaf of every check.

    Raises:
        ParityError: at the first check that differs, listing every leaf that does.
        ValueError: if `checks` or `tolerance` names no check, if a starting value is
            nan, or if a path in `edit.changes` is no leaf and no module.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (3,))
        >>> module = nn.Dense(2)
        >>> variables, model = random_pair(
        ...     jax.eval_shape(module.init, jax.random.key(0), x),
        ...     nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0))),
        ... )
        >>> assert_parity(module, variables, model, x).largest_difference
        0.0
    """
    tolerance = dict(tolerance or {})
    for name in (*checks, *tolerance):
        if name not in CHECKS:
            raise ValueError(f"check is {name!r}; it takes one of {', '.join(CHECKS)}")
    rows: list[Row] = []

    def compare(check: str, linen: Any, state: Any, part: str = "") -> None:
        """`state` is nnx state to be read as Linen variables like `linen`."""
        try:
            values = mapping.to_linen(state, linen, rename=rename)
        except mapping.MappingError as error:
            raise ParityError(f"{check}: {part}{error}") from error
        compare_trees(check, linen, values, part)

    def compare_trees(check: str, linen: Any, nnx: Any, part: str = "") -> None:
        if part:
            linen, nnx = {part: linen}, {part: nnx}
        report = assert_equal(linen, nnx, check=check, tolerance=tolerance.get(check))
        rows.extend(report.rows)

    if "structure" in checks:
        compare("structure", variables, nnx.state(nnx_model))
    for path, leaf in mapping.flatten(variables).items():
        if _is_float(leaf) and np.isnan(np.asarray(leaf)).any():
            raise ValueError(f"{path} holds nan; parity takes values that are not nan")

    maybe_jit: Callable[..., Any] = jax.jit if jit else lambda function: function
    graphdef, state = nnx.split(nnx_model)
    linen_edited, nnx_graphdef, nnx_edited = variables, graphdef, state
    if edit is not None:
        linen_edited, linen_source = maybe_jit(_linen_edit(edit))(variables)
        nnx_graphdef, nnx_edited, nnx_source = maybe_jit(_nnx_edit(edit, graphdef))(
            state
        )
        if "edit" in checks:
            compare("edit", linen_edited, nnx_edited)
            _assert_changes(variables, linen_edited, edit.changes)
            _assert_untouched(variables, linen_source)
            if nnx_source is not None:
                compare("edit", variables, nnx_source, "source of the edit")

    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    run_linen = maybe_jit(_linen_program(linen_module, edit, optimizer, checks))
    run_nnx = maybe_jit(
        _nnx_program(graphdef, nnx_graphdef, edit, call, optimizer, checks)
    )
    linen = run_linen(variables, linen_edited, *inputs)
    ours = run_nnx(state, nnx_edited, *inputs)
    if "outputs" in checks:
        compare_trees("outputs", linen["output"], ours["output"])
    if "state" in checks:
        compare("state", linen["state"], ours["state"])
    for check in ("gradients", "optimizer step"):
        for part, values in linen.get(check, {}).items() if check in checks else ():
            compare(check, values, ours[check][part], part)
    if "round trip" in checks:
        back = mapping.to_nnx(variables, state, rename=rename)
        compare_trees("round trip", _plain(state), _plain(back))
    return Report(rows)


def random_pair(
    linen_target: Variables,
    nnx_target: nnx.Module,
    *,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    rename: Mapping[str, str] | None = None,
) -> tuple[Variables, nnx.Module]:
    """Variables and a model that hold the same random values in every leaf.

    Parameters are drawn from a standard normal distribution. Every other floating leaf
    (statistics, caches) is drawn from [0.5, 1.5), so that a variance stays positive,
    and integers from 0 to 9. Fresh initial values would hide errors: two biases that
    are both zero look the same wherever they went.

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
        cast = dtype is not None and _is_float(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if not _is_float(leaf):
            values = rng.integers(0, 10, leaf.shape)
        elif path[0].key == "params":
            values = rng.standard_normal(leaf.shape)
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


def _linen_program(
    module: nn.Module | Callable[..., Any],
    edit: Edit | None,
    optimizer: optax.GradientTransformation,
    checks: Sequence[str],
) -> Callable[..., dict[str, Any]]:
    """Everything that the Linen side computes, as one function to be jitted."""

    def apply(variables: Any, *inputs: Any) -> tuple[Any, Any]:
        if not isinstance(module, nn.Module):
            return module(variables, *inputs), variables
        mutable = [name for name in variables if name != "params"]
        output, updated = module.apply(variables, *inputs, mutable=mutable)
        return output, _like(variables, {**variables, **updated})

    def run(variables: Any, edited: Any, *inputs: Any) -> dict[str, Any]:
        def loss(edited: Any) -> Any:
            return _loss(apply(edited, *inputs)[0])

        output, state = apply(edited, *inputs)
        result = {"output": output, "state": state}
        if not {"gradients", "optimizer step"} & {*checks}:
            return result
        gradients = {"model": _gradients(loss, edited)}
        if edit is not None:
            through = _gradients(lambda start: loss(edit.linen(start)), variables)
            gradients["before the edit"] = through
        result["gradients"] = gradients
        if "optimizer step" in checks and "params" in edited:
            params, of_params = edited["params"], gradients["model"]["params"]
            updates, _ = optimizer.update(of_params, optimizer.init(params), params)
            stepped = {**edited, "params": optax.apply_updates(params, updates)}
            result["optimizer step"] = {"model": _like(edited, stepped)}
        return result

    return run


def _nnx_program(
    graphdef: Any,
    edited_graphdef: Any,
    edit: Edit | None,
    call: Callable[..., Any] | None,
    optimizer: optax.GradientTransformation,
    checks: Sequence[str],
) -> Callable[..., dict[str, Any]]:
    """Everything that the nnx side computes, as one function to be jitted."""
    call = call or (lambda model, *inputs: model(*inputs))

    def run(state: Any, edited: Any, *inputs: Any) -> dict[str, Any]:
        def loss(edited: Any) -> Any:
            return _loss(call(nnx.merge(edited_graphdef, _snapshot(edited)), *inputs))

        model = nnx.merge(edited_graphdef, _snapshot(edited))
        output = call(model, *inputs)
        result = {"output": output, "state": _state(model)}
        if not {"gradients", "optimizer step"} & {*checks}:
            return result
        gradients = {"model": _gradients(loss, edited)}
        if edit is not None:
            make = _nnx_edit(edit, graphdef)
            through = _gradients(lambda start: loss(make(start)[1]), state)
            gradients["before the edit"] = through
        result["gradients"] = gradients
        if "optimizer step" in checks:
            model = nnx.merge(edited_graphdef, _snapshot(edited))
            of_params = nnx.filter_state(gradients["model"], nnx.Param)
            _optimizer_step(model, optimizer, of_params)
            result["optimizer step"] = {"model": _state(model)}
        return result

    return run


def _optimizer_step(
    model: nnx.Module, optimizer: optax.GradientTransformation, gradients: Any
) -> None:
    stepping = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    if "model" in inspect.signature(stepping.update).parameters:
        stepping.update(model, gradients)
    else:  # before flax 0.11 the optimizer holds the model
        stepping.update(gradients)  # type: ignore[call-arg]


def _gradients(loss: Callable[[Any], Any], tree: Any) -> Any:
    """The gradient for every floating leaf of `tree`; other leaves as they are."""
    leaves, treedef = jax.tree.flatten(tree)
    floating = [_is_float(leaf) for leaf in leaves]

    def loss_of(values: list[Any]) -> Any:
        remaining = iter(values)
        full = [next(remaining) if f else leaf for f, leaf in zip(floating, leaves)]
        return loss(jax.tree.unflatten(treedef, full))

    values = [leaf for f, leaf in zip(floating, leaves) if f]
    gradients = iter(jax.grad(loss_of)(values))
    full = [next(gradients) if f else leaf for f, leaf in zip(floating, leaves)]
    return jax.tree.unflatten(treedef, full)


def _loss(output: Any) -> Any:
    """A random linear function of every floating leaf of an output."""
    rng = np.random.default_rng(0)
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(output):
        if _is_float(leaf):
            weights = rng.standard_normal(leaf.shape).astype(np.float32)
            total += jnp.sum(weights * leaf.astype(jnp.float32))
    return total


def _assert_changes(
    before: Variables, after: Variables, changes: Sequence[str]
) -> None:
    """Leaves under `changes` changed; every other leaf is bit-identical."""
    old, new = _leaves(before), _leaves(after)
    wrong = []
    for path in old | new:
        changed = bool(_difference(old.get(path), new.get(path), None)[1])
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
    old, new = _leaves(before), _leaves(after)
    wrong = [p for p in old | new if _difference(old.get(p), new.get(p), None)[1]]
    if wrong:
        lines = ["edit: the Linen edit changed its own source", *wrong]
        raise ParityError("\n    ".join(lines))


def _difference(
    linen: np.ndarray | None, nnx: np.ndarray | None, tolerance: Tolerance | None
) -> tuple[float, str]:
    """The largest difference of two leaves, and what differs in words or ''."""
    if linen is None or nnx is None:
        return math.inf, "only in Linen" if nnx is None else "only in nnx"
    if linen.shape != nnx.shape or linen.dtype != nnx.dtype:
        return math.inf, f"nnx has {mapping.describe(nnx)}"
    if linen.size == 0:
        return 0.0, ""
    wide = np.complex128 if linen.dtype.kind == "c" else np.float64
    a, b = linen.astype(wide), nnx.astype(wide)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.abs(a - b))
    largest = float(distance.max())
    if tolerance is None:
        bad = ~same | (np.signbit(a.real) != np.signbit(b.real)) & ~np.isnan(a)
    else:
        bad = ~same & ~(distance <= tolerance.atol + tolerance.rtol * np.abs(a))
    if not bad.any():
        return largest, ""
    at = np.unravel_index(np.argmax(np.where(bad, distance, -1.0)), a.shape)
    where = f" at {[int(i) for i in at]}" if at else ""
    return largest, (
        f"{int(bad.sum())} of {a.size} values differ by up to {largest:.3g}"
        f"{where}, Linen {linen[at]}, nnx {nnx[at]}"
    )


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path as numpy arrays; a key array as its integers."""

    def to_numpy(leaf: Any) -> np.ndarray:
        if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    return {path: to_numpy(leaf) for path, leaf in mapping.flatten(tree).items()}


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _snapshot(tree: Any) -> Any:
    """The same arrays in new containers and new Variables."""
    return jax.tree.map(lambda leaf: leaf, tree)


def _state(model: nnx.Module) -> nnx.State:
    return _snapshot(nnx.state(model))


def _plain(state: nnx.State) -> Any:
    return nnx.to_pure_dict(state)


def _like(variables: Variables, new: dict[str, Any]) -> Variables:
    """`new` as the kind of dict that `variables` is."""
    return freeze(new) if isinstance(variables, FrozenDict) else new
