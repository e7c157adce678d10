"""What was compared: the section of a page, and the table of all runs."""

from collections.abc import Sequence

from linen2nnx.suite import records
from pages import results
from pages.page import Page
from pages.templates import draw

CHECKS = {  # linen2nnx.parity.CHECKS, and what each compares
    "structure": "the leaves, their shapes and dtypes, and the starting values",
    "edit": "the edited model; leaves that must not change; the untouched original",
    "outputs": "what the model returns",
    "state": "every leaf of the state after the call",
    "gradients": "of a random function of the output, with respect to every leaf",
    "optimizer step": "every leaf after one step of SGD with momentum",
    "round trip": "nnx state to Linen variables and back",
}
STEP_CHECKS = {  # what the tests of training problems compare, after each step
    "loss of a step": "the loss that it returns",
    "state after a step": "every param and every statistic",
    "optimizer state after a step": "every moment and every count",
}
_STEPS = {
    "loss of a step": "the loss",
    "state after a step": "every leaf of the model",
    "optimizer state after a step": "every leaf of the optimizer's state",
}


def section(page: Page) -> str:
    """The section of a page, of the newest flax."""
    record = results.newest(page.results.parity())
    if record is None:
        return draw("parity", record=None)
    compared = {check for o in record.modes.values() for check in o.compared}
    rows = []
    for check, meaning in {**CHECKS, **STEP_CHECKS}.items():
        found = [o.compared.get(check) for o in record.modes.values()]
        if check in compared:
            leaves = [entry.leaves if entry else 0 for entry in found]
            largest = records.largest(e.largest_difference for e in found if e)
            rows.append((check, meaning, leaves, results.difference(largest)))
    return draw(
        "parity",
        record=record,
        verdict=results.verdict(record),
        file=f"parity_tests/{page.name.replace('/', '/test_')}.py",
        rows=rows,
        steps=[what for check, what in _STEPS.items() if check in compared]
        if "loss of a step" in compared
        else [],
        renew=results.renew(page, [record]),
        device=results.device(record.environment),
        result=f"../results/{page.name}.json",
    )


def checks() -> str:
    """The checks in their order, for the page that explains them."""
    return "\n".join(
        f"{i}. **{name}**: {what}" for i, (name, what) in enumerate(CHECKS.items(), 1)
    )


def runs(pages: Sequence[Page]) -> str:
    """What was run on each release, over all problems, newest first."""
    by_run: dict[tuple[str, str, str], list[records.Parity]] = {}
    for page in pages:
        for record in page.results.parity():
            env = record.environment
            key = (env["flax"], env["jax"], env["python"])
            by_run.setdefault(key, []).append(record)
    ordered = sorted(by_run.items(), key=lambda item: results.in_order(item[0]))
    rows = [(*versions, *_sums(found)) for versions, found in reversed(ordered)]
    last = ordered[-1][1][-1] if ordered else None
    return draw("runs", rows=rows, last=last, device=last and _device(last))


def _sums(found: list[records.Parity]) -> tuple[str, str, str, str]:
    """Problems that hold, leaves compared, the largest difference, and the dates."""
    outcomes = [outcome for record in found for outcome in record.modes.values()]
    leaves = sum(c.leaves for o in outcomes for c in o.compared.values())
    largest = records.largest(o.largest_difference for o in outcomes)
    holding = sum(record.holds for record in found)
    return (
        f"{holding} of {len(found)}",
        f"{leaves:,}",
        results.difference(largest),
        results.dates(found),
    )


def _device(record: records.Parity) -> str:
    env = record.environment
    return f"{results.device(env)}, {env['platform']}"
