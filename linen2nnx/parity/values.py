"""The same random values in every leaf of both sides."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from linen2nnx import mapping
from linen2nnx.leaves import Variables
from linen2nnx.parity.differences import is_float
from linen2nnx.parity.sides import Arguments


def random_pair(
    linen_target: Variables,
    nnx_target: nnx.Module,
    *,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    rename: Mapping[str, str] | None = None,
) -> tuple[Variables, nnx.Module]:
    """Variables and a model that hold the same random values in every leaf.

    Parameters are drawn from a normal distribution. Its deviation is 1; of two axes or
    more it is one over the root of the product of all axes but the last, so that what
    passes through many layers stays of a size at which no small error is rounded away.
    Every other floating leaf (statistics, caches) is drawn from [0.5, 1.5), so that a
    variance stays positive, and integers from 0 to 9. Fresh initial values would hide
    errors: two biases that are both zero look the same wherever they went.

    Args:
        linen_target: gives the structure of the variables, for instance
            `jax.eval_shape(module.init, key, x)`.
        nnx_target: gives the structure of the model, for instance from
            `nnx.eval_shape`. It is not changed.
        seed: of the random values.
        dtype: of every floating leaf on both sides; None keeps each leaf's own.
        rename: as for `linen2nnx.mapping.table`.

    Raises:
        linen2nnx.mapping.MappingError: if the two do not correspond leaf by leaf.
    """
    rng = np.random.default_rng(seed)

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        cast = dtype is not None and is_float(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if not is_float(leaf):
            values = rng.integers(0, 10, leaf.shape)
        elif path[0].key == "params":
            fan_in = math.prod(leaf.shape[:-1])
            values = rng.standard_normal(leaf.shape) / max(fan_in, 1) ** 0.5
        else:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values.astype(leaf.dtype))

    def seed_rng(leaf: Any) -> Any:
        """RNG state has no Linen leaf to come from."""
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            keys = jax.random.split(jax.random.key(seed), math.prod(leaf.shape))
            return keys.reshape(leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    linen_target = jax.tree.map(abstract, linen_target)
    variables = jax.tree_util.tree_map_with_path(draw, linen_target)
    graphdef, state = nnx.split(nnx_target)
    rng_state, state = nnx.split_state(state, nnx.RngState, ...)
    state = mapping.to_nnx(variables, jax.tree.map(abstract, state), rename=rename)
    return variables, nnx.merge(graphdef, jax.tree.map(seed_rng, rng_state), state)


def with_values(
    linen_module: Any,
    variables: Variables | None,
    nnx_model: nnx.Module,
    arguments: Arguments,
    rename: Mapping[str, str] | None,
) -> tuple[Variables, nnx.Module]:
    """Random values in both if there are no variables; theirs if the model has none.

    Raises:
        linen2nnx.mapping.MappingError: if the sides do not correspond.
    """
    state = jax.tree.leaves(nnx.state(nnx_model))
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in state)

    def init(arrays: Any) -> Any:
        args, kwargs = arguments.filled(arrays)
        return linen_module.init(jax.random.key(0), *args, **kwargs)

    if variables is None:
        shapes = jax.eval_shape(init, arguments.arrays)
        return random_pair(shapes, nnx_model, rename=rename)
    if is_abstract:
        _, seeded = random_pair(variables, nnx_model, rename=rename)
        return variables, mapping.to_nnx(variables, seeded, rename=rename)
    return variables, nnx_model
