"""How far two arrays differ, as a number and in words."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from linen2nnx.leaves import describe, flatten


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


def difference(
    linen: np.ndarray | None, nnx: np.ndarray | None, tolerance: Tolerance | None
) -> tuple[float, str]:
    """The largest difference of two leaves, and what differs in words or ''.

    Args:
        linen: of any shape and dtype; None where Linen has no such leaf.
        nnx: likewise.
        tolerance: None is exact: the same bits, except that any nan equals any nan.

    Returns:
        inf where shapes or dtypes differ, nan where one side is nan and the other not.

    Example:
        >>> difference(np.zeros(2), np.array([0.0, 0.5]), None)
        (0.5, '1 of 2 values differ by up to 0.5 at [1], Linen 0.0, nnx 0.5')
    """
    if linen is None or nnx is None:
        return math.inf, "only in Linen" if nnx is None else "only in nnx"
    if linen.shape != nnx.shape or linen.dtype != nnx.dtype:
        return math.inf, f"nnx has {describe(nnx)}"
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
        f"{where}, Linen {linen[at]!s}, nnx {nnx[at]!s}"
    )


def to_numpy(leaf: Any) -> np.ndarray:
    """An array of any kind; of random keys, their integers."""
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree by path."""
    return {path: to_numpy(leaf) for path, leaf in flatten(tree).items()}


def is_float(leaf: Any) -> bool:
    """Whether a leaf is of a real or complex floating dtype."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
