"""What the pages say of releases: problem by release, and flax with jax."""

import html
from collections.abc import Sequence
from itertools import pairwise

from linen2nnx.releases import table
from linen2nnx.releases.results import Release, load
from linen2nnx.releases.verdicts import verdict_on
from linen2nnx.suite import expected, records
from pages import RESULTS, results
from pages.page import Page
from pages.templates import draw

PATH = RESULTS / "releases.json"
FINE = {"holds", "holds with warnings", "not there yet"}
BOTH_MODES = {"graph", "tree"}


def known() -> list[Release]:
    """What was found of each release beside its problems, oldest first.

    Raises:
        linen2nnx.suite.records.RecordError: in one line, if the file holds no such.
    """
    return load(PATH).releases if PATH.is_file() else []


def section(page: Page) -> str:
    """The section of a page: the problem on each release, oldest first."""
    found = page.results.parity()
    found.sort(key=lambda r: results.in_order(results.release_of(r.environment)))
    rows = [
        (record.environment, "; ".join(text for text, _ in _verdicts(page, record)))
        for record in found
    ]
    verdicts = {verdict for r in found for _, verdict in _verdicts(page, r)}
    return draw(
        "releases",
        rows=rows,
        style="ok" if verdicts <= FINE else "bad",
        renew=results.renew(page, found),
    )


def matrix(pages: Sequence[Page], known: Sequence[Release]) -> str:
    """Problem by release: the verdict of both modes, with the reason in the cell."""
    found = {
        (page.name, results.release_of(record.environment)): record
        for page in pages
        for record in page.results.parity()
    }
    errors = {results.release_of(one.environment): one.error for one in known}
    releases = sorted({r for _, r in found} | errors.keys(), key=results.in_order)
    rows = []
    for page in pages:
        cells = []
        for release in releases:
            record = found.get((page.name, release))
            texts = [text for text, _ in _verdicts(page, record)] if record else []
            error = html.escape(_shorten(errors.get(release, "")))
            cells.append("<br>".join(texts) or error or "not run")
        stale = results.renew(page, page.results.parity())
        mark = f" {results.STALE}" if stale else ""
        rows.append((f"[{page.name}]({page.name}.md){mark}", cells))
    return _by_release("problem", releases, rows, [*found.values()])


def bytecodes(page: Page) -> str:
    """How many Python bytecodes a jitted call executes: idiom by release."""
    found = {results.release_of(r.environment): r for r in page.results.bytecodes()}
    releases = sorted(found, key=results.in_order)
    by_idiom: dict[str, dict[results.Versions, str]] = {}
    for release in releases:
        for row in found[release].counts:
            if row.what == "jitted" and row.bytecodes is not None:
                mode = f" ({row.mode} mode)" if row.mode else ""
                depth = f", {results.layers(row.layers)}" if row.layers else ""
                cells = by_idiom.setdefault(f"{row.idiom}{mode}{depth}", {})
                cells[release] = f"{row.bytecodes:,}"
    rows = [
        (idiom, [cells.get(release, "") for release in releases])
        for idiom, cells in by_idiom.items()
    ]
    return _by_release("idiom", releases, rows, [*found.values()])


def _by_release(
    first: str,
    releases: Sequence[results.Versions],
    rows: Sequence[tuple[str, list[str]]],
    found: Sequence[records.Parity | records.Bytecodes],
) -> str:
    last = results.newest(found)
    if last is None:
        return "Nothing was run yet."
    return draw(
        "by-release",
        first=first,
        releases=releases,
        rows=rows,
        command=last.command,
        dates=results.dates(found),
        env=last.environment,
        device=results.device(last.environment),
    )


def changes(known: Sequence[Release]) -> str:
    """What each release does that the one before it in the matrix did not do."""
    parts = []
    for before, after in pairwise(known):
        old, new = before.behaviour, after.behaviour
        texts = [
            f"{name}: `{_shorten(old[name])}` became `{_shorten(new[name])}`"
            for name in old
            if name in new and old[name] != new[name]
        ]
        texts += [
            f"{name} moved"
            for name, number in before.numbers.items()
            if number != after.numbers.get(name)
        ]
        parts.append((after.environment["flax"], before.environment["flax"], texts))
    return draw("changes", releases=parts)


def flax_jax() -> str:
    """Which flax and jax go together, newest flax first."""
    rows = []
    for row in reversed(table.table()):
        following = "none is out"
        if row.first_broken_jax:
            error = html.escape(_shorten(row.first_broken_error or ""))
            following = f"{row.first_broken_jax} fails: <code>{error}</code>"
        rows.append((row, following))
    return draw("flax-jax", rows=rows)


def _verdicts(page: Page, record: records.Parity) -> list[tuple[str, str]]:
    """Each verdict as text with its reason, and the mode if not both have it."""
    flax = record.environment["flax"]
    by_text: dict[tuple[str, str], list[str]] = {}
    for mode, outcome in record.modes.items():
        cell = verdict_on(outcome, flax)
        verdict, reason = cell.verdict, cell.reason
        known = expected.find(page.name, mode, flax)
        if known.verdict == verdict != "not there yet":  # which names the missing API
            reason = known.cause
        small = f": <small>{html.escape(_shorten(reason))}</small>" if reason else ""
        text = (verdict + small).replace("|", "&#124;")
        by_text.setdefault((text, verdict), []).append(mode)
    if len(by_text) == 1 and record.modes.keys() == BOTH_MODES:
        return list(by_text)
    return [
        (f"{text} ({' and '.join(modes)} mode)", verdict)
        for (text, verdict), modes in by_text.items()
    ]


def _shorten(text: str) -> str:
    """Its first sentence, as far as it is short."""
    text = text.partition(". ")[0]
    return text if len(text) <= 100 else f"{text[:97]}..."
