"""Every parity test runs in graph and in tree mode, under JAX at its strictest."""

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

# The shapes in the signatures of both twins are checked at every call.
install_import_hook(["linen_impl", "nnx_impl"], "beartype.beartype")


@pytest.fixture(autouse=True)
def strict(nnx_mode: str) -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
