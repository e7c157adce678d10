"""Leaves of Linen variables, an nnx state or any pytree: their paths, in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

Variables = Mapping[str, Any]


VALUE = jax.tree_util.GetAttrKey("value")  # of an nnx Variable, or of a box


class MappingError(ValueError):
    """Linen variables and an nnx model do not correspond leaf by leaf."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of Linen variables, an nnx state or any pytree, by `/`-joined path.

    The `.value` of an nnx Variable or of a box such as `nn.Partitioned` is left out.

    Raises:
        MappingError: if two leaves have one path.

    Example:
        >>> flatten({"params": {"layers_0": {"kernel": 1.0}}})
        {'params/layers_0/kernel': 1.0}
    """
    return {name: leaf for name, (_, leaf) in flatten_with_keys(tree).items()}


def flatten_with_keys(tree: Any) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """As `flatten`, with the key path beside each leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = Counter(path_as_text(path) for path, _ in leaves)
    if double := [name for name, count in names.items() if count > 1]:
        raise MappingError(f"more than one leaf has the path {', '.join(double)}")
    return {path_as_text(path): (path, leaf) for path, leaf in leaves}


def describe(leaf: Any) -> str:
    """Shape and dtype of an array-like, as in an error: `(3, 2) float32`."""
    return f"{tuple(leaf.shape)} {leaf.dtype}"


def keys_as_text(keys: Sequence[Any]) -> str:
    """Keys of a state as text. A tuple is one key in WeightNorm and SpectralNorm."""
    return "/".join(
        keys_as_text(key) if isinstance(key, tuple) else str(key) for key in keys
    )


def path_as_text(path: tuple[Any, ...]) -> str:
    """A key path as text, without the `.value` of a Variable or a box."""
    keys = [
        getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))
        for key in path
        if key != VALUE
    ]
    return keys_as_text(keys)
