"""The blocks of a page: a region of both twins side by side, with its remarks."""

import re
from dataclasses import dataclass

from linen2nnx.suite import catalog
from pages.page import Page
from pages.templates import draw

COLUMNS = 68  # of one side, on a page that is 1440 px wide
NNX_ALONE = "nnx_"  # begins the name of a region that Linen lacks
TITLES: dict[catalog.Side, str] = {"linen": "Linen", "nnx": "nnx"}

_MARK = len(" (1)")  # what a mark takes on the page, in columns
_REMARK = re.compile(r"# (Linen|nnx): (.+)")


@dataclass(frozen=True)
class Block:
    """The code of a region as a page shows it.

    Attributes:
        code: without the remarks, as a reader copies it.
        marked: with `# (n)!` at the end of the line that the n-th remark speaks of.
        remarks: their texts.
        faults: what is wrong with the remarks.
    """

    code: str
    marked: str
    remarks: list[str]
    faults: list[str]


def block(code: str, side: catalog.Side) -> Block:
    """Take the remarks out of the code of a region.

    Args:
        code: with comments `# nnx: ...`, or in Linen `# Linen: ...`, each of which
            goes on in plain comments, and stands above the line that it speaks of.
        side: of which twin.
    """
    lines: list[str] = []
    marked: list[str] = []
    remarks: list[str] = []
    faults: list[str] = []
    open_remark = False

    def close(line: str) -> None:
        what = f"remark {remarks[-1]!r}"
        if not line:
            faults.append(f"{what} has no code below it")
        elif len(line) + _MARK > COLUMNS:
            most = COLUMNS - _MARK
            faults.append(f"{what} is at a line of {len(line)} columns; {most} fit")
        elif " # " in line:
            faults.append(f"{what} is at a line that ends with a comment")

    for line in code.splitlines():
        comment = line.strip()
        if begun := _REMARK.match(comment):
            if open_remark:
                close("")
            if begun[1] != TITLES[side]:
                faults.append(f"remark {begun[2]!r} is of {begun[1]}")
            remarks.append(begun[2])
            open_remark = True
        elif open_remark and comment.startswith("#"):
            remarks[-1] += " " + comment.lstrip("# ")
        else:
            lines.append(line)
            if open_remark:
                close(comment and line)
                line += f"  # ({len(remarks)})!"
            marked.append(line)
            open_remark = False
    if open_remark:
        close("")
    return Block("\n".join(lines), "\n".join(marked), remarks, faults)


def fragments(page: Page) -> dict[str, str]:
    """The blocks of a page by region; the first one that it shows has the imports.

    A region that Linen lacks stands beside the one before it in the file.
    """
    regions = {side: page.problem.regions(side) for side in TITLES}
    linen = {region.name: region for region in regions["linen"]}
    drawn = {}
    before: catalog.Region | None = None
    for region in regions["nnx"]:
        if region.name in page.shown:
            twin = linen.get(region.name)
            other = twin or before
            with_imports = region.name == page.shown[0]
            drawn[region.name] = draw(
                "block",
                heading=region.heading,
                imports=_imports(page) if with_imports else {},
                linen=block(other.code, "linen") if other else None,
                linen_is_above=twin is None,
                nnx=block(region.code, "nnx"),
            )
        before = linen.get(region.name, before)
    return drawn


def pasted(page: Page, side: catalog.Side) -> list[str]:
    """The blocks of one side as a reader copies them, in the order of the page."""
    code = {region.name: region.code for region in page.problem.regions(side)}
    shown = [block(code[name], side).code for name in page.shown if name in code]
    return [_imports(page)[side], *shown]


def _imports(page: Page) -> dict[catalog.Side, str]:
    return {side: page.problem.imports(side) for side in TITLES}
