"""Linen variables to nnx state and back, by a table that is total both ways."""

from linen2nnx.leaves import MappingError, Variables
from linen2nnx.mapping.table import Row, table, to_linen, to_nnx

__all__ = ["MappingError", "Row", "Variables", "table", "to_linen", "to_nnx"]
