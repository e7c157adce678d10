"""Whether a Linen module and an nnx model compute the same numbers."""

from linen2nnx.parity.assertion import assert_parity, compare
from linen2nnx.parity.comparison import CHECKS
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.edit import Edit
from linen2nnx.parity.equal import ParityError, assert_equal, recording
from linen2nnx.parity.pair import Pair
from linen2nnx.parity.report import Report
from linen2nnx.parity.values import random_pair

__all__ = [
    "CHECKS",
    "Edit",
    "Pair",
    "ParityError",
    "Report",
    "Tolerance",
    "assert_equal",
    "assert_parity",
    "compare",
    "random_pair",
    "recording",
]
