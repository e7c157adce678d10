"""The two modes of nnx."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

Mode = Literal["graph", "tree"]

MODES: tuple[Mode, ...] = ("graph", "tree")


def in_mode(mode: Mode | None) -> AbstractContextManager[Any]:
    """A context in which nnx is in that mode; None leaves it as it is.

    Raises:
        AttributeError: in tree mode, before flax 0.12.6: graph mode was the only one.
    """
    if mode is None:
        return nullcontext()
    from flax import nnx

    if mode == "graph" and not hasattr(nnx, "set_graph_mode"):
        return nullcontext()
    return nnx.set_graph_mode(mode == "graph")


def current_mode() -> Mode:
    """The mode that nnx is in; before flax 0.12.6 that is graph mode."""
    from flax import nnx

    if not hasattr(nnx, "set_graph_mode"):
        return "graph"
    return "graph" if nnx.set_graph_mode.current_value() else "tree"
