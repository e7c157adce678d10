"""The generator of the pages. It serves a clone and is not in the wheel.

The page of a problem is drawn from the Markdown that a person wrote, the twins, the
docstrings of the tests of pitfalls, and the results. It measures nothing.
"""

from linen2nnx.suite import catalog

ROOT = catalog.root()
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
FRAGMENTS = ROOT / "build" / "fragments"
SITE = ROOT / "site"
