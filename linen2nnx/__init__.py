"""Prove that an nnx port computes the same numbers as its Linen original.

Attributes:
    __version__: the version of the installed package.
"""

from importlib.metadata import version

__version__ = version("linen2nnx")
