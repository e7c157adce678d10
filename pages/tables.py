"""The tables over all problems, the row of facts of one, and their order."""

from collections.abc import Sequence
from dataclasses import dataclass

from linen2nnx.suite import bench, catalog, records
from pages import results
from pages.page import Page
from pages.templates import draw


@dataclass(frozen=True)
class Figure:
    """What a problem showed, in a few words, and a mark where that is stale."""

    name: str
    section: str
    text: str
    stale: str


def figures(page: Page) -> list[Figure]:
    """Parity, cost and releases of a problem."""
    parity = results.newest(page.results.parity())
    cost = page.results.cost("cpu")
    holds = results.holds_on(page)
    return [
        _figure(page, "Parity", "parity", results.verdict(parity), [parity]),
        _figure(page, "Jitted cost", "cost", _cost(results.cheapest(cost)), [cost]),
        _figure(page, "Holds on flax", "releases", holds, page.results.parity()),
    ]


def _figure(
    page: Page,
    name: str,
    section: str,
    text: str,
    found: Sequence[records.AnyRecord | None],
) -> Figure:
    stale = results.renew(page, [record for record in found if record])
    return Figure(name, section, text, results.STALE if stale else "")


def facts(page: Page) -> str:
    """Parity, cost and releases of a problem in one row."""
    best = results.cheapest(page.results.cost("cpu"))
    idiom = results.idiom(best.idiom, best.mode) if best else ""
    return draw("facts", figures=figures(page), idiom=idiom)


def problems(pages: Sequence[Page]) -> str:
    """The table of all problems."""
    return draw("problems", rows=[(page, figures(page)) for page in pages])


def names(pages: Sequence[Page]) -> str:
    """The names of all pages in one table."""
    rows: dict[tuple[str, str], list[str]] = {}
    for page in pages:
        for pair in page.names:
            rows.setdefault(pair, []).append(page.link)
    return draw("names", rows=rows)


def chapters(pages: Sequence[Page]) -> dict[str, list[Page]]:
    """The pages by chapter, in the order of the site: by title in a chapter."""
    by_chapter = {
        chapter: sorted(
            (page for page in pages if page.problem.chapter == chapter),
            key=lambda page: page.title,
        )
        for chapter in catalog.CHAPTERS
    }
    return {chapter: found for chapter, found in by_chapter.items() if found}


def _cost(best: bench.Cheapest | None) -> str:
    return f"{best.ratio:.2f} times Linen" if best else "not measured"
