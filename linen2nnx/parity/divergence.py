"""Where two forward passes first differ, module by module.

Both passes run op by op while every call of a module is recorded: on the Linen side by
`nn.intercept_methods`, on the nnx side by wrapping the methods of the classes that the
model is made of. Calls are paired by module path, method and count, so that a call that
is made on one side only shifts no other. A call inside a transform (scan, remat, jit)
has no values to compare: the module around the transform stands for it.
"""

import contextlib
import functools
import inspect
import itertools
import keyword
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linen2nnx.parity.differences import Tolerance, difference, to_numpy

Side = Literal["Linen", "nnx"]

MODES = ("deterministic", "use_running_average")  # what train() and eval() set
ROUNDING = 1e-5  # of the largest value; a difference below it may be rounding
SHOWN = 5  # calls made on one side only that a report lists


@dataclass(frozen=True)
class Call:
    """One call of one module.

    Attributes:
        path: of the module on its own side, such as `layers_0` or `layers/0`; the model
            itself is the empty path.
        kind: the module's class.
        method: `__call__` or another public method.
        index: how many calls of this method of this module came before.
        start: when it began, counted in beginnings and ends of calls.
        end: when it ended, likewise.
        inputs: the arrays in each argument that holds any.
        output: the arrays in what it returned.
        settings: numbers, flags and names that the module or the call was given.
        seen: whether it has values, which a call inside a transform has not.
    """

    path: str
    kind: str
    method: str
    index: int
    start: int
    end: int
    inputs: dict[str, list[np.ndarray]]
    output: list[np.ndarray]
    settings: dict[str, Any]
    seen: bool = True

    def __str__(self) -> str:
        name = self.path or "the model"
        name += "" if self.method == "__call__" else f".{self.method}"
        count = f", call {self.index + 1}" if self.index else ""
        inside = "" if self.seen else ", inside a transform"
        return f"{name} ({self.kind}{count}{inside})"

    def is_inside(self, other: "Call") -> bool:
        """Whether it was made during another call."""
        return other.start < self.start and self.end < other.end

    @property
    def is_identity(self) -> bool:
        """Whether it returned its first input, as dropout does in eval mode."""
        first = next(iter(self.inputs.values()), [])
        return self.seen and not _compare(first, self.output, None)[1]


@dataclass(frozen=True)
class Divergence:
    """The first call, in execution order, that differs.

    Attributes:
        linen: the call on the Linen side; None if it is made on the nnx side only, or
            if nothing differs.
        nnx: the call on the nnx side; None likewise.
        input: what differs at its input; empty if nothing does.
        output: what differs at its output; empty if nothing does.
        matched: the last call before it whose output matched, on both sides; None if
            there is none.
        compared: how many calls are made on both sides.
        linen_only: calls of modules that the nnx side never calls.
        nnx_only: calls of modules that the Linen side never calls.
        hints: what else is known.
    """

    linen: Call | None
    nnx: Call | None
    input: str
    output: str
    matched: tuple[Call, Call] | None
    compared: int
    linen_only: tuple[Call, ...]
    nnx_only: tuple[Call, ...]
    hints: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether a call differs."""
        return self.linen is not None or self.nnx is not None

    def __str__(self) -> str:
        lines = []
        if self.found:
            lines += [
                "first diverging module:",
                f"    Linen {self.linen or 'does not call it'}",
                f"    nnx {self.nnx or 'does not call it'}",
            ]
            if self.linen and self.nnx:
                lines += [
                    f"    input: {self.input or 'equal'}",
                    f"    output: {self.output or 'equal'}",
                ]
            lines += [
                "last module that matched: "
                + (
                    f"Linen {self.matched[0]}, nnx {self.matched[1]}"
                    if self.matched
                    else "none"
                )
            ]
        elif self.compared:
            lines.append(f"forward: all {self.compared} calls of modules match")
        else:
            lines.append("forward: no module is called on both sides")
        for side, calls in (("Linen", self.linen_only), ("nnx", self.nnx_only)):
            if calls:
                lines.append(f"called in {side} only: {_listed(calls)}")
        lines += [f"hint: {hint}" for hint in self.hints]
        return "\n".join(lines)


def record_linen(run: Callable[[], Any]) -> list[Call]:
    """The calls of Linen modules while `run()` runs, in the order of their beginning.

    Example:
        >>> module, x = nn.Dense(2, name="out"), jnp.ones(3)
        >>> variables = module.init(jax.random.key(0), x)
        >>> [str(call) for call in record_linen(lambda: module.apply(variables, x))]
        ['the model (Dense)']
    """
    recorder = _Recorder()

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        if not _is_recorded(method) or module.scope is None:
            return function(*args, **kwargs)
        attributes = {
            item.name: getattr(module, item.name)
            for item in fields(module)
            if item.name not in ("parent", "name")
        }
        signature = inspect.signature(context.orig_method)
        of = "/".join(module.path), type(module).__name__, method
        return recorder.run(of, attributes, signature, function, args, kwargs)

    with nn.intercept_methods(intercept):
        run()
    return recorder.in_order()


def record_nnx(model: nnx.Module, run: Callable[[], Any]) -> list[Call]:
    """The calls of the modules of `model` while `run()` runs, likewise.

    The methods of the model's classes are wrapped meanwhile.

    Example:
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> [str(call) for call in record_nnx(model, lambda: model(jnp.ones(3)))]
        ['the model (Linear)']
    """
    recorder = _Recorder()
    paths: dict[int, str] = {}
    classes: dict[type, None] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            paths.setdefault(id(node), "/".join(map(str, path)))
            classes |= dict.fromkeys(
                itertools.takewhile(lambda c: c is not nnx.Module, type(node).__mro__)
            )

    def wrap(method: str, original: Any) -> Any:
        @functools.wraps(original)
        def wrapped(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            function = original.__get__(self, type(self))
            if id(self) not in paths:
                return function(*args, **kwargs)
            of = paths[id(self)], type(self).__name__, method
            signature = inspect.signature(function)
            return recorder.run(of, vars(self), signature, function, args, kwargs)

        return wrapped

    with contextlib.ExitStack() as stack:
        for cls in classes:
            for method, original in [*vars(cls).items()]:
                if (
                    _is_recorded(method)
                    and callable(original)
                    and hasattr(original, "__get__")
                    and not isinstance(original, staticmethod | classmethod | type)
                ):
                    wrapped = wrap(method, original)
                    stack.enter_context(mock.patch.object(cls, method, wrapped))
        run()
    return recorder.in_order()


def linen_path(path: str, rename: Mapping[str, str]) -> str:
    """The Linen path that the rules of `linen2nnx.mapping` give an nnx module.

    Example:
        >>> linen_path("encoder/layers/3/norm", {})
        'encoder/layers_3/norm'
        >>> linen_path("encoder/layers/3/norm", {"Block_3": "encoder/layers/3"})
        'Block_3/norm'
    """
    by_target = {nnx_path: linen for linen, nnx_path in rename.items()}
    parts = path.split("/") if path else []
    found: list[str] = []
    for length in range(len(parts), 0, -1):
        head = "/".join(parts[:length])
        if head in by_target:
            found, parts = by_target[head].split("/"), parts[length:]
            break
    for part in parts:
        if part.isdigit() and found:
            found[-1] += f"_{part}"
        elif part.endswith("_") and keyword.iskeyword(part[:-1]):
            found.append(part[:-1])
        else:
            found.append(part)
    return "/".join(found)


def first_divergence(
    linen_calls: Sequence[Call],
    nnx_calls: Sequence[Call],
    *,
    rename: Mapping[str, str] | None = None,
    tolerance: Tolerance | None = None,
) -> Divergence:
    """The first call that differs, in the order in which the Linen side calls.

    A call is compared twice: its input when it begins and its output when it ends. So
    a module is named for its output only if its input and every call inside it match.

    Args:
        linen_calls: from `record_linen`.
        nnx_calls: from `record_nnx`.
        rename: as for `linen2nnx.mapping.table`.
        tolerance: how far inputs and outputs may differ; None is exact.

    Example:
        >>> x, model = jnp.ones(3), nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> module = nn.Dense(2)
        >>> variables = module.init(jax.random.key(1), x)
        >>> found = first_divergence(
        ...     record_linen(lambda: module.apply(variables, x)),
        ...     record_nnx(model, lambda: model(x)),
        ... )
        >>> found.input, str(found.nnx), found.matched
        ('', 'the model (Linear)', None)
    """
    pairs = _pairs(linen_calls, nnx_calls, rename or {})
    pairs = [(linen, nnx) for linen, nnx in pairs if linen.seen and nnx.seen]
    partner = {id(linen): nnx for linen, nnx in pairs}
    linen_only = [call for call in linen_calls if id(call) not in partner]
    paired = {id(nnx) for _, nnx in pairs}
    nnx_only = [call for call in nnx_calls if id(call) not in paired]
    called = {call.path for call in linen_calls if id(call) in partner}
    nnx_called = {call.path for call in nnx_calls if id(call) in paired}

    matched = None
    previous = (-1, -1)
    first = None
    events = _events(pairs)
    for event in events:
        if event.note(tolerance)[1]:
            first = event
            break
        previous = event.times
        if event.what == "output":
            matched = event.linen, event.nnx

    hints: list[str] = []
    linen: Call | None = None
    nnx_call: Call | None = None
    if first is not None:
        linen, nnx_call = first.linen, first.nnx
        inside = first.what == "output"  # calls inside a module that stands for them
        skipped = _between(linen_calls, linen_only, previous[0], first.times[0], inside)
        added = _between(nnx_calls, nnx_only, previous[1], first.times[1], inside)
        if skipped or added:
            linen, nnx_call = next(iter(skipped), None), next(iter(added), None)
            for side, calls in (("Linen", skipped), ("nnx", added)):
                if len(calls) > 1:
                    hints.append(f"it is one of these {side} calls: {_listed(calls)}")
        else:
            parent = _parent(linen_calls, first)
            hints += _hints(first, matched, pairs, parent)
            if first.what == "input" or not hints:
                hints += _rounding_hints(first, events, tolerance)
    if order := _order_hint(pairs):
        hints.append(order)
    inputs, output = ("", "")
    if first is not None and linen is first.linen:
        inputs = first.linen_input_note(tolerance)
        output = _compare(first.linen.output, first.nnx.output, tolerance)[1]
    return Divergence(
        linen=linen,
        nnx=nnx_call,
        input=inputs,
        output=output,
        matched=matched,
        compared=len(pairs),
        linen_only=tuple(call for call in linen_only if call.path not in called),
        nnx_only=tuple(call for call in nnx_only if call.path not in nnx_called),
        hints=tuple(hints),
    )


def last_before_match(
    differing: Iterable[str], calls: Sequence[Call]
) -> tuple[str, str | None] | None:
    """Of modules whose gradients differ, the one called last, and what is called next.

    Gradients flow from the last call to the first, so the cause is in that module or
    between the two.

    Args:
        differing: paths of modules whose own leaves have gradients that differ.
        calls: of the same side.

    Returns:
        Paths of the two; None if none of them is called, and None for the second if
        nothing is.

    Example:
        >>> layers = [nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(2)]
        >>> model = nnx.Sequential(*layers)
        >>> calls = record_nnx(model, lambda: model(jnp.ones(2)))
        >>> last_before_match({"layers/0"}, calls)
        ('layers/0', 'layers/1')
    """
    last = {call.path: call for call in calls}
    candidates = [last[path] for path in differing if path in last]
    if not candidates:
        return None
    call = max(candidates, key=lambda call: call.start)
    following = (other for other in calls if other.start > call.end)
    return call.path, next((other.path for other in following), None)


class _Recorder:
    """Calls as they are made."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._open: list[tuple[str, str]] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._clock = itertools.count()

    def run(
        self,
        of: tuple[str, str, str],
        attributes: Mapping[str, Any],
        signature: inspect.Signature,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        path, kind, method = of
        if (path, method) in self._open:  # of a base class, or inside a transform
            return function(*args, **kwargs)
        settings = _settings(attributes)
        start = next(self._clock)
        self._open.append((path, method))
        try:
            output = function(*args, **kwargs)
        finally:
            self._open.pop()
        leaves = jax.tree.leaves((args, kwargs, output))
        seen = not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        given = signature.bind(*args, **kwargs).arguments if seen else {}
        arrays = {name: _arrays(value) for name, value in given.items()}
        call = Call(
            path=path,
            kind=kind,
            method=method,
            index=self._counts[path, method],
            start=start,
            end=next(self._clock),
            inputs={name: values for name, values in arrays.items() if values},
            output=_arrays(output) if seen else [],
            settings=settings | _settings(given),
            seen=seen,
        )
        self._counts[path, method] += 1
        self._calls.append(call)
        return output

    def in_order(self) -> list[Call]:
        return sorted(self._calls, key=lambda call: call.start)


@dataclass(frozen=True)
class _Event:
    """The beginning or the end of a call that both sides make."""

    what: Literal["input", "output"]
    linen: Call
    nnx: Call

    @property
    def times(self) -> tuple[int, int]:
        if self.what == "input":
            return self.linen.start, self.nnx.start
        return self.linen.end, self.nnx.end

    def arrays(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What is compared, Linen's and nnx's."""
        if self.what == "output":
            return self.linen.output, self.nnx.output
        shared, _, _ = _arguments(self.linen, self.nnx)
        return (
            [array for name, _ in shared for array in self.linen.inputs[name]],
            [array for _, name in shared for array in self.nnx.inputs[name]],
        )

    def note(self, tolerance: Tolerance | None) -> tuple[float, str]:
        return _compare(*self.arrays(), tolerance)

    def linen_input_note(self, tolerance: Tolerance | None) -> str:
        return _Event("input", self.linen, self.nnx).note(tolerance)[1]


def _listed(calls: Sequence[Call]) -> str:
    more = len(calls) - SHOWN
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(map(str, calls[:SHOWN])) + rest


def _is_recorded(method: str) -> bool:
    if method.startswith("_") or method == "<lambda>":  # the latter lifts a transform
        return method == "__call__"
    return method not in ("setup", "initialize_carry")  # no interceptor sees the latter


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, nnx.Module | nnx.Rngs | nnx.RngStream):
        return []
    return [
        to_numpy(leaf)
        for leaf in jax.tree.leaves(value)
        if isinstance(leaf, jax.Array | np.ndarray)
    ]


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Flags, numbers, names and dtypes; of functions, their name."""
    found = {}
    for name, value in attributes.items():
        if name in ("dtype", "param_dtype"):
            with contextlib.suppress(TypeError):  # a name of the model's own
                value = "None" if value is None else jnp.dtype(value).name
        elif callable(value) and not name.endswith("_init"):
            value = getattr(value, "__name__", None)
        if isinstance(value, bool | int | float | str):
            found[name] = value
    return found


def _pairs(
    linen_calls: Sequence[Call], nnx_calls: Sequence[Call], rename: Mapping[str, str]
) -> list[tuple[Call, Call]]:
    """Calls of the same module, method and count, in the order of the Linen side.

    A module that holds no leaves (dropout, a container) cannot be renamed; a call that
    finds no partner by name gets the next of its class in the same parent.
    """
    by_key = {(call.path, call.method, call.index): call for call in linen_calls}
    pairs = []
    left: list[tuple[str, Call]] = []
    for call in nnx_calls:
        path = linen_path(call.path, rename)
        linen = by_key.pop((path, call.method, call.index), None)
        if linen is None:
            left.append((path, call))
        else:
            pairs.append((linen, call))
    alike: dict[Any, list[Call]] = defaultdict(list)
    for linen in by_key.values():
        alike[_kin(linen.path, linen)].append(linen)
    for path, call in left:
        if kin := alike[_kin(path, call)]:
            pairs.append((kin.pop(0), call))
    return sorted(pairs, key=lambda pair: pair[0].start)


def _kin(path: str, call: Call) -> tuple[str, str, str]:
    return path.rpartition("/")[0], call.kind, call.method


def _events(pairs: Iterable[tuple[Call, Call]]) -> list[_Event]:
    events = []
    for linen, nnx_call in pairs:
        events.append(_Event("input", linen, nnx_call))
        events.append(_Event("output", linen, nnx_call))
    return sorted(events, key=lambda event: event.times[0])


def _arguments(
    linen: Call, nnx_call: Call
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Arguments by the same name, then by order; and those that one side lacks."""
    shared = [(name, name) for name in linen.inputs if name in nnx_call.inputs]
    ours = [name for name in linen.inputs if name not in nnx_call.inputs]
    theirs = [name for name in nnx_call.inputs if name not in linen.inputs]
    number = min(len(ours), len(theirs))
    return [*shared, *zip(ours, theirs)], ours[number:], theirs[number:]


def _compare(
    linen: Sequence[np.ndarray],
    nnx_arrays: Sequence[np.ndarray],
    tolerance: Tolerance | None,
) -> tuple[float, str]:
    """The largest difference of two lists of arrays, and what differs, or ''."""
    if len(linen) != len(nnx_arrays):
        return math.inf, f"Linen has {len(linen)} arrays, nnx {len(nnx_arrays)}"
    found = [difference(a, b, tolerance) for a, b in zip(linen, nnx_arrays)]
    wrong = [(size, note) for size, note in found if note]
    return max(wrong, key=lambda item: item[0], default=(0.0, ""))


def _between(
    calls: Sequence[Call], unpaired: Iterable[Call], start: int, end: int, inside: bool
) -> list[Call]:
    """Calls that begin and end between two times, and change something.

    Not those inside one of them, nor a method that a module calls on itself; where the
    two times are `inside` a call, neither those without values, for which it stands.
    """
    found = [
        call
        for call in unpaired
        if start < call.start and call.end < end and not call.is_identity
        if call.seen or not inside
        if not any(call.is_inside(other) and other.path == call.path for other in calls)
    ]
    return [call for call in found if not any(call.is_inside(other) for other in found)]


def _parent(calls: Iterable[Call], event: _Event) -> Call | None:
    """The innermost call around an event."""
    time = event.times[0]
    around = [
        call
        for call in calls
        if call.start < time < call.end and call is not event.linen
    ]
    return max(around, key=lambda call: call.start, default=None)


def _hints(
    first: _Event,
    matched: tuple[Call, Call] | None,
    pairs: Iterable[tuple[Call, Call]],
    parent: Call | None,
) -> Iterator[str]:
    linen, nnx_call = first.linen, first.nnx
    if first.what == "input":
        if parent is None:
            yield "the two sides are called with different inputs"
            return
        after = f"after {matched[0].path or 'the model'}" if matched else "before"
        yield (
            f"its input already differs, so look in {parent}, {after}: an activation, "
            "a reshape, a residual or a mask between two modules"
        )
        around = next((n for c, n in pairs if c is parent), None)
        if around is not None:
            yield from _missing_arguments(parent, around)
        ours, theirs = first.arrays()
        if all(_same_values(a, b) for a, b in zip(ours, theirs)):
            yield "the input has the same values in another order: a transpose?"
        return
    inside = [call for call, _ in pairs if call.is_inside(linen)]
    if inside:
        last = max(inside, key=lambda call: call.end)
        yield (
            f"every call inside it matches, the last is {last}: what differs is its "
            "own code after that"
        )
    yield from _missing_arguments(linen, nnx_call)
    for name, ours in linen.settings.items():
        theirs = nnx_call.settings.get(name, ours)
        if ours != theirs:
            mode = name in MODES
            advice = "; nnx_model.train() and .eval() set the mode" if mode else ""
            yield f"{name} is {ours} in Linen and {theirs} in nnx{advice}"


def _missing_arguments(linen: Call, nnx_call: Call) -> Iterator[str]:
    _, ours_only, theirs_only = _arguments(linen, nnx_call)
    for side, names in (("Linen", ours_only), ("nnx", theirs_only)):
        for name in names:
            yield f"{name} of {linen} is given in {side} only"


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size > 1 and np.array_equal(np.sort(a, None), np.sort(b, None))


def _rounding_hints(
    first: _Event, events: Sequence[_Event], tolerance: Tolerance | None
) -> Iterator[str]:
    """Where the difference becomes one that rounding cannot explain."""
    if _relative(first, tolerance) > ROUNDING:
        return
    larger = (e for e in events if _relative(e, tolerance) > 100 * ROUNDING)
    event = next(larger, None)
    if event is None:
        yield "no difference is larger than rounding would make it"
    else:
        yield (
            f"this may be rounding; the first {event.what} that differs by more is "
            f"that of Linen {event.linen}, nnx {event.nnx}"
        )


def _relative(event: _Event, tolerance: Tolerance | None) -> float:
    size, note = event.note(tolerance)
    if not note:
        return 0.0
    floats = [array for array in event.arrays()[0] if array.dtype.kind in "fV"]
    scale = max((float(np.abs(a).max()) for a in floats if a.size), default=0.0)
    return size / scale if scale else math.inf


def _order_hint(pairs: Sequence[tuple[Call, Call]]) -> str:
    for (_, before), (_, after) in itertools.pairwise(pairs):
        if after.start < before.start:
            return f"the order differs: nnx calls {after} before {before}"
    return ""
