"""Checks for the arguments of a problem's entry function.

Each takes the argument's name and what the caller gave, and returns the checked value,
or raises an error that names the argument, what it got and what it takes.
"""

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, freeze
from jaxtyping import Array, Float

_MIN_SEED, _MAX_SEED = -(2**31), 2**32 - 1
_MAX_SIZE = 2**31 - 1


def seed(name: str, got: Any) -> int:
    """A whole number of 32 bits, signed or not; `4.0` and numpy scalars are 4.

    JAX would cut a larger one to its last 32 bits, silently.

    Raises:
        TypeError: if it is no real number, or a bool.
        ValueError: if it is not whole, or out of range.

    Example:
        >>> seed("seed", 4.0)
        4
    """
    return _whole(name, got, _MIN_SEED, _MAX_SEED)


def size(name: str, got: Any) -> int:
    """A whole number from 1, such as a width; `4.0` and numpy scalars are 4.

    Raises:
        TypeError: if it is no real number, or a bool.
        ValueError: if it is not whole, or below 1.

    Example:
        >>> size("features", -2)
        Traceback (most recent call last):
        ValueError: features takes a whole number from 1 to 2147483647, got -2
    """
    return _whole(name, got, 1, _MAX_SIZE)


def count(name: str, got: Any) -> int:
    """A whole number from 0; `4.0` and numpy scalars are 4.

    Raises:
        TypeError: if it is no real number, or a bool.
        ValueError: if it is not whole, or negative.

    Example:
        >>> count("num_extra_layers", 0)
        0
    """
    return _whole(name, got, 0, _MAX_SIZE)


def number(name: str, got: Any) -> float:
    """A finite real number, as a Python float.

    Raises:
        TypeError: if it is no real number, or a bool.
        ValueError: if it is nan or infinite.

    Example:
        >>> number("scale", 2)
        2.0
    """
    takes = "a finite number"
    value = float(_real(name, got, takes))
    if not np.isfinite(value):
        _wrong(ValueError, name, got, takes)
    return value


def vector(name: str, got: Any) -> Float[Array, "n"]:
    """A real array of shape (n,), n >= 1; integers become float32.

    Raises:
        TypeError: if it is not numeric: bools, complex numbers, text, objects.
        ValueError: if it is not 1-D, or empty.

    Example:
        >>> vector("x", [1, 2])
        Array([1., 2.], dtype=float32)
    """
    takes = "a 1-D array of real numbers, of length 1 or more"
    try:
        array = np.asarray(got)
    except (TypeError, ValueError):  # a ragged list; an object that refuses
        _wrong(TypeError, name, got, takes)
    if not _is_real(array.dtype):
        _wrong(TypeError, name, got, takes)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} takes {takes}, got shape {array.shape}")
    return jnp.asarray(array.astype(np.float32) if array.dtype.kind in "iu" else array)


def starting_variables(
    name: str, got: Any, module: nn.Module, seed: int, x: Float[Array, "n"]
) -> FrozenDict:
    """The variables a Linen entry function starts from: what it got, or fresh ones.

    Args:
        name: the argument's name.
        got: None, or variables, a dict or a `FrozenDict`, with the collections, paths
            and shapes of the module's own; any floating dtype.
        module: initialised from `seed` with input `x` where `got` is None.
        seed: as from `seed`.
        x: as from `vector`.

    Raises:
        TypeError: if it is no mapping, or a leaf is no floating array.
        ValueError: if a collection, path or shape is not the module's; every such leaf
            is named.
    """
    if got is None:
        return freeze(module.init(jax.random.key(seed), x))
    takes = "None or the variables of the module"
    if not isinstance(got, Mapping):
        _wrong(TypeError, name, got, takes)
    expected = _shapes_of_variables(module, x.shape, x.dtype)
    held = _shapes(got)
    differing = [
        f"{path} takes {expected.get(path, 'nothing')}, got {held.get(path, 'nothing')}"
        for path in expected | held
        if held.get(path) != expected.get(path)
    ]
    if differing:
        raise ValueError(f"{name} takes {takes}, but\n    " + "\n    ".join(differing))
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            leaf_name = name + jax.tree_util.keystr(path)
            raise TypeError(f"{leaf_name} takes a floating array, got {leaf!r}")
    return freeze(got)


@functools.lru_cache
def _shapes_of_variables(
    module: nn.Module, shape: tuple[int, ...], dtype: Any
) -> dict[str, tuple[int, ...]]:
    x = jax.ShapeDtypeStruct(shape, dtype)
    return _shapes(jax.eval_shape(module.init, jax.random.key(0), x))


def _whole(name: str, got: Any, low: int, high: int) -> int:
    takes = f"a whole number from {low} to {high}"
    value = _real(name, got, takes)
    if not np.isfinite(value) or value != int(value) or not low <= value <= high:
        _wrong(ValueError, name, got, takes)
    return int(value)


def _real(name: str, got: Any, takes: str) -> Any:
    """A real Python number, from one or from a numpy or JAX scalar."""
    if isinstance(got, int | float) and not isinstance(got, bool):
        return got
    scalar = isinstance(got, np.generic | np.ndarray | jax.Array) and got.ndim == 0
    if not scalar or not _is_real(got.dtype):
        _wrong(TypeError, name, got, takes)
    return got.item()


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def _wrong(error: type[Exception], name: str, got: Any, takes: str) -> NoReturn:
    raise error(f"{name} takes {takes}, got {got!r}")
