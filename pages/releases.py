"""What the pages say of flax releases: the committed matrix, and the table of jax."""

import html
import json
from pathlib import Path
from typing import Any

from linen2nnx.releases import table as releases
from linen2nnx.suite import expected

FORMAT = "linen2nnx upgrade check"
COUNTED = "state/pure_update"  # its idioms run on every release of the matrix


def load(path: Path) -> dict[str, Any]:
    """The matrix that `linen2nnx check RELEASE... --json` wrote.

    Raises:
        ValueError: if the file is no such result of a version that this one reads.
    """
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT or content["version"] != 1:
        raise ValueError(f"{path} is no {FORMAT} result of version 1")
    return content


def matrix_fragment(content: dict[str, Any]) -> str:
    """Problem by release: the verdict of both modes, with the reason in the cell."""
    found = content["releases"]
    names = dict.fromkeys(name for release in found for name in release["problems"])
    lines = [
        '<div class="matrix" markdown>',
        "",
        *_heads("problem", content),
    ]
    for name in names:
        cells = [_cell(release, name) for release in found]
        lines.append(f"| [{name}]({name}.md) | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "</div>", "", *_source(content)])


def bytecodes_fragment(content: dict[str, Any]) -> str:
    """How many Python bytecodes a jitted call executes: idiom by release."""
    start = f"{COUNTED}, jitted, "
    counts = [release["bytecodes"] for release in content["releases"]]
    names = dict.fromkeys(
        name for of_release in counts for name in of_release if name.startswith(start)
    )
    lines = ['<div class="matrix" markdown>', "", *_heads("idiom", content)]
    for name in names:
        cells = [f"{found[name]:,}" if name in found else "" for found in counts]
        lines.append(f"| {name.removeprefix(start)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "</div>", "", *_source(content)])


def _heads(first: str, content: dict[str, Any]) -> list[str]:
    """The first two rows of a table with a column per release."""
    heads = [
        f"{release['name']}<br><small>jax {release['environment']['jax']}</small>"
        for release in content["releases"]
    ]
    return [
        f"| {first} | " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * len(heads),
    ]


def _source(content: dict[str, Any]) -> list[str]:
    last = content["releases"][-1]["environment"]
    return [
        f"Measured by `{content['command']}` on {content['date'][:10]}, Python "
        f"{last['python']}, {last['platform']}, {last['device'].partition(':')[0]}; "
        "[the result file](results/releases.json).",
        "{ .source }",
    ]


def changes_fragment(content: dict[str, Any]) -> str:
    """What each release does that the one before it in the matrix did not do."""
    lines = []
    for before, release in zip(content["releases"], content["releases"][1:]):
        old, new = (r["facts"]["behaviour"] for r in (before, release))
        texts = [
            f"{name}: `{_shorten(old[name])}` became `{_shorten(new[name])}`"
            for name in old
            if name in new and old[name] != new[name]
        ]
        old, new = (r["facts"]["numbers"] for r in (before, release))
        texts += [f"{name} moved" for name in old if old[name] != new.get(name)]
        lines += [f"**{release['name']}**, after {before['name']}:", ""]
        lines += [f"* {text}" for text in texts] or ["* none of these changed"]
        lines.append("")
    return "\n".join(lines).strip()


def flax_jax_fragment() -> str:
    """Which flax and jax go together, newest flax first."""
    lines = [
        '<div class="pairs" markdown>',
        "",
        "| flax | Python | declares jax | newest jax it works with | the next one |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in reversed(releases.table()):
        following = "none is out"
        if row.first_broken_jax:
            error = html.escape(_shorten(row.first_broken_error or ""))
            following = f"{row.first_broken_jax} fails: <code>{error}</code>"
        lines.append(
            f"| {row.flax} | {row.requires_python} | {row.requires_jax} "
            f"| {row.newest_working_jax} | {following} |"
        )
    return "\n".join([*lines, "", "</div>"])


def strip_fragment(name: str, content: dict[str, Any]) -> str:
    """One problem on every release of the matrix, oldest first."""
    lines, good = [], True
    for release in content["releases"]:
        env = release["environment"]
        verdicts = {o["verdict"] for o in release["problems"].get(name, {}).values()}
        fine = {"holds", "holds with warnings", "not there yet"}
        good = good and bool(verdicts) and verdicts <= fine
        text = "; ".join(_texts(release, name)) or "not run"
        lines.append(
            f"- **flax {env['flax']}** {text} "
            f"(jax {env['jax']}, Python {env.get('python', 'the same')})"
        )
    style = "ok" if good else "bad"
    return "\n".join(
        [
            f'<div class="releases {style}" markdown>',
            "",
            *lines,
            "",
            "</div>",
            "",
            "[All problems](../releases.md) on these releases; "
            "[run it](../upgrade.md) on others.",
        ]
    )


def _cell(release: dict[str, Any], name: str) -> str:
    return "<br>".join(_texts(release, name)) or html.escape(_shorten(release["error"]))


def _texts(release: dict[str, Any], name: str) -> list[str]:
    """Each verdict of a problem, with its reason, and the mode if not both have it."""
    by_text: dict[str, list[str]] = {}
    for mode, outcome in release["problems"].get(name, {}).items():
        text, reason = outcome["verdict"], outcome["reason"]
        known = expected.find(name, mode, release["environment"]["flax"])
        if known.verdict == text != "not there yet":  # which names the missing API
            reason = known.cause
        if reason:
            text += f": <small>{html.escape(_shorten(reason))}</small>"
        by_text.setdefault(text.replace("|", "&#124;"), []).append(mode)
    if len(by_text) == 1 and set(release["facts"]["modes"]) == {"graph", "tree"}:
        return list(by_text)
    return [f"{text} ({' and '.join(modes)} mode)" for text, modes in by_text.items()]


def _shorten(text: str) -> str:
    """Its first sentence, as far as it is short."""
    text = text.partition(". ")[0]
    return text if len(text) <= 100 else f"{text[:97]}..."
