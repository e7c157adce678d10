"""Rename lines that may mend a mapping that does not hold."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from linen2nnx.leaves import describe, keys_as_text
from linen2nnx.mapping.names import LinenNames, NNXLeaf


def suggestions(
    unused: Mapping[str, Any],
    unfilled: Mapping[str, list[str]],
    nnx_leaves: Mapping[str, NNXLeaf],
    names: LinenNames,
) -> list[str]:
    """Rename lines for unmatched modules, the largest that fit, then for leaves."""
    linen_modules = _linen_modules(unused)
    nnx_modules = _nnx_modules(unfilled, nnx_leaves, names)
    paths = [name.partition("/")[2] for name in unused]
    pairs: dict[str, str] = {}
    others: dict[str, list[str]] = {}

    def is_free(path: str, taken: Iterable[str]) -> bool:
        return not any(_overlap(path, other) for other in taken)

    def pair(nnx_path: str, fits: list[str]) -> None:
        fits = [path for path in fits if path in pairs or is_free(path, pairs)]
        free = [path for path in fits if path not in pairs]
        if free and is_free(nnx_path, pairs.values()):
            pairs[free[0]] = nnx_path
            others[free[0]] = [path for path in fits if path != free[0]]

    def largest_first(path: str) -> Any:
        return -len(nnx_modules[path]), path.count("/"), _natural(path)

    for path in sorted(nnx_modules, key=largest_first):
        asked = nnx_modules[path]
        pair(path, [name for name in linen_modules if linen_modules[name] == asked])
    for path, parts in unfilled.items():
        collection, *_, last = parts[0].split("/")
        fits = []
        for name, leaf in unused.items():
            inside = name.partition("/")[2]
            if (
                len(parts) == 1
                and not nnx_leaves[path].inner
                and name.startswith(f"{collection}/")
                and describe(leaf) == describe(nnx_leaves[path])
                and (inside in pairs or is_free(inside, pairs))
            ):
                fits.append(name if paths.count(inside) > 1 else inside)
        pair(path, [fit for fit in fits if f"/{fit}".endswith(f"/{last}")] or fits)
    return [
        f'"{linen_path}": "{nnx_path}",' + _or(others[linen_path])
        for linen_path, nnx_path in pairs.items()
    ]


def _or(others: list[str]) -> str:
    if not others:
        return ""
    rest = f" or {len(others) - 3} more" if len(others) > 3 else ""
    return f"  # or {', '.join(others[:3])}{rest}"


def _natural(name: str) -> list[Any]:
    """A sort key by which `_10` comes after `_2`."""
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)]


def _overlap(path: str, other: str) -> bool:
    """Whether one of two modules is the other or lies in it."""
    return f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")


def _linen_modules(unused: Mapping[str, Any]) -> dict[str, set[str]]:
    """What each Linen module holds."""
    held = defaultdict(set)
    for name, leaf in unused.items():
        collection, *path = name.split("/")
        for length in range(1, len(path)):
            inside = "/".join([collection, *path[length:]])
            held["/".join(path[:length])].add(f"{inside} {describe(leaf)}")
    return {name: held[name] for name in sorted(held, key=_natural)}


def _nnx_modules(
    unfilled: Mapping[str, list[str]],
    nnx_leaves: Mapping[str, NNXLeaf],
    names: LinenNames,
) -> dict[str, set[str]]:
    """What each nnx module, or Variable of a pytree, asks for inside its Linen one."""
    asked = defaultdict(set)
    for path, parts in unfilled.items():
        leaf, collection = nnx_leaves[path], parts[0].partition("/")[0]
        shape = leaf.shape
        if len(parts) > 1 and shape:
            shape = (*shape[:-1], shape[-1] // len(parts))
        for length in range(1, len(leaf.keys) + bool(leaf.inner)):
            module = names.of_path(collection, leaf.keys[:length])
            for part in parts:
                inside = part.removeprefix(module)  # of a list, nothing is inside
                entry = f"{collection}{inside} {shape} {leaf.dtype}"
                asked[keys_as_text(leaf.keys[:length])].add(entry)
    return dict(asked)
