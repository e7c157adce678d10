"""What changed from one flax release to another."""

import math
import struct
from collections.abc import Mapping, Sequence

from linen2nnx.cost.paired import label
from linen2nnx.releases.results import ApiChanges, Numbers
from linen2nnx.releases.verdicts import (
    VERDICTS,
    ReleaseResult,
    shorten,
    warnings_of,
)
from linen2nnx.suite.records import Bytecodes, Outcome, largest

SHOWN_NAMES = 8


def changes(
    first: ReleaseResult, other: ReleaseResult, problems: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What got worse from the first release to the other, and what else changed.

    Args:
        first: the earlier one.
        other: the later one.
        problems: the names of all that ran on either.
    """
    if first is other:
        return [], []
    if other.error or first.error:
        if other.error == first.error or not (other.told and first.told):
            return [], []
        text = f"{first.error or 'flax imports'} -> {other.error or 'flax imports'}"
        return ([text], []) if other.error else ([], [text])
    worse: list[str] = []
    changed: list[str] = []
    both = (first, other)
    for problem in problems:
        by_text: dict[tuple[bool, str], list[str]] = {}
        for mode in dict.fromkeys([*first.facts.modes, *other.facts.modes]):
            before, after = first.cell(problem, mode), other.cell(problem, mode)
            ranks = VERDICTS.index(before.verdict), VERDICTS.index(after.verdict)
            text = f"{before.verdict} -> {after}"
            if ranks[0] == ranks[1]:
                outcomes = (r.outcomes(problem).get(mode) for r in both)
                text = _moved(*outcomes)
                if not text and before.reason != after.reason and ranks[0] > 1:
                    text = f"{before} -> {after.reason}"
            if text:
                by_text.setdefault((ranks[1] > ranks[0], text), []).append(mode)
        for (is_worse, text), modes in by_text.items():
            line = f"{problem}, {' and '.join(modes)} mode: {text}"
            (worse if is_worse else changed).append(line)
        known = {message for message, _ in warnings_of(first.outcomes(problem))}
        for message, where in warnings_of(other.outcomes(problem)):
            if message not in known:
                known.add(message)
                worse.append(f"{problem}: new warning at {where}: {message}")
    for name, before_value in first.facts.numbers.items():
        after_value = other.facts.numbers.get(name)
        if text := _distance(before_value, after_value):
            worse.append(f"{name}: {text}")
    for name, before_text in first.facts.behaviour.items():
        after_text = other.facts.behaviour.get(name)
        if before_text != after_text:
            old, new = (shorten(str(text)) for text in (before_text, after_text))
            changed.append(f"{name}: {old} -> {new}")
    changed += _moved_bytecodes(first.bytecodes, other.bytecodes)
    api = api_changes(first, other)
    for kind, names in {
        "gone": api.gone,
        "added": api.added,
        "with other parameters": api.changed,
    }.items():
        if names:
            shown = ", ".join(names[:SHOWN_NAMES])
            more = len(names) - SHOWN_NAMES
            rest = f" and {more} more (in --json)" if more > 0 else ""
            changed.append(f"API names {kind}: {shown}{rest}")
    return worse, changed


def _moved(before: Outcome | None, after: Outcome | None) -> str:
    """How the largest difference between Linen and nnx moved; empty if it did not."""
    if before is None or after is None:
        return ""
    old, new = before.largest_difference, after.largest_difference
    if old == new or (math.isnan(old) and math.isnan(new)):
        return ""
    return f"largest difference of the two sides {old:.3g} -> {new:.3g}"


def _moved_bytecodes(
    before: Mapping[str, Bytecodes], after: Mapping[str, Bytecodes]
) -> list[str]:
    """One line for each idiom whose calls execute more or fewer bytecodes."""
    moves: dict[str, list[tuple[float, str]]] = {}
    counts = {
        (problem, row.what, row.idiom, row.mode, row.layers): row.bytecodes
        for problem, record in before.items()
        for row in record.counts
    }
    for problem, record in after.items():
        for row in record.counts:
            what, new = (row.what, row.idiom, row.mode), row.bytecodes
            old = counts.get((problem, *what, row.layers))
            if old and new and old != new:
                s = "s" * ((row.layers or 0) > 1)
                where = f"{problem}, {row.layers} layer{s}" if row.layers else problem
                move = new / old - 1, f"{where}: {old:,} -> {new:,}"
                moves.setdefault(label(*what, None), []).append(move)
    lines = []
    for idiom, found in sorted(moves.items()):
        (low, _), (high, _) = min(found), max(found)
        parts = f"{low:+.1%}" if low == high else f"{low:+.1%} to {high:+.1%}"
        farthest = max(found, key=lambda move: abs(move[0]))[1]
        lines.append(f"bytecodes per call, {idiom}: {parts} ({farthest})")
    return lines


def _distance(before: Numbers, after: Numbers | None) -> str:
    """How far numbers moved, or that a message changed; empty if neither."""
    if before == after:
        return ""
    after = "not stated" if after is None else after
    if isinstance(before, str) or isinstance(after, str) or len(before) != len(after):
        shown = [
            v if isinstance(v, str) else f"{len(v)} numbers" for v in (before, after)
        ]
        return f"{shown[0]} -> {shown[1]}"
    distance = largest(abs(a - b) for a, b in zip(before, after))
    ulps = max(_ulps(a, b) for a, b in zip(before, after))
    return f"moved by up to {distance:.3g}, {ulps} ulps of float32"


def _ulps(a: float, b: float) -> int:
    """How many float32 numbers lie between two."""

    def ordered(value: float) -> int:
        (bits,) = struct.unpack("<i", struct.pack("<f", value))
        return bits if bits >= 0 else -(bits & 0x7FFFFFFF)

    return abs(ordered(a) - ordered(b))


def api_changes(first: ReleaseResult, other: ReleaseResult) -> ApiChanges:
    """Names of flax.linen and flax.nnx that are gone, are new or take other ones."""
    before, after = first.facts.api, other.facts.api
    if not (before and after):
        return ApiChanges(first.name)
    both = [name for name in before if name in after and before[name] != after[name]]
    return ApiChanges(
        first.name,
        gone=[name for name in before if name not in after],
        added=[name for name in after if name not in before],
        changed=[f"{name}({_other(before[name], after[name])})" for name in both],
    )


def _other(before: list[str], after: list[str]) -> str:
    """What differs of two lists of parameters: `kernel=0.5 -> 0.75, +graph=None`."""
    old = {parameter.partition("=")[0]: parameter for parameter in before}
    new = {parameter.partition("=")[0]: parameter for parameter in after}
    texts = [
        f"{old[name]} -> {new[name].partition('=')[2] or 'no default'}"
        for name in old
        if name in new and old[name] != new[name]
    ]
    texts += [f"-{old[name]}" for name in old if name not in new]
    texts += [f"+{new[name]}" for name in new if name not in old]
    return ", ".join(texts) or "in another order"
