"""The Linen names that the leaves of an nnx model ask for."""

import itertools
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from linen2nnx.leaves import (
    VALUE,
    MappingError,
    Variables,
    describe,
    flatten,
    flatten_with_keys,
    keys_as_text,
    path_as_text,
)
from linen2nnx.mapping.problems import Problems

# The Linen layers that a layer of an nnx cell holds, in order along its last axis.
_GATES: dict[type, dict[str, tuple[str, ...]]] = {
    nnx.OptimizedLSTMCell: {
        "dense_i": ("ii", "if", "ig", "io"),
        "dense_h": ("hi", "hf", "hg", "ho"),
    },
    nnx.GRUCell: {"dense_i": ("ir", "iz", "in"), "dense_h": ("hr", "hz", "hn")},
    nnx.SimpleCell: {"dense_i": ("i",), "dense_h": ("h",)},
}


def all_linen_leaves(variables: Variables) -> dict[str, Any]:
    """The leaves of Linen variables by path."""
    if not isinstance(variables, Mapping) or isinstance(variables, nnx.State):
        raise TypeError(
            f"the Linen variables are a {type(variables).__name__}; they take the dict "
            "of collections that module.init(key, x) returns"
        )
    leaves = flatten(variables)
    problems = Problems()
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
class NNXLeaf:
    """An array of an nnx model.

    `keys` lead to its Variable, and `inner` on to the array where the Variable's value
    is a pytree; `type` is that of the Variable, or of the array if there is none.
    """

    keys: tuple[Any, ...]
    inner: str
    type: type
    shape: tuple[int, ...]
    dtype: Any


def all_nnx_leaves(model: nnx.Module | nnx.State) -> dict[str, NNXLeaf]:
    """The leaves of a model by path, without RNG state."""
    if not isinstance(model, nnx.Module | nnx.State):
        raise TypeError(
            f"the nnx model is a {type(model).__name__}; it takes an nnx.Module or an "
            "nnx.State"
        )
    state = nnx.state(model) if isinstance(model, nnx.Module) else model
    types = {path: _type(leaf) for path, leaf in nnx.to_flat_state(state)}
    leaves = {}
    problems = Problems()
    for name, (path, value) in flatten_with_keys(state).items():
        to_variable = itertools.takewhile(lambda key: key != VALUE, path)
        keys = tuple(key.key for key in to_variable)
        if issubclass(types[keys], nnx.RngState):
            continue
        if not hasattr(value, "shape"):
            problems.add("nnx leaves that are no arrays", f"{name} is {value!r}")
            continue
        inner = path_as_text(path[len(keys) :])
        shape = tuple(value.shape)
        leaves[name] = NNXLeaf(keys, inner, types[keys], shape, value.dtype)
    problems.raise_if_any()
    return leaves


def _type(leaf: Any) -> type:
    """The Variable type of a leaf of a state: before flax 0.12 a `VariableState`."""
    return leaf.type if type(leaf).__name__ == "VariableState" else type(leaf)


class LinenNames:
    """The Linen names that nnx paths ask for."""

    def __init__(
        self,
        model: nnx.Module | nnx.State,
        linen_leaves: Mapping[str, Any],
        nnx_leaves: Mapping[str, NNXLeaf],
        rename: Mapping[str, str],
    ) -> None:
        """The names of one model's leaves, under these renames."""
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

    def of_leaf(self, collection: str, leaf: NNXLeaf) -> list[str]:
        """The Linen leaves that an nnx leaf holds side by side; mostly it is one."""
        plain = self.of_path(collection, leaf.keys)
        if leaf.inner:
            return [f"{plain}/{leaf.inner}"]
        if plain in self.linen_leaves or keys_as_text(leaf.keys) in self.by_target:
            return [plain]
        match leaf.keys:
            case (*norm, "scales", tuple(inner)):
                return [self._of_wrapped(collection, norm, inner, "scale")]
            case (*norm, "batch_stats", (*inner, stat)):
                return [self._of_wrapped(collection, norm, inner, stat)]
            case (*cell, "dense_i" | "dense_h" as dense, name):
                linen_cell = self.of_path(collection, cell)
                gates = self._gates(cell).get(dense, ())
                if gates and keys_as_text((*cell, dense)) not in self.by_target:
                    return [f"{linen_cell}/{gate}/{name}" for gate in gates]
        return [plain]

    def of_path(self, collection: str, keys: Sequence[Any]) -> str:
        """The Linen name, with collection, of the module or leaf at these keys."""
        length = len(keys)
        while length and keys_as_text(keys[:length]) not in self.by_target:
            length -= 1
        name = collection
        if length:
            self.used.add(keys_as_text(keys[:length]))
            linen_path = self.by_target[keys_as_text(keys[:length])]
            name = f"{collection}/{linen_path}"
            if (
                linen_path.startswith(f"{collection}/")
                and name not in self.linen_starts
            ):
                name = linen_path
        for at in range(length, len(keys)):
            key = keys_as_text(keys[at : at + 1])
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
            kernel = self.nnx_leaves.get(keys_as_text((*cell, "dense_h", "kernel")))
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
