"""Prove that an nnx port computes the same numbers as its Linen original.

Attributes:
    __version__: the version of the installed package.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linen2nnx.mapping import to_linen as to_linen
    from linen2nnx.mapping import to_nnx as to_nnx
    from linen2nnx.parity import Pair as Pair
    from linen2nnx.parity import assert_parity as assert_parity
    from linen2nnx.parity import compare as compare

__version__ = version("linen2nnx")
__all__ = ["Pair", "__version__", "assert_parity", "compare", "to_linen", "to_nnx"]

# Read when they are first asked for: the command starts without jax and flax.
_MODULES = {
    "Pair": "linen2nnx.parity",
    "assert_parity": "linen2nnx.parity",
    "compare": "linen2nnx.parity",
    "to_linen": "linen2nnx.mapping",
    "to_nnx": "linen2nnx.mapping",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'linen2nnx' has no attribute {name!r}")
