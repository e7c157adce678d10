"""Two pytrees of arrays, compared leaf by leaf."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from linen2nnx.parity.differences import Tolerance, difference, leaves
from linen2nnx.parity.report import Report, Row


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
        >>> import numpy as np
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
        >>> import numpy as np
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
    record(rows)
    return Report(rows)


def record(rows: list[Row]) -> None:
    """Add rows of one check to every recording; raise if any differs."""
    for recorded in _recordings.get():
        recorded.extend(rows)
    wrong = [row for row in rows if row.note]
    if wrong:
        head = f"{wrong[0].check}: {len(wrong)} of {len(rows)} leaves differ"
        raise ParityError("\n    ".join([head, *map(str, wrong)]))
