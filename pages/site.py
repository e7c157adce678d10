"""Write the fragments and the settings of the pages, and build them."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from linen2nnx.suite import catalog
from pages import (
    FRAGMENTS,
    ROOT,
    SITE,
    blocks,
    cost,
    markdown,
    parity,
    pitfalls,
    reference,
    releases,
    tables,
)
from pages.page import Page, read

SETTINGS = ROOT / "mkdocs.generated.yml"  # zensical reads nothing above it
IN_NAV = "Problems"  # the part of the navigation that lists the pages of all problems

# The fragments that are of no problem.
SHARED: dict[str, Callable[[Sequence[Page]], str]] = {
    "problems.md": tables.problems,
    "names.md": tables.names,
    "checks.md": lambda pages: parity.checks(),
    "runs.md": parity.runs,
    "cost-runs.md": cost.runs,
    "matrix.md": lambda pages: releases.matrix(pages, releases.known()),
    "release-changes.md": lambda pages: releases.changes(releases.known()),
    "flax-jax.md": lambda pages: releases.flax_jax(),
}
# Those that a problem has beside its regions; its page includes the first two.
OF_PROBLEM = ("facts", "evidence", "bytecodes-by-release")


class BuildError(RuntimeError):
    """The builder failed."""


def build(builder: str) -> None:
    """Build the pages into the folder `site`, as HTML and as Markdown.

    Args:
        builder: `mkdocs` or `zensical`.

    Raises:
        BuildError: if the builder fails, which has said why.
    """
    pages = prepare()
    command = [sys.executable, "-m", builder, "build", "--strict", "-f", str(SETTINGS)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise BuildError(f"{builder} could not build the pages")
    markdown.write(pages, SITE)


def serve() -> None:
    """Serve the pages on this machine, built again when one changes."""
    prepare()
    command = [sys.executable, "-m", "mkdocs", "serve", "-f", str(SETTINGS)]
    subprocess.run(command, cwd=ROOT)


def prepare() -> list[Page]:
    """Write all fragments and the settings; the pages in the order of the site."""
    by_chapter = tables.chapters([read(problem) for problem in catalog.problems()])
    pages = [page for found in by_chapter.values() for page in found]
    shutil.rmtree(FRAGMENTS, ignore_errors=True)
    for name, text in fragments(pages).items():
        path = FRAGMENTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    SETTINGS.write_text(yaml.safe_dump(with_problems(settings, by_chapter)))
    return pages


def fragments(pages: Sequence[Page]) -> dict[str, str]:
    """All that the pages include, by file name."""
    drawn = {name: draw(pages) for name, draw in SHARED.items()}
    sections = [pitfalls, parity, cost, releases, reference]
    for page in pages:
        evidence = [module.section(page) for module in sections]
        own = blocks.fragments(page) | {
            "facts": tables.facts(page),
            "evidence": "\n\n".join(filter(None, evidence)),
            "bytecodes-by-release": releases.bytecodes(page),
        }
        drawn |= {f"{page.name}/{name}.md": text for name, text in own.items()}
    return drawn


def with_problems(
    settings: dict[str, Any], by_chapter: dict[str, list[Page]]
) -> dict[str, Any]:
    """The settings of `mkdocs.yml` with the pages of the problems.

    Args:
        settings: of which the navigation has a part `Problems`.
        by_chapter: the pages that are added to that part.
    """
    chapters = [
        {chapter.capitalize(): [f"{page.name}.md" for page in found]}
        for chapter, found in by_chapter.items()
    ]
    nav = [
        {name: [*entry, *chapters] if name == IN_NAV else entry}
        for part in settings["nav"]
        for name, entry in part.items()
    ]
    return {**settings, "nav": nav}
