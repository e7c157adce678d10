"""The same random keys on both sides, and statistics where keys cannot be the same.

One seed never gives both sides the same mask: Linen folds a hash of the module's path
into the key, nnx counts the keys that a stream gave. So the n-th key that either side
draws is made the same here.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from linen2nnx.parity.differences import leaves

Randomness = Literal["deterministic", "same keys", "statistics"]
KINDS: tuple[Randomness, ...] = get_args(Randomness)
NOT_IN_STATISTICS = ("state", "gradients", "optimizer step")
DRAWS = 1000
SIGMAS = 6.0  # of 1e9 equal values, two are further apart


@contextlib.contextmanager
def same_keys(key: jax.Array) -> Iterator[None]:
    """Give either side, as its n-th random key, `fold_in(key, n)`.

    `make_rng` of Linen modules and the streams of `nnx.Rngs` are replaced meanwhile.
    The keys that only nnx draws, for the carry of a recurrent cell, are not counted.

    Example:
        >>> x, model = jax.numpy.ones(8), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        >>> with same_keys(jax.random.key(0)):
        ...     linen = nn.Dropout(0.5, deterministic=False).apply({}, x)
        >>> with same_keys(jax.random.key(0)):
        ...     ported = model(x)
        >>> bool((linen == ported).all())
        True
    """
    count = itertools.count()

    def make_rng(module: nn.Module, name: str = "params") -> jax.Array:
        return jax.random.fold_in(key, next(count))

    def next_key(stream: nnx.RngStream) -> jax.Array:
        if sys._getframe(1).f_code.co_name == "initialize_carry":
            return key
        return jax.random.fold_in(key, next(count))

    with (
        mock.patch.object(nn.Module, "make_rng", make_rng),
        mock.patch.object(nnx.RngStream, "__call__", next_key),
    ):
        yield


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Collect the name of the stream of every key that an nnx model draws.

    Example:
        >>> model = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))
        >>> with counted() as drawn:
        ...     _ = model(jax.numpy.ones(8))
        >>> drawn
        ['dropout']
    """
    drawn: list[str] = []
    draw = nnx.RngStream.__call__

    def next_key(stream: nnx.RngStream) -> jax.Array:
        drawn.append(stream.tag)
        return draw(stream)

    with mock.patch.object(nnx.RngStream, "__call__", next_key):
        yield drawn


def compare_statistics(
    linen: Callable[[], Any], ported: Callable[[], Any]
) -> Iterator[tuple[str, np.ndarray, float, str]]:
    """Compare mean and variance over `DRAWS` calls with other keys.

    They may differ by six standard errors, and by what rounding explains.

    Args:
        linen: draws random keys and returns a pytree of arrays.
        ported: likewise of nnx, the same pytree.

    Yields:
        Name, Linen's value, largest difference, and what differs or ''.

    Example:
        >>> x, model = jax.numpy.ones(8), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        >>> module = nn.Dropout(0.4, deterministic=False)
        >>> found = compare_statistics(lambda: module.apply({}, x), lambda: model(x))
        >>> [(name, note != "") for name, _, _, note in found]
        [('mean', False), ('variance', True)]
    """
    ours, theirs = (
        leaves(_draw(run, jax.random.key(seed)))
        for seed, run in enumerate((linen, ported))
    )
    for path, samples in ours.items():
        if path not in theirs or theirs[path].shape != samples.shape:
            yield path, samples[0], np.inf, "of another shape or missing in nnx"
            continue
        a, b = samples.astype(np.float64), theirs[path].astype(np.float64)
        moments = {
            "mean": (a, b),
            "variance": ((a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2),
        }
        for name, (x, y) in moments.items():
            gap = np.abs(x.mean(0) - y.mean(0))
            error = np.sqrt((x.var(0) + y.var(0)) / DRAWS)
            allowed = SIGMAS * error + 1e-5 * (1 + np.abs(x.mean(0)))
            wrong = int((gap > allowed).sum())
            note = (
                f"the {name} over {DRAWS} draws differs in {wrong} of {gap.size} "
                f"values by up to {gap.max():.3g}"
            )
            label = f"{name} of {path}" if path else name
            yield label, x.mean(0), float(gap.max(initial=0)), note if wrong else ""


def _draw(run: Callable[[], Any], key: jax.Array) -> Any:
    def draw(key: jax.Array) -> Any:
        with same_keys(key):
            return run()

    keys = jax.random.split(key, DRAWS)
    return jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=50))(keys)
