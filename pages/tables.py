"""The tables over all problems, the row of facts of one, and their order."""

from collections.abc import Sequence

from linen2nnx.suite import bench, catalog
from pages import results
from pages.page import Page
from pages.templates import draw


def facts(page: Page) -> str:
    """Parity, cost and releases of a problem in one row."""
    parity = results.newest(page.results.parity())
    cost = page.results.cost("cpu")
    best = results.cheapest(cost)
    return draw(
        "facts",
        parity=results.verdict(parity),
        cost=_cost(best)
        + (f", {results.idiom(best.idiom, best.mode)}" if best else ""),
        releases=results.holds_on(page),
        stale=results.STALE,
        parity_is_stale=parity and results.is_stale(page, parity),
        cost_is_stale=cost and results.is_stale(page, cost),
        releases_are_stale=bool(results.renew(page, page.results.parity())),
    )


def problems(pages: Sequence[Page]) -> str:
    """The table of all problems."""
    return draw("problems", rows=[(page, *_row(page)) for page in pages])


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


def _row(page: Page) -> tuple[str, str, str]:
    parity = results.verdict(results.newest(page.results.parity()))
    return (
        parity,
        _cost(results.cheapest(page.results.cost("cpu"))),
        results.holds_on(page),
    )


def _cost(best: bench.Cheapest | None) -> str:
    return f"{best.ratio:.2f} times Linen" if best else "not measured"
