"""The suite of problems: where it is, which there are, and the code of their idioms.

Reads files only. It imports neither jax nor flax nor any problem, so that listing and
showing are quick.
"""

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Side = Literal["linen", "nnx"]

CHAPTERS = (  # in the order of the site
    "layers",
    "definition",
    "surgery",
    "state",
    "randomness",
    "modes",
    "training",
    "finetuning",
    "intermediates",
    "transforms",
    "checkpoints",
    "sharding",
    "precision",
    "bridge",
)

FOLDERS = ("linen_impl", "nnx_impl", "parity_tests")

_MARKER = re.compile(r"^# region: (\w+)(?: - (.+))?$")
_END = "end"


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
class Region:
    """A named part of an idiom.

    Attributes:
        name: the same in both twins; one that begins with `nnx_` is in nnx alone.
        heading: over it on the page; empty where it needs none.
        code: its lines, with the comments `# nnx: ...` and `# Linen: ...`, which the
            page shows as remarks.
    """

    name: str
    heading: str
    code: str


@dataclass(frozen=True)
class ProblemFiles:
    """One migration problem, as files.

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

    def paths(self) -> list[Path]:
        """Its files of code: the twins and the parity tests."""
        return [self.path("linen"), self.path("nnx"), self.test_path()]

    def imports(self, side: Side) -> str:
        """What the idiom imports, as the head of the file does; nothing of ours."""
        lines = self.path(side).read_text().splitlines()
        nodes = [
            node
            for node in ast.parse("\n".join(lines)).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        kept: list[str] = []
        previous = None
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module == "linen2nnx":
                continue
            if previous and node.lineno > previous + 1:
                kept.append("")
            previous = node.end_lineno
            kept += lines[node.lineno - 1 : previous]
        return "\n".join(kept)

    def regions(self, side: Side) -> list[Region]:
        """The regions of the idiom, in order.

        A line `# region: cast - Cast every leaf` begins one, and ends the one before
        it; `# region: end` ends the last.

        Raises:
            ValueError: if the last region has no end, or two have one name.
        """
        found: list[Region] = []
        lines: list[str] | None = None
        begun = "", ""
        for line in self.path(side).read_text().splitlines():
            marker = _MARKER.match(line)
            if marker is None:
                if lines is not None:
                    lines.append(line)
                continue
            if lines is not None:
                name, heading = begun
                found.append(Region(name, heading, "\n".join(lines).strip()))
            begun = marker[1], marker[2] or ""
            lines = None if marker[1] == _END else []
        if lines is not None:
            raise ValueError(
                f"{self.path(side)}: region {begun[0]} has no end, '# region: end'"
            )
        names = [region.name for region in found]
        if double := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"{self.path(side)} has two regions {', '.join(sorted(double))}"
            )
        return found

    def idiom(self, side: Side) -> str:
        """What a porter copies: the imports and every region, as runnable code."""
        parts = [self.imports(side), *(region.code for region in self.regions(side))]
        return "\n\n\n".join(parts) + "\n"


def problems() -> list[ProblemFiles]:
    """All problems, by chapter and then by name."""
    files = (root() / "nnx_impl").glob("*/*.py")
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    return [
        ProblemFiles(name)
        for name in sorted(names, key=lambda n: (CHAPTERS.index(n.split("/")[0]), n))
    ]


def chosen(names: Sequence[str]) -> list[ProblemFiles]:
    """The problems that are named, in the order of the site; all if none is.

    Args:
        names: each a problem, or a chapter with its slash, such as `surgery/`.

    Raises:
        UnknownProblemError: naming the nearest problem, or the chapters that there are.
    """
    found = set()
    chapters = list(dict.fromkeys(problem.chapter for problem in problems()))
    for name in names:
        chapter = name.removesuffix("/")
        if not name.endswith("/"):
            found.add(find(name))
        elif chapter in chapters:
            found |= {p for p in problems() if p.chapter == chapter}
        else:
            raise UnknownProblemError(
                f"there is no chapter {name!r}; there are "
                f"{', '.join(f'{name}/' for name in chapters)}"
            )
    return [problem for problem in problems() if problem in found or not names]


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
