"""The same change of a model on both sides, and what it may change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from linen2nnx.leaves import Variables
from linen2nnx.parity.differences import difference, leaves
from linen2nnx.parity.equal import ParityError
from linen2nnx.parity.programs import snapshot, state_of


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


def linen_edit(edit: Edit) -> Callable[[Any], Any]:
    """Variables to edited variables and to what the edit left of its source."""

    def run(variables: Any) -> tuple[Any, Any]:
        source = snapshot(variables)
        return edit.linen(source), source

    return run


def nnx_edit(edit: Edit, graphdef: Any) -> Callable[[Any], Any]:
    """State to edited graphdef and state, and to the source's state if it is kept."""

    def run(state: Any) -> tuple[Any, Any, Any]:
        model = nnx.merge(graphdef, snapshot(state))
        edited = edit.nnx(model)
        source = None if edited is None else state_of(model)
        edited_graphdef, edited_state = nnx.split(model if edited is None else edited)
        return edited_graphdef, snapshot(edited_state), source

    return run


def assert_changes(before: Variables, after: Variables, changes: Sequence[str]) -> None:
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


def assert_untouched(before: Variables, after: Variables) -> None:
    """The Linen edit left the variables that it was given as they were."""
    old, new = leaves(before), leaves(after)
    wrong = [p for p in old | new if difference(old.get(p), new.get(p), None)[1]]
    if wrong:
        lines = ["edit: the Linen edit changed its own source", *wrong]
        raise ParityError("\n    ".join(lines))
