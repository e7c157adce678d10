"""Every parity test runs in graph and in tree mode, under JAX at its strictest."""

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The shapes in the signatures of both twins are checked at every call.
install_import_hook(["linen_impl", "nnx_impl"], "beartype.beartype")


@pytest.fixture(autouse=True)
def mode(nnx_mode: str) -> str:
    return nnx_mode
