"""Linen variables to nnx state and back, by a table that is total both ways.

A Linen leaf is named by its collection and path, `params/layers_0/kernel`; an nnx
leaf by its path, `layers/0/kernel`. Three rules turn an nnx name into the Linen one:

* the Variable's type names the collection, as flax registers it (`nnx.Param` is
  `params`, `nnx.BatchStat` is `batch_stats`, your own after
  `nnx.register_variable_name("counter", Counter)`);
* an index joins the name before it: `layers/0` is `layers_0`;
* the underscore that a Python keyword needs goes: `if_` is `if`.

What the rules do not say, `rename` does: `{"Dense_0": "encoder/layers/0"}` reads "the
Linen module or leaf `Dense_0` is the nnx module or leaf `encoder/layers/0`". RNG state
has no Linen counterpart and is left alone, by type.

Nothing is guessed, cast, transposed or padded. Each Linen leaf is used once and each
nnx leaf filled once, with the same shape and dtype, or `MappingError` lists every leaf
for which that fails and the rename lines that may mend it.
"""

import keyword
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from flax import nnx

Variables = Mapping[str, Any]
Model = TypeVar("Model", nnx.Module, nnx.State)


class MappingError(ValueError):
    """Linen variables and an nnx model do not correspond leaf by leaf."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a Linen leaf and the nnx leaf that holds its value.

    Attributes:
        linen: collection and path, such as `params/layers_0/kernel`.
        nnx: path, such as `layers/0/kernel`.
        shape: the shape of both.
        dtype: the dtype of both.
    """

    linen: str
    nnx: str
    shape: tuple[int, ...]
    dtype: Any


def table(
    variables: Variables,
    model: nnx.Module | nnx.State,
    *,
    rename: Mapping[str, str] | None = None,
) -> list[Row]:
    """Pair every Linen leaf with its nnx leaf, in the order of the nnx model.

    Args:
        variables: Linen variables by collection, arrays or `jax.ShapeDtypeStruct`s.
        model: an nnx model or its state, real or from `nnx.eval_shape`.
        rename: Linen path (without collection) to nnx path, of modules or leaves;
            the longest nnx path that fits a leaf decides.

    Raises:
        MappingError: if any leaf on either side has no partner, more than one, or one
            of another shape or dtype, or if a rename applies to nothing.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones(3))
        >>> [(row.linen, row.nnx, row.shape) for row in table(variables, model)]
        [('params/bias', 'bias', (2,)), ('params/kernel', 'kernel', (3, 2))]
    """
    problems = _Problems()
    linen_leaves = flatten(variables)
    for name, leaf in linen_leaves.items():
        if not hasattr(leaf, "shape"):
            problems.add("Linen leaves that are no arrays", f"{name} is {leaf!r}")
    problems.raise_if_any()
    nnx_leaves = _nnx_leaves(model)
    linen_names = _linen_names(nnx_leaves, dict(rename or {}), problems)

    rows = []
    owners = defaultdict(list)
    for path, name in linen_names.items():
        owners[name].append(path)
        leaf, variable = linen_leaves.get(name), nnx_leaves[path]
        if leaf is None:
            continue
        row = Row(name, path, tuple(leaf.shape), leaf.dtype)
        if row.shape != tuple(variable.shape) or row.dtype != variable.dtype:
            problems.add(
                "leaves that differ in shape or dtype",
                f"{name} {describe(leaf)}  ->  {path} {describe(variable)}",
            )
        rows.append(row)

    for name, paths in owners.items():
        if len(paths) > 1:
            problems.add(
                "Linen leaves wanted by more than one nnx leaf",
                f"{name}  ->  {', '.join(paths)}",
            )
    unused = {name: leaf for name, leaf in linen_leaves.items() if name not in owners}
    for name, leaf in unused.items():
        problems.add("Linen leaves that no nnx leaf takes", f"{name} {describe(leaf)}")
    unfilled = {
        path: nnx_leaves[path]
        for path, name in linen_names.items()
        if name not in linen_leaves
    }
    for path, variable in unfilled.items():
        problems.add(
            "nnx leaves that no Linen leaf fills",
            f"{path} {describe(variable)} (looked for {linen_names[path]})",
        )
    problems.suggestions = _suggestions(unused, unfilled, linen_names)
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
        MappingError: as for `table`.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones(3))
        >>> target = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> model = to_nnx(variables, target)
        >>> bool((model.kernel[...] == variables["params"]["kernel"]).all())
        True
    """
    if isinstance(target, nnx.Module):
        graphdef, state = nnx.split(target)
        return nnx.merge(graphdef, to_nnx(variables, state, rename=rename))
    leaves = flatten(variables)
    values = {r.nnx: leaves[r.linen] for r in table(variables, target, rename=rename)}
    return _replace_leaves(target, values)


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
        MappingError: as for `table`.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> target = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), jnp.ones(3))
        >>> variables = to_linen(model, target)
        >>> bool((variables["params"]["kernel"] == model.kernel[...]).all())
        True
    """
    leaves = flatten(nnx.state(model) if isinstance(model, nnx.Module) else model)
    values = {r.linen: leaves[r.nnx] for r in table(target, model, rename=rename)}
    return _replace_leaves(target, values)


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of Linen variables, an nnx state or any pytree, by `/`-joined path.

    Example:
        >>> flatten({"params": {"layers_0": {"kernel": 1.0}}})
        {'params/layers_0/kernel': 1.0}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_join(path): leaf for path, leaf in leaves}


def describe(leaf: Any) -> str:
    """Shape and dtype of an array-like, as in an error: `(3, 2) float32`."""
    return f"{tuple(leaf.shape)} {leaf.dtype}"


def _replace_leaves(tree: Any, values: Mapping[str, Any]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(_join(path), leaf), tree
    )


def _join(path: tuple[Any, ...]) -> str:
    """A key path as text; the `.value` in which an nnx state's paths end is dropped."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "idx", None)))
        for key in path
        if not isinstance(key, jax.tree_util.GetAttrKey)
    )


def _nnx_leaves(model: nnx.Module | nnx.State) -> dict[str, Any]:
    """The Variables of a model by path, without RNG state."""
    state = nnx.state(model) if isinstance(model, nnx.Module) else model
    variables = {
        "/".join(map(str, path)): _variable(leaf)
        for path, leaf in nnx.to_flat_state(state)
    }
    return {
        path: variable
        for path, variable in variables.items()
        if not isinstance(variable, nnx.RngState)
    }


def _variable(leaf: Any) -> Any:
    """A leaf of a state as a Variable: before flax 0.12 it is a `VariableState`."""
    if type(leaf).__name__ == "VariableState":
        return leaf.type(leaf.value)
    return leaf


def _linen_names(
    nnx_leaves: Mapping[str, Any], rename: dict[str, str], problems: "_Problems"
) -> dict[str, str]:
    """The Linen name, with collection, that each nnx path asks for."""
    by_target = {nnx_path: linen_path for linen_path, nnx_path in rename.items()}
    if len(by_target) < len(rename):
        raise MappingError(f"rename gives two Linen paths one nnx path: {rename}")
    names = {}
    used = set()
    for path, variable in nnx_leaves.items():
        if not isinstance(variable, nnx.Variable):
            problems.add(
                "nnx leaves that are no nnx.Variable, so that no optimizer, filter or "
                "collection finds them (assign nnx.Param(array), not array)",
                f"{path} {describe(variable)}",
            )
            continue
        try:
            collection = nnx.variable_name_from_type(type(variable))
        except ValueError:
            kind = type(variable).__name__
            problems.add(
                "nnx leaves of a type that stands for no Linen collection (call "
                "nnx.register_variable_name(collection, type) once)",
                f"{path} is {kind}",
            )
            continue
        head, tail = _split_at_rename(path, by_target)
        if head is not None:
            used.add(head)
            tail = [by_target[head], *tail]
        names[path] = "/".join([collection, *_linen_path(tail)])
    for target in by_target.keys() - used:
        problems.add(
            "renames that fit no nnx leaf", f'"{by_target[target]}": "{target}"'
        )
    return names


def _split_at_rename(
    path: str, by_target: Mapping[str, str]
) -> tuple[str | None, list[str]]:
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        head = "/".join(parts[:length])
        if head in by_target:
            return head, parts[length:]
    return None, parts


def _linen_path(parts: list[str]) -> list[str]:
    path: list[str] = []
    for part in parts:
        if part.isdigit() and path:
            path[-1] += f"_{part}"
        elif part.endswith("_") and keyword.iskeyword(part[:-1]):
            path.append(part[:-1])
        else:
            path.append(part)
    return path


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
            lines += ["Same leaves, shapes and dtypes, so perhaps:", "    rename={"]
            lines += [f"        {line}" for line in self.suggestions]
            lines += ["    }"]
        raise MappingError("\n".join(lines))


def _suggestions(
    unused: Mapping[str, Any],
    unfilled: Mapping[str, Any],
    linen_names: Mapping[str, str],
) -> list[str]:
    """Rename lines for unmatched modules that hold the same leaves."""

    def modules(leaves: Mapping[str, Any], name_of: Any) -> dict[str, frozenset[str]]:
        found = defaultdict(set)
        for path, leaf in leaves.items():
            collection, *inner, last = name_of(path).split("/")
            module = "/".join(inner) if leaves is unused else path.rpartition("/")[0]
            found[module].add(f"{collection}/{last} {describe(leaf)}")
        return {module: frozenset(leaves) for module, leaves in found.items()}

    linen_modules = modules(unused, lambda path: path)
    nnx_modules = modules(unfilled, lambda path: linen_names[path])
    lines = []
    for nnx_module, leaves in nnx_modules.items():
        fits = [name for name, held in linen_modules.items() if held == leaves]
        note = f"  # one of {len(fits)} that fit" if len(fits) > 1 else ""
        for name in fits:
            if name and nnx_module:
                lines.append(f'"{name}": "{nnx_module}",{note}')
                continue
            for last in sorted(leaf.split()[0].split("/")[1] for leaf in leaves):
                linen_leaf = f"{name}/{last}".lstrip("/")
                nnx_leaf = f"{nnx_module}/{last}".lstrip("/")
                lines.append(f'"{linen_leaf}": "{nnx_leaf}",{note}')
    return lines
