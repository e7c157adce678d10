"""Linen variables to nnx state and back, by a table that is total both ways.

A Linen leaf is named by its collection and path, `params/layers_0/kernel`; an nnx
leaf by its path, `layers/0/kernel`. These rules turn an nnx name into the Linen one:

* the Variable's type names the collection, as flax registers it (`nnx.Param` is
  `params`, `nnx.BatchStat` is `batch_stats`, your own after
  `nnx.register_variable_name("counter", Counter)`);
* an index joins the name before it, and so does the key of a dict where Linen has that
  name: `layers/0` is `layers_0`, `heads/left` is `heads_left`;
* the underscore that a Python keyword needs goes: `if_` is `if`;
* a layer that flax built differently has its own names: the recurrent cells, of which
  nnx holds several Dense layers in one (`dense_i/kernel` of an `OptimizedLSTMCell` is
  `ii/kernel`, `if/kernel`, `ig/kernel` and `io/kernel` side by side), and the layers
  that `WeightNorm` and `SpectralNorm` wrap.

What the rules do not say, `rename` does: `{"Dense_0": "encoder/layers/0"}` reads "the
Linen module or leaf `Dense_0` is the nnx module or leaf `encoder/layers/0`". RNG state
has no Linen counterpart and is left alone, by type.

Nothing is guessed, cast, transposed or padded. Each Linen leaf is used once and each
nnx leaf filled once, with the same shape and dtype, or `MappingError` lists every leaf
for which that fails and the rename lines that may mend it.
"""

import itertools
import keyword
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Variables = Mapping[str, Any]
Model = TypeVar("Model", nnx.Module, nnx.State)

# The Linen layers that a layer of an nnx cell holds, in order along its last axis.
_GATES: dict[type, dict[str, tuple[str, ...]]] = {
    nnx.OptimizedLSTMCell: {
        "dense_i": ("ii", "if", "ig", "io"),
        "dense_h": ("hi", "hf", "hg", "ho"),
    },
    nnx.GRUCell: {"dense_i": ("ir", "iz", "in"), "dense_h": ("hr", "hz", "hn")},
    nnx.SimpleCell: {"dense_i": ("i",), "dense_h": ("h",)},
}
_VALUE = jax.tree_util.GetAttrKey("value")  # of an nnx Variable, or of a box


class MappingError(ValueError):
    """Linen variables and an nnx model do not correspond leaf by leaf."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a Linen leaf and the nnx leaf that holds its value.

    Attributes:
        linen: collection and path, such as `params/layers_0/kernel`.
        nnx: path, such as `layers/0/kernel`.
        shape: the shape of the Linen leaf, and of the nnx leaf if that is the whole.
        dtype: the dtype of both.
        columns: None where the two leaves are the same array; where the nnx leaf holds
            several Linen leaves, the start and stop of this one along the last axis.
    """

    linen: str
    nnx: str
    shape: tuple[int, ...]
    dtype: Any
    columns: tuple[int, int] | None = None


def table(
    variables: Variables,
    model: nnx.Module | nnx.State,
    *,
    rename: Mapping[str, str] | None = None,
) -> list[Row]:
    """Pair every Linen leaf with its nnx leaf, in the order of the nnx model.

    Args:
        variables: Linen variables by collection, arrays or `jax.ShapeDtypeStruct`s.
        model: an nnx model or its state, real or from `nnx.eval_shape`. A state does
            not tell types of layers: there a recurrent cell is known by its shapes.
        rename: Linen path to nnx path, of modules or leaves; the longest nnx path that
            fits a leaf decides. The Linen path is without its collection, or with it
            where one path is in two collections.

    Returns:
        One row for each Linen leaf.

    Raises:
        MappingError: if any leaf on either side has no partner, more than one, or one
            of another shape or dtype, or if a rename applies to nothing.
        TypeError: if one of the two is something else, such as a Linen module.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones(3))
        >>> [(row.linen, row.nnx, row.shape) for row in table(variables, model)]
        [('params/bias', 'bias', (2,)), ('params/kernel', 'kernel', (3, 2))]
    """
    linen_leaves = _linen_leaves(variables)
    nnx_leaves = _nnx_leaves(model)
    problems = _Problems()
    names = _LinenNames(model, linen_leaves, nnx_leaves, rename or {})
    wanted = _wanted(names, nnx_leaves, problems)
    if not problems.by_kind:
        _check_collections(linen_leaves, wanted)

    rows: list[Row] = []
    owners = defaultdict(list)
    for path, parts in wanted.items():
        for name in parts:
            owners[name].append(path)
        rows += _rows(path, nnx_leaves[path], parts, linen_leaves, problems)
    for name, paths in owners.items():
        if len(paths) > 1:
            problems.add(
                "Linen leaves wanted by more than one nnx leaf",
                f"{name}  ->  {', '.join(paths)}",
            )
    unused = {name: leaf for name, leaf in linen_leaves.items() if name not in owners}
    for name in [*unused]:
        cell = _gru_without_bias(name, owners)
        if cell is not None:
            leaf, path = unused.pop(name), name.partition("/")[2]
            problems.add(
                _NO_RECURRENT_BIAS,
                f'{name} {describe(leaf)}  "{path}": "{cell}hn_bias"',
            )
    for name, leaf in unused.items():
        problems.add("Linen leaves that no nnx leaf takes", f"{name} {describe(leaf)}")
    unfilled = {}
    for path, parts in wanted.items():
        if missing := [name for name in parts if name not in linen_leaves]:
            unfilled[path] = parts
            asked = f"(looked for {', '.join(missing)})"
            problems.add(
                "nnx leaves that no Linen leaf fills",
                f"{path} {describe(nnx_leaves[path])} {asked}",
            )
    problems.suggestions = _suggestions(unused, unfilled, nnx_leaves, names)
    problems.raise_if_any()
    return rows


def to_nnx(
    variables: Variables, target: Model, *, rename: Mapping[str, str] | None = None
) -> Model:
    """Put Linen variables into an nnx model. The inverse of `to_linen`.

    Args:
        variables: Linen variables by collection, a dict or a `FrozenDict` of arrays.
        target: an nnx model or state that gives structure, shapes, dtypes and RNG
            state, real or from `nnx.eval_shape`. It is not changed.
        rename: as for `table`.

    Returns:
        A model (or state, if `target` is one) like `target` that holds the values. RNG
        state is that of `target`: abstract if `target` is.

    Raises:
        MappingError, TypeError: as for `table`; also if a leaf to be read is abstract.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones(3))
        >>> target = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> model = to_nnx(variables, target)
        >>> bool((model.kernel[...] == variables["params"]["kernel"]).all())
        True
    """
    rows = table(variables, target, rename=rename)
    leaves = flatten(variables)
    _check_values("Linen leaves", [row.linen for row in rows], leaves)
    parts = defaultdict(list)
    for row in rows:
        parts[row.nnx].append(leaves[row.linen])
    values = {
        path: held[0] if len(held) == 1 else _concatenate(held)
        for path, held in parts.items()
    }
    if isinstance(target, nnx.State):
        return _replace_leaves(target, values)
    graphdef, state = nnx.split(target)
    return nnx.merge(graphdef, _replace_leaves(state, values))


def to_linen(
    model: nnx.Module | nnx.State,
    target: Variables,
    *,
    rename: Mapping[str, str] | None = None,
) -> Variables:
    """Read Linen variables out of an nnx model. The inverse of `to_nnx`.

    Args:
        model: an nnx model or its state. It is not changed.
        target: Linen variables that give structure, shapes, dtypes and kind of dict,
            real or from `jax.eval_shape(module.init, key, x)`.
        rename: as for `table`.

    Returns:
        Variables like `target` that hold the model's values.

    Raises:
        MappingError, TypeError: as for `table`; also if a leaf to be read is abstract.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> target = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), jnp.ones(3))
        >>> variables = to_linen(model, target)
        >>> bool((variables["params"]["kernel"] == model.kernel[...]).all())
        True
    """
    rows = table(target, model, rename=rename)
    leaves = flatten(nnx.state(model) if isinstance(model, nnx.Module) else model)
    _check_values("nnx leaves", [row.nnx for row in rows], leaves)
    values = {
        row.linen: leaves[row.nnx][..., slice(*row.columns)]
        if row.columns
        else leaves[row.nnx]
        for row in rows
    }
    return _replace_leaves(target, values)


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of Linen variables, an nnx state or any pytree, by `/`-joined path.

    The `.value` of an nnx Variable or of a box such as `nn.Partitioned` is left out.

    Raises:
        MappingError: if two leaves have one path.

    Example:
        >>> flatten({"params": {"layers_0": {"kernel": 1.0}}})
        {'params/layers_0/kernel': 1.0}
    """
    return {name: leaf for name, (_, leaf) in _flatten_with_keys(tree).items()}


def _flatten_with_keys(tree: Any) -> dict[str, tuple[tuple[Any, ...], Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = Counter(_join(path) for path, _ in leaves)
    if double := [name for name, count in names.items() if count > 1]:
        raise MappingError(f"more than one leaf has the path {', '.join(double)}")
    return {_join(path): (path, leaf) for path, leaf in leaves}


def describe(leaf: Any) -> str:
    """Shape and dtype of an array-like, as in an error: `(3, 2) float32`."""
    return f"{tuple(leaf.shape)} {leaf.dtype}"


_NO_RECURRENT_BIAS = (
    "Linen leaves without a place in nnx, as nnx.GRUCell has no bias in dense_h "
    "(flax#5594): leave one out if it is all zero; else give a subclass of nnx.GRUCell "
    "a Param that its __call__ adds, and rename, for instance"
)


def _linen_leaves(variables: Variables) -> dict[str, Any]:
    if not isinstance(variables, Mapping) or isinstance(variables, nnx.State):
        raise TypeError(
            f"the Linen variables are a {type(variables).__name__}; they take the dict "
            "of collections that module.init(key, x) returns"
        )
    leaves = flatten(variables)
    problems = _Problems()
    for name, leaf in leaves.items():
        if not hasattr(leaf, "shape"):
            problems.add("Linen leaves that are no arrays", f"{name} is {leaf!r}")
        elif name in variables:
            problems.add(
                'Linen leaves outside a collection (variables take {"params": ...})',
                f"{name} {describe(leaf)}",
            )
    problems.raise_if_any()
    return leaves


@dataclass(frozen=True)
class _NNXLeaf:
    """An array of an nnx model.

    `keys` lead to its Variable, and `inner` on to the array where the Variable's value
    is a pytree; `type` is that of the Variable, or of the array if there is none.
    """

    keys: tuple[Any, ...]
    inner: str
    type: type
    shape: tuple[int, ...]
    dtype: Any


def _nnx_leaves(model: nnx.Module | nnx.State) -> dict[str, _NNXLeaf]:
    """The leaves of a model by path, without RNG state."""
    if not isinstance(model, nnx.Module | nnx.State):
        raise TypeError(
            f"the nnx model is a {type(model).__name__}; it takes an nnx.Module or an "
            "nnx.State"
        )
    state = nnx.state(model) if isinstance(model, nnx.Module) else model
    types = {path: _type(leaf) for path, leaf in nnx.to_flat_state(state)}
    leaves = {}
    problems = _Problems()
    for name, (path, value) in _flatten_with_keys(state).items():
        to_variable = itertools.takewhile(lambda key: key != _VALUE, path)
        keys = tuple(key.key for key in to_variable)
        if issubclass(types[keys], nnx.RngState):
            continue
        if not hasattr(value, "shape"):
            problems.add("nnx leaves that are no arrays", f"{name} is {value!r}")
            continue
        inner = _join(path[len(keys) :])
        shape = tuple(value.shape)
        leaves[name] = _NNXLeaf(keys, inner, types[keys], shape, value.dtype)
    problems.raise_if_any()
    return leaves


def _type(leaf: Any) -> type:
    """The Variable type of a leaf of a state: before flax 0.12 a `VariableState`."""
    return leaf.type if type(leaf).__name__ == "VariableState" else type(leaf)


class _LinenNames:
    """The Linen names that nnx paths ask for."""

    def __init__(
        self,
        model: nnx.Module | nnx.State,
        linen_leaves: Mapping[str, Any],
        nnx_leaves: Mapping[str, _NNXLeaf],
        rename: Mapping[str, str],
    ) -> None:
        self.model = model
        self.linen_leaves = linen_leaves
        self.nnx_leaves = nnx_leaves
        self.linen_starts = {  # of every name, up to an end of a module, list or dict
            name[: end.start()]
            for name in linen_leaves
            for end in re.finditer("[/_]|$", name)
        }
        self.by_target = {
            nnx_path: linen_path for linen_path, nnx_path in rename.items()
        }
        if len(self.by_target) < len(rename):
            raise MappingError(f"rename gives two Linen paths one nnx path: {rename}")
        self.used: set[str] = set()

    def of_leaf(self, collection: str, leaf: _NNXLeaf) -> list[str]:
        """The Linen leaves that an nnx leaf holds side by side; mostly it is one."""
        plain = self.of_path(collection, leaf.keys)
        if leaf.inner:
            return [f"{plain}/{leaf.inner}"]
        if plain in self.linen_leaves or _text(leaf.keys) in self.by_target:
            return [plain]
        match leaf.keys:
            case (*norm, "scales", tuple(inner)):
                return [self._of_wrapped(collection, norm, inner, "scale")]
            case (*norm, "batch_stats", (*inner, stat)):
                return [self._of_wrapped(collection, norm, inner, stat)]
            case (*cell, "dense_i" | "dense_h" as dense, name):
                linen_cell = self.of_path(collection, cell)
                gates = self._gates(cell).get(dense, ())
                if gates and _text((*cell, dense)) not in self.by_target:
                    return [f"{linen_cell}/{gate}/{name}" for gate in gates]
        return [plain]

    def of_path(self, collection: str, keys: Sequence[Any]) -> str:
        """The Linen name, with collection, of the module or leaf at these keys."""
        length = len(keys)
        while length and _text(keys[:length]) not in self.by_target:
            length -= 1
        name = collection
        if length:
            self.used.add(_text(keys[:length]))
            linen_path = self.by_target[_text(keys[:length])]
            name = f"{collection}/{linen_path}"
            if (
                linen_path.startswith(f"{collection}/")
                and name not in self.linen_starts
            ):
                name = linen_path
        for at in range(length, len(keys)):
            key = _text(keys[at : at + 1])
            below = (
                key[:-1] if key.endswith("_") and keyword.iskeyword(key[:-1]) else key
            )
            below, joined = f"{name}/{below}", f"{name}_{key}"
            is_item = key.isdigit() or (
                below not in self.linen_starts
                and joined in self.linen_starts
                and self._may_be_dict(keys[:at])
            )
            name = joined if is_item and at else below
        return name

    def _of_wrapped(
        self, collection: str, norm: Sequence[Any], inner: Sequence[Any], last: str
    ) -> str:
        """A leaf that WeightNorm or SpectralNorm keeps for a leaf of its layer.

        Linen names it by the layer's name: `layer_instance`, or the layer's own where
        that was made in a `@nn.compact` method.
        """
        layer = self.of_path(collection, (*norm, "layer_instance"))
        leaf = self.of_path(collection, (*norm, "layer_instance", *inner))
        parent, _, _ = layer.rpartition("/")
        return self.of_path(collection, norm) + leaf.removeprefix(parent) + f"/{last}"

    def _gates(self, cell: Sequence[Any]) -> Mapping[str, tuple[str, ...]]:
        """The gates that the layers of this recurrent cell hold; empty for no cell."""
        if isinstance(self.model, nnx.Module):
            node = self._node(cell)
            fits = [_GATES[kind] for kind in _GATES if isinstance(node, kind)]
        else:
            kernel = self.nnx_leaves.get(_text((*cell, "dense_h", "kernel")))
            *_, din, dout = (0, 0, *kernel.shape) if kernel else (0, 0)
            fits = [
                g for g in _GATES.values() if din and dout == din * len(g["dense_h"])
            ]
        return fits[0] if fits else {}

    def _may_be_dict(self, keys: Sequence[Any]) -> bool:
        """A state does not tell a dict from a module."""
        dicts = (dict, getattr(nnx, "Dict", dict))  # flax 0.11 has no nnx.Dict
        return isinstance(self.model, nnx.State) or isinstance(self._node(keys), dicts)

    def _node(self, keys: Sequence[Any]) -> Any:
        node: Any = self.model
        for key in keys:
            is_container = isinstance(node, dict | list | tuple)
            node = node[key] if is_container else getattr(node, str(key), None)
        return node


def _text(keys: Sequence[Any]) -> str:
    """Keys of a state as text. A tuple is one key in WeightNorm and SpectralNorm."""
    return "/".join(_text(key) if isinstance(key, tuple) else str(key) for key in keys)


def _join(path: tuple[Any, ...]) -> str:
    """A key path as text, without the `.value` of a Variable or a box."""
    keys = [
        getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))
        for key in path
        if key != _VALUE
    ]
    return _text(keys)


def _wanted(
    names: _LinenNames, nnx_leaves: Mapping[str, _NNXLeaf], problems: "_Problems"
) -> dict[str, list[str]]:
    """The Linen leaves that each nnx leaf asks for."""
    wanted = {}
    for path, leaf in nnx_leaves.items():
        collection = _collection(path, leaf, problems)
        if collection is not None:
            wanted[path] = names.of_leaf(collection, leaf)
    for target in names.by_target.keys() - names.used:
        problems.add(
            "renames that fit no nnx leaf", f'"{names.by_target[target]}": "{target}"'
        )
    return wanted


def _collection(path: str, leaf: _NNXLeaf, problems: "_Problems") -> str | None:
    is_scale = len(leaf.keys) > 1 and leaf.keys[-2] == "scales"
    if is_scale and isinstance(leaf.keys[-1], tuple):
        return "params"  # of a WeightNorm, no Variable up to flax 0.12.8
    if not issubclass(leaf.type, nnx.Variable):
        problems.add(
            "nnx leaves that are no nnx.Variable, so that no optimizer, filter or "
            "collection finds them (assign nnx.Param(array), not array)",
            f"{path} {describe(leaf)}",
        )
        return None
    try:
        return nnx.variable_name_from_type(leaf.type)
    except ValueError:
        problems.add(
            "nnx leaves of a type that stands for no Linen collection (call "
            "nnx.register_variable_name(collection, type) once)",
            f"{path} is {leaf.type.__name__}",
        )
        return None


def _check_collections(
    linen_leaves: Mapping[str, Any], wanted: Mapping[str, list[str]]
) -> None:
    """One side is empty, or the two have no collection in common: say only that."""
    held = {name.partition("/")[0] for name in linen_leaves}
    asked = {name.partition("/")[0] for parts in wanted.values() for name in parts}
    if held != asked and not held & asked:
        form = '; variables take {"params": ...}, as module.init(key, x) returns them'
        raise MappingError(
            f"the Linen variables hold {_listed(held)}, the nnx model holds "
            f"{_listed(asked)}{form if asked else ''}"
        )


def _listed(collections: set[str]) -> str:
    names = ", ".join(sorted(collections))
    return f"the collections {names}" if names else "no leaves"


def _rows(
    path: str,
    leaf: _NNXLeaf,
    parts: Sequence[str],
    linen_leaves: Mapping[str, Any],
    problems: "_Problems",
) -> Iterator[Row]:
    """The rows of one nnx leaf, which holds these Linen leaves side by side."""
    for index, name in enumerate(parts):
        if name not in linen_leaves:
            continue
        part = linen_leaves[name]
        row = Row(name, path, tuple(part.shape), part.dtype)
        shape = row.shape
        if len(parts) > 1 and shape:
            *leading, width = shape
            shape = (*leading, len(parts) * width)
            row = replace(row, columns=(index * width, (index + 1) * width))
        if shape == leaf.shape and row.dtype == leaf.dtype:
            yield row
        else:
            which = f", part {index + 1} of {len(parts)}" if len(parts) > 1 else ""
            problems.add(
                "leaves that differ in shape or dtype",
                f"{name} {describe(part)}  ->  {path} {describe(leaf)}{which}",
            )


def _gru_without_bias(name: str, owners: Mapping[str, list[str]]) -> str | None:
    """The path, with a last slash, of the nnx cell that has no place for this leaf."""
    kernel = owners.get(name.removesuffix("bias") + "kernel", [""])[0]
    if not name.endswith("/hn/bias") or not kernel.endswith("dense_h/kernel"):
        return None
    return kernel.removesuffix("dense_h/kernel")


def _check_values(kind: str, names: list[str], leaves: Mapping[str, Any]) -> None:
    problems = _Problems()
    for name in names:
        if isinstance(leaves[name], jax.ShapeDtypeStruct):
            problems.add(f"{kind} without a value, as from eval_shape", name)
    problems.raise_if_any()


def _concatenate(parts: Sequence[Any]) -> Any:
    """Side by side along the last axis; numpy stays numpy, which jax might cast."""
    in_numpy = all(isinstance(part, np.ndarray) for part in parts)
    return (np if in_numpy else jnp).concatenate(parts, axis=-1)


def _replace_leaves(tree: Any, values: Mapping[str, Any]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(_join(path), leaf), tree
    )


class _Problems:
    """Everything wrong with a mapping, so that one error says all of it."""

    def __init__(self) -> None:
        self.by_kind: dict[str, list[str]] = defaultdict(list)
        self.suggestions: list[str] = []

    def add(self, kind: str, what: str) -> None:
        self.by_kind[kind].append(what)

    def raise_if_any(self) -> None:
        if not self.by_kind:
            return
        lines = ["Linen variables and nnx model do not correspond."]
        for kind, entries in self.by_kind.items():
            lines += [f"{kind}:", *(f"    {entry}" for entry in entries)]
        if self.suggestions:
            choice = any("  # or " in line for line in self.suggestions)
            why = " (where there is a choice, by the order of names)" if choice else ""
            lines += [
                f"Same leaves, shapes and dtypes, so perhaps{why}:",
                "    rename={",
            ]
            lines += [f"        {line}" for line in self.suggestions]
            lines += ["    }"]
        raise MappingError("\n".join(lines))


def _suggestions(
    unused: Mapping[str, Any],
    unfilled: Mapping[str, list[str]],
    nnx_leaves: Mapping[str, _NNXLeaf],
    names: _LinenNames,
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
    nnx_leaves: Mapping[str, _NNXLeaf],
    names: _LinenNames,
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
                asked[_text(leaf.keys[:length])].add(entry)
    return dict(asked)
