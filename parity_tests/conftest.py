"""Every parity test runs in graph and in tree mode, under JAX at its strictest."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict(request: pytest.FixtureRequest, nnx_mode: str) -> Iterator[None]:
    """Not what is timed: that runs as users run it."""
    if request.node.get_closest_marker("cost"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
