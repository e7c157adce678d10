"""What the idioms cost: the section of a page, and the table of all runs."""

from collections.abc import Iterator, Sequence

from linen2nnx.cost.paired import REFERENCE
from linen2nnx.suite import bench, records
from pages import results
from pages.page import Page
from pages.templates import draw

MEASURED = {  # what is timed, and its title
    "jitted": "Jitted call",
    "eager": "Eager call",
    "edit": "The edit itself",
    "first call: trace": "First call: trace",
    "first call: compile": "First call: compile",
}
DEVICES = {"cpu": "CPU", "gpu": "GPU"}


def section(page: Page) -> str:
    """The section of a page: on each device, and the bytecodes."""
    return draw(
        "cost",
        devices=[_on_device(page, device) for device in DEVICES],
        command=bench.COMMAND,
        limit=bench.AS_CHEAP_AS_LINEN,
        result=f"../results/{page.name}.json",
        bytecodes=_bytecodes(page),
    )


def runs(pages: Sequence[Page]) -> str:
    """What was measured on each device, over all problems."""
    by_run: dict[tuple[str, ...], list[records.Cost]] = {}
    for page in pages:
        for device in DEVICES:
            if cost := page.results.cost(device):
                env = cost.environment
                key = results.device(env), env["flax"], env["jax"], env["python"]
                by_run.setdefault(key, []).append(cost)
    rows = []
    for versions, found in by_run.items():
        rows_of = [row for cost in found for row in cost.measurements]
        controls = _controls(rows_of)
        counts = f"{len(found)}", f"{len(rows_of)}"
        rows.append((*versions, *counts, controls, results.dates(found)))
    measured = {cost.device for found in by_run.values() for cost in found}
    missing = [title for device, title in DEVICES.items() if device not in measured]
    return draw("cost-runs", rows=rows, missing=missing, command=bench.COMMAND)


def _on_device(page: Page, device: str) -> dict[str, object]:
    cost = page.results.cost(device)
    title = DEVICES[device]
    if cost is None or not cost.measurements:
        declares = cost is None or bool(cost.not_published)
        return {"title": title, "cost": None, "declares": declares}
    best = results.cheapest(cost)
    jitted = [row for row in _rows(cost, "jitted") if row.layers is not None]
    return {
        "title": title,
        "cost": cost,
        "cheapest": best and results.idiom(best.idiom, best.mode),
        "ratio": best and f"{best.ratio:.2f}",
        "layers": best and results.layers(best.layers),
        "as_cheap": best and not best.reason,
        "renew": results.renew(page, [cost]),
        "style": "costs" if jitted else "costs single",
        "tables": [*_tables(cost)],
        "controls": _controls(cost.measurements),
        "device": results.device(cost.environment),
    }


def _rows(cost: records.Cost, what: str) -> list[records.Measurement]:
    return [
        row for row in cost.measurements if row.what == what and row.idiom != REFERENCE
    ]


def _tables(cost: records.Cost) -> Iterator[dict[str, object]]:
    """Idioms by number of layers; a cell has a ratio, its interval and a bar."""
    for what, title in MEASURED.items():
        rows = _rows(cost, what)
        if not rows:
            continue
        depths = results.depths(rows)
        linen = {row.layers: results.seconds(row.linen_seconds) for row in rows}
        longest = max(1.0, *(row.ratio for row in rows))  # Linen is 1
        by_idiom: dict[str, dict[int | None, str]] = {}
        for row in rows:
            cells = by_idiom.setdefault(results.idiom(row.idiom, row.mode), {})
            cells[row.layers] = _cell(row, longest)
        yield {
            "title": title,
            "heads": [
                (results.layers(depth, "ratio"), linen[depth]) for depth in depths
            ],
            "rows": [
                (idiom, [cells.get(depth, "not published") for depth in depths])
                for idiom, cells in by_idiom.items()
            ],
        }


def _cell(row: records.Measurement, longest: float) -> str:
    low, high = map(results.ratio, row.interval)
    style = f"--v:{100 * row.ratio / longest:.1f};--one:{100 / longest:.1f}"
    return (
        f"**{results.ratio(row.ratio)}** <small>{low} to {high}</small> "
        f'<span class="bar" style="{style}" aria-hidden="true"></span>'
    )


def _controls(rows: Sequence[records.Measurement]) -> str:
    controls = [row.control for row in rows]
    return f"{min(controls):.2f} to {max(controls):.2f}"


def _bytecodes(page: Page) -> dict[str, object] | None:
    """How many Python bytecodes a jitted call executes on the newest flax."""
    record = results.newest(page.results.bytecodes())
    rows = [row for row in record.counts if row.what == "jitted"] if record else []
    if not record or not rows:
        return None
    depths = results.depths(rows)
    by_idiom: dict[str, dict[int | None, str]] = {}
    for row in rows:
        if row.bytecodes is not None:
            cells = by_idiom.setdefault(results.idiom(row.idiom, row.mode), {})
            cells[row.layers] = f"{row.bytecodes:,}"
    return {
        "record": record,
        "heads": [results.layers(depth, "bytecodes") for depth in depths],
        "rows": [
            (idiom, [cells.get(depth, "") for depth in depths])
            for idiom, cells in by_idiom.items()
        ],
        "renew": results.renew(page, [record]),
    }
