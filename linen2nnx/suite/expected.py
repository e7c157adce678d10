"""What a problem is expected to show on each flax release: data with a cause.

The file of its tests lists what does not simply hold:

    EXPECTED = [
        {"flax": "<0.12.0", "modes": ["graph"], "verdict": "not there yet",
         "cause": "the layers are in an nnx.List, since 0.12.0"},
    ]

It is strict both ways: what is not listed is expected to hold, and what is listed is
expected to show that verdict and no better one. The list is read without importing the
file, so that it is a literal.
"""

import ast
import functools
from pathlib import Path
from typing import Literal

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from linen2nnx.modes import Mode
from linen2nnx.suite import catalog

Verdict = Literal[
    "holds",
    "holds with warnings",
    "pitfall changed",
    "not there yet",
    "nothing ran",
    "differs",
    "fails",
]


class ExpectedError(ValueError):
    """The list of a problem is not as it is to be."""


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a problem shows on some releases.

    Attributes:
        flax: the releases, such as `>=0.12.0,<0.12.6`.
        modes: the modes of nnx in which it does.
        verdict: on them.
        cause: why.
    """

    flax: str
    modes: tuple[Mode, ...]
    verdict: Verdict
    cause: str

    def __str__(self) -> str:
        return f"{self.verdict} ({self.cause})" if self.cause else self.verdict

    def covers(self, mode: str, flax: str) -> bool:
        """Whether it speaks of that mode on that release."""
        return mode in self.modes and SpecifierSet(self.flax).contains(
            flax, prereleases=True
        )


def find(problem: str, mode: str, flax: str) -> Expectation:
    """What a problem is expected to show in one mode on one release.

    Args:
        problem: its name.
        mode: `graph` or `tree`.
        flax: a version, such as `0.12.8`.

    Raises:
        ExpectedError: naming the file whose list is not as it is to be.
    """
    for entry in of(catalog.ProblemFiles(problem)):
        if entry.covers(mode, flax):
            return entry
    return Expectation(f"=={flax}", ("graph", "tree"), "holds", "")


def of(problem: catalog.ProblemFiles) -> list[Expectation]:
    """All that is listed of a problem; nothing where it has no tests.

    Raises:
        ExpectedError: naming the file whose list is not as it is to be.
    """
    path = problem.test_path()
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else []


@functools.cache
def _read(path: Path, stamp: int) -> list[Expectation]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and "EXPECTED" in map(_name, node.targets):
            try:
                rows = ast.literal_eval(node.value)
                found = msgspec.convert(rows, list[Expectation])
                for entry in found:
                    SpecifierSet(entry.flax)
            except (ValueError, InvalidSpecifier) as error:
                file = path.relative_to(catalog.root())
                raise ExpectedError(
                    f"{file}:{node.lineno}: EXPECTED is no list of what it is to "
                    f"show, each with flax, modes, verdict and cause: {error}"
                ) from error
            return found
    return []


def _name(target: ast.expr) -> str | None:
    return target.id if isinstance(target, ast.Name) else None
