"""Draw what `linen2nnx.releases.upgrade` found: as a table, Markdown, and JUnit."""

import xml.etree.ElementTree as ET
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linen2nnx.files import write_whole
from linen2nnx.releases.upgrade import Cell, ReleaseResult, Upgrade, first_line, place

STYLES = {
    "holds": "green",
    "holds with warnings": "yellow",
    "pitfall changed": "yellow",
    "not there yet": "cyan",
}
SUMMARY = (  # by exit status
    "nothing got worse",
    "something got worse",
    "it could not be told of every release",
)
SUMMARY_OF_ONE = (
    "every problem holds",
    "not every problem holds",
    "it could not be told",
)


def render(upgrade: Upgrade) -> Group:
    """A table of the verdicts, the reasons, what changed, and one line to sum up."""
    table = Table(title_justify="left", title=_title(upgrade))
    table.add_column("problem", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    for release in upgrade.releases:
        table.add_column(release.title)
    for problem, mode, cells in _rows(upgrade):
        table.add_row(problem, mode, *(_short(cell) for cell in cells))
    parts: list[RenderableType] = [table] if _rows(upgrade) else []
    details = Text()
    for heading, lines in _sections(upgrade):
        details.append(f"\n{heading}\n", style="bold")
        for line in lines:
            details.append(f"  {line}\n")
    status = upgrade.exit_status
    style = ("bold green", "bold red", "bold yellow")[status]
    return Group(*parts, details, Text(_summary(upgrade), style=style))


def markdown(upgrade: Upgrade) -> str:
    """The same, fit for the comment of a pull request."""
    titles = [release.title for release in upgrade.releases]
    lines = [
        f"### {upgrade.command}: {_summary(upgrade)}",
        "",
        _title(upgrade),
        "",
        "| " + " | ".join(["problem", "mode", *titles]) + " |",
        "| " + " | ".join(["---"] * (len(titles) + 2)) + " |",
    ]
    for problem, mode, cells in _rows(upgrade):
        verdicts = [cell.verdict for cell in cells]
        lines.append("| " + " | ".join([problem, mode, *verdicts]) + " |")
    for heading, texts in _sections(upgrade):
        lines += ["", f"**{heading}**", ""]
        lines += [f"* {_escape(text)}" for text in texts]
    return "\n".join(lines) + "\n"


def save_junit(upgrade: Upgrade, path: Path) -> None:
    """Write a JUnit file: a suite per release and mode, a case per problem."""
    root = ET.Element("testsuites", name=upgrade.command)
    for release in upgrade.releases:
        if release.error:
            suite = ET.SubElement(root, "testsuite", name=release.title)
            case = ET.SubElement(suite, "testcase", classname=release.name, name="flax")
            ET.SubElement(case, "error", message=_xml(release.error))
            continue
        for mode in release.facts["modes"]:
            suite = ET.SubElement(
                root, "testsuite", name=f"{release.title}, {mode} mode"
            )
            for problem in upgrade.problems:
                cell = release.cell(problem, mode)
                case = ET.SubElement(
                    suite, "testcase", classname=f"{release.name}.{mode}", name=problem
                )
                if cell.verdict == "not there yet":
                    ET.SubElement(case, "skipped", message=_xml(str(cell)))
                elif not cell.verdict.startswith("holds"):
                    ET.SubElement(case, "failure", message=_xml(str(cell)))
    ET.indent(root)
    write_whole(path, ET.tostring(root, encoding="unicode", xml_declaration=True))


def _summary(upgrade: Upgrade) -> str:
    words = SUMMARY if len(upgrade.releases) > 1 else SUMMARY_OF_ONE
    return words[upgrade.exit_status]


def _title(upgrade: Upgrade) -> str:
    for release in upgrade.releases:
        if "device" in release.environment:
            found = release.environment
            return f"Python {found['python']}, {found['platform']}, {found['device']}"
    return ""


def _rows(upgrade: Upgrade) -> list[tuple[str, str, list[Cell]]]:
    modes = [mode for r in upgrade.releases if not r.error for mode in r.facts["modes"]]
    return [
        (problem, mode, [release.cell(problem, mode) for release in upgrade.releases])
        for problem in upgrade.problems
        for mode in dict.fromkeys(modes)
    ]


def _short(cell: Cell) -> Text:
    return Text(cell.verdict, style=STYLES.get(cell.verdict, "red"))


def _sections(upgrade: Upgrade) -> list[tuple[str, list[str]]]:
    """Headings and lines below the table."""
    sections = []
    for release in upgrade.releases:
        if lines := [*release.notes, *_reasons(release)]:
            sections.append((release.title, lines))
        if unexpected := release.unexpected():
            sections.append((f"{release.title}: not as expected", unexpected))
    first, *others = upgrade.releases
    for release in others:
        worse, changed = upgrade.changes(release)
        heading = f"From {first.name} to {release.name}"
        if worse:
            sections.append((f"{heading}: got worse", worse))
        if changed:
            sections.append((f"{heading}: changed", changed))
        if not worse and not changed and first.told and release.told:
            sections.append((f"{heading}: nothing changed", []))
    return sections


def _reasons(release: ReleaseResult) -> list[str]:
    """Each reason once, with the problems and modes that it holds for."""
    if release.error:
        return [release.error]
    found: dict[str, list[str]] = {}
    failing = False
    for problem, mode, cell in release.cells():
        failing = failing or cell.verdict in ("differs", "fails")
        if cell.reason and cell.verdict != "holds with warnings":
            found.setdefault(str(cell), []).append(f"{problem} ({mode})")
    lines = [f"{text}: {', '.join(where)}" for text, where in found.items()]
    lines += _warnings(release)
    logs = [f"log of {mode} mode: {log}" for mode, log in release.logs.items()]
    return lines + logs if failing else lines


def _warnings(release: ReleaseResult) -> list[str]:
    """Each warning once, with the line of ours that caused it first."""
    causes: dict[str, dict[str, None]] = {}
    where: dict[str, dict[str, None]] = {}
    for problem, modes in release.problems.items():
        for mode, outcome in modes.items():
            for warning in outcome.warnings:
                text = first_line(warning)
                causes.setdefault(text, {})[place(warning)] = None
                where.setdefault(text, {})[f"{problem} ({mode})"] = None
    lines = []
    for text, (first, *others) in causes.items():
        more = f" and {len(others)} more lines" if others else ""
        at = ", ".join(where[text])
        lines.append(f"warning: {text}, caused at {first}{more}: {at}")
    return lines


def _escape(text: str) -> str:
    for character in "\\`*_<>|":
        text = text.replace(character, f"\\{character}")
    return text


def _xml(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
