"""What each problem is expected to show on each flax release: data with a cause.

`parity_tests/expected.json` lists what does not simply hold, an entry for each:

    {"problem": "surgery/warm_start", "modes": ["graph"], "flax": "<0.12.0",
     "verdict": "not there yet", "cause": "the layers are in an nnx.List, since 0.12.0"}

It is strict both ways: what is not listed is expected to hold, and what is listed is
expected to show that verdict and no better one.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from linen2nnx.suite import catalog


@dataclass(frozen=True)
class Expectation:
    """What one problem shows on some releases.

    Attributes:
        problem: its name.
        modes: the modes of nnx in which it does.
        flax: the releases, such as `>=0.12.0,<0.12.6`.
        verdict: one of `linen2nnx.releases.upgrade.VERDICTS`.
        cause: why.
    """

    problem: str
    modes: tuple[str, ...]
    flax: str
    verdict: str
    cause: str

    def __str__(self) -> str:
        return f"{self.verdict} ({self.cause})" if self.cause else self.verdict


def find(problem: str, mode: str, flax: str) -> Expectation:
    """What a problem is expected to show in one mode on one release.

    Args:
        problem: its name.
        mode: `graph` or `tree`.
        flax: a version, such as `0.12.8`.
    """
    for entry in table(catalog.root()):
        if (
            entry.problem == problem
            and mode in entry.modes
            and SpecifierSet(entry.flax).contains(flax, prereleases=True)
        ):
            return entry
    return Expectation(problem, (mode,), f"=={flax}", "holds", "")


@functools.cache
def table(root: Path) -> list[Expectation]:
    """All entries of the suite in that folder; none where it has no such file."""
    file = root / "parity_tests" / "expected.json"
    if not file.is_file():
        return []
    rows = json.loads(file.read_text())
    return [Expectation(**{**row, "modes": tuple(row["modes"])}) for row in rows]
