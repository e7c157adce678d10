"""The suite of problems: where it is, which there are, and the code of their idioms.

Reads files only. It imports neither jax nor flax nor any problem, so that listing and
showing are quick.
"""

import ast
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Side = Literal["linen", "nnx"]

CHAPTERS = (
    "definition",
    "surgery",
    "state",
    "randomness",
    "modes",
    "training",
    "finetuning",
    "sharing",
    "intermediates",
    "transforms",
    "attention",
    "checkpoints",
    "sharding",
    "precision",
    "inspection",
    "bridge",
)

_MARKER = re.compile(r"^\s*# --8<-- \[(start|end):(\w+)\]\s*$")
_REMARK = re.compile(r"\s*# \(\d+\)!\s*$")


class UnknownProblemError(LookupError):
    """No problem has that name."""


def root() -> Path:
    """The folder that holds `linen_impl`, `nnx_impl` and `parity_tests`.

    Inside an installed package it is `linen2nnx/problems`; in a clone, the clone.
    """
    package = Path(__file__).parents[1]
    installed = package / "problems"
    return installed if installed.is_dir() else package.parent


@dataclass(frozen=True)
class ProblemFiles:
    """One migration problem.

    Attributes:
        name: chapter and file name, such as `surgery/replace_kernel`.
    """

    name: str

    @property
    def chapter(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def description(self) -> str:
        """What the problem is, in one line."""
        docstring = ast.get_docstring(ast.parse(self.path("nnx").read_text()))
        return (docstring or "").splitlines()[0]

    def path(self, side: Side) -> Path:
        """The file of one side."""
        return root() / f"{side}_impl" / f"{self.name}.py"

    def test_path(self) -> Path:
        """The file of its parity tests."""
        file = f"test_{Path(self.name).name}.py"
        return root() / "parity_tests" / self.chapter / file

    def sections(self, side: Side) -> dict[str, str]:
        """The named sections of the idiom, in order, without markers and remarks.

        Raises:
            ValueError: if a section of the file is not closed.
        """
        found: dict[str, list[str]] = {}
        current = None
        for line in self.path(side).read_text().splitlines():
            if marker := _MARKER.match(line):
                current = marker[2] if marker[1] == "start" else None
                if current:
                    found[current] = []
            elif current:
                found[current].append(_REMARK.sub("", line))
        if current:
            raise ValueError(f"{self.path(side)}: section {current} has no end")
        return {name: "\n".join(lines).strip() for name, lines in found.items()}

    def idiom(self, side: Side) -> str:
        """What a porter copies: the imports and every section, as runnable code."""
        return "\n\n\n".join(self.sections(side).values()) + "\n"


def problems() -> list[ProblemFiles]:
    """All problems, by chapter and then by name."""
    files = (root() / "nnx_impl").glob("*/*.py")
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    return [
        ProblemFiles(name)
        for name in sorted(names, key=lambda n: (CHAPTERS.index(n.split("/")[0]), n))
    ]


def find(name: str) -> ProblemFiles:
    """The problem of that name, with or without its chapter.

    Raises:
        UnknownProblemError: naming the nearest name.
    """
    by_name = {}
    for problem in problems():
        by_name[problem.name] = by_name[problem.name.partition("/")[2]] = problem
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0)
    nearest = by_name[near[0]].name if near else "none"
    raise UnknownProblemError(f"no problem is named {name!r}; the nearest is {nearest}")
