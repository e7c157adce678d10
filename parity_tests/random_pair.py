"""The same random values on both sides, and an input for them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import FrozenDict, freeze

from linen2nnx import parity


@functools.cache
def variable_shapes(module: nn.Module, din: int) -> FrozenDict:
    """Shapes and dtypes of a module's variables for an input of shape (din,)."""
    return freeze(jax.eval_shape(module.init, jax.random.key(0), jnp.ones(din)))


def random_input(din: int, seed: int, dtype: jnp.dtype) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(din), dtype)


def random_pair(
    module: nn.Module,
    create_model: Callable[[], nnx.Module],
    din: int,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[FrozenDict, nnx.Module, jax.Array]:
    """Variables and model, random and the same in every leaf, and an input (din,)."""
    variables, model = parity.random_pair(
        variable_shapes(module, din),
        nnx.eval_shape(create_model),
        seed=seed,
        dtype=dtype,
    )
    return variables, model, random_input(din, seed, dtype)
