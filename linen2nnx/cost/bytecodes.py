"""Count the Python bytecodes that a call executes: the same number every time.

A change in this number is a change in what a framework does on a call, whatever the
machine and its noise. Work in C++ is not in it: it is no time. Counting needs Python
3.12 or newer, whose `sys.monitoring` reports each instruction.
"""

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

from linen2nnx.cost.arms import EAGER, EDIT, JITTED, Benchmark, checked_arm
from linen2nnx.modes import in_mode

WHATS = (JITTED, EAGER, EDIT)
SIZES = 2  # the smallest numbers of layers that are counted

_MOST_CALLS = 20
_ALIKE = 3


def count(function: Callable[[], Any]) -> int:
    """Bytecodes that one call of `function` executes, once its caches are filled.

    Args:
        function: is called until three calls in a row execute as many.

    Raises:
        RuntimeError: before Python 3.12, or if no three of twenty calls in a row agree.

    Example:
        >>> import sys
        >>> if sys.version_info >= (3, 12):
        ...     assert count(lambda: [abs(i) for i in range(9)]) > count(lambda: 0)
    """
    if sys.version_info < (3, 12):
        raise RuntimeError("counting bytecodes takes Python 3.12 or newer")
    counts: list[int] = []
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(_MOST_CALLS):
            counts.append(_count_once(function))
            if len(counts) >= _ALIKE and len(set(counts[-_ALIKE:])) == 1:
                return counts[-1]
    finally:
        if collects:
            gc.enable()
    raise RuntimeError(f"calls do not execute the same bytecodes: {counts}")


def _count_once(function: Callable[[], Any]) -> int:
    monitoring = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    tool = monitoring.PROFILER_ID
    thread = threading.get_ident()
    executed = 0

    def add(code: Any, offset: int) -> None:
        nonlocal executed
        if threading.get_ident() == thread:
            executed += 1

    monitoring.use_tool_id(tool, "linen2nnx")
    try:
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, add)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            function()
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
    finally:
        monitoring.free_tool_id(tool)
    return executed


def counts(benchmark: Benchmark) -> list[dict[str, Any]]:
    """What a call of each idiom of a benchmark executes.

    Returns:
        The fields of a `linen2nnx.suite.records.Count` each. Where an idiom raises an
        error, `bytecodes` is None and `error` says which: an older flax does not have
        all idioms.
    """
    found = []
    for layers in benchmark.layers[:SIZES]:
        for what in WHATS:
            for idiom, mode in benchmark.idioms.get(what, []):
                row = {"what": what, "idiom": idiom, "mode": mode, "layers": layers}
                row |= {"bytecodes": None, "error": ""}
                try:
                    arm = checked_arm(benchmark, what, idiom, mode, layers)
                    with in_mode(mode):
                        row["bytecodes"] = count(arm.function)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"
                found.append(row)
    return found
