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

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linen2nnx.leaves import MappingError, Variables, describe, flatten, path_as_text
from linen2nnx.mapping.names import (
    LinenNames,
    NNXLeaf,
    all_linen_leaves,
    all_nnx_leaves,
)
from linen2nnx.mapping.problems import Problems
from linen2nnx.mapping.suggest import suggestions

Model = TypeVar("Model", nnx.Module, nnx.State)


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
    linen_leaves = all_linen_leaves(variables)
    nnx_leaves = all_nnx_leaves(model)
    problems = Problems()
    names = LinenNames(model, linen_leaves, nnx_leaves, rename or {})
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
    problems.suggestions = suggestions(unused, unfilled, nnx_leaves, names)
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


_NO_RECURRENT_BIAS = (
    "Linen leaves without a place in nnx, as nnx.GRUCell has no bias in dense_h "
    "(flax#5594): leave one out if it is all zero; else give a subclass of nnx.GRUCell "
    "a Param that its __call__ adds, and rename, for instance"
)


def _wanted(
    names: LinenNames, nnx_leaves: Mapping[str, NNXLeaf], problems: "Problems"
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


def _collection(path: str, leaf: NNXLeaf, problems: "Problems") -> str | None:
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
    leaf: NNXLeaf,
    parts: Sequence[str],
    linen_leaves: Mapping[str, Any],
    problems: "Problems",
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
    problems = Problems()
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
        lambda path, leaf: values.get(path_as_text(path), leaf), tree
    )
