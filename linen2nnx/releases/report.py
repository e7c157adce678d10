"""Say what `linen2nnx.releases.upgrade` found, and keep it."""

from pathlib import Path

import junitparser
import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linen2nnx.files import write_whole
from linen2nnx.releases import results
from linen2nnx.releases.changes import api_changes
from linen2nnx.releases.results import Release, Releases
from linen2nnx.releases.upgrade import Upgrade
from linen2nnx.releases.verdicts import Cell, ReleaseResult, first_line, place
from linen2nnx.suite import cached, catalog, kept, records
from linen2nnx.suite.records import AnyRecord, Results

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


class Row(Release, kw_only=True):
    """A release in the file that `--json` writes.

    Attributes:
        verdicts: by problem or the user's file, and mode.
        worse: what got worse from the first release, a line each.
        changed: what else changed.
        own: what the user's tests showed, by file and mode.
    """

    verdicts: dict[str, dict[str, Cell]]
    worse: list[str]
    changed: list[str]
    own: dict[str, dict[str, records.Outcome]]


class Report(msgspec.Struct, kw_only=True):
    """The file that `--json` writes.

    Attributes:
        command: that gave it.
        date: in UTC, ISO 8601.
        releases: in the order of the command.
        problems: their records on all releases.
    """

    format: str = "linen2nnx upgrade check"
    version: int = 2
    command: str
    date: str
    releases: list[Row]
    problems: list[Results]


def save_json(upgrade: Upgrade, path: Path) -> None:
    """Write everything as JSON, in one step."""
    problems: dict[str, Results] = {}
    for release in upgrade.releases:
        for name, record in _records(release):
            problems.setdefault(name, Results(problem=name)).records.append(record)
    report = Report(
        command=upgrade.command,
        date=upgrade.date,
        releases=[_row(upgrade, release) for release in upgrade.releases],
        problems=list(problems.values()),
    )
    records.write(report, path)


def save_records(upgrade: Upgrade, folder: Path) -> None:
    """Put what was measured of each problem and release into a results folder.

    What failed for want of time, disk or memory is left out.

    Raises:
        linen2nnx.suite.records.RecordError: if a file there holds no records.
        OSError: if one cannot be written.
    """
    path = folder / "releases.json"
    kept_releases = results.load(path) if path.is_file() else Releases(releases=[])
    for release in upgrade.releases:
        if not release.told:
            continue
        for name, record in _records(release):
            if not _is_passing(record):
                kept.put(catalog.find(name), record, folder)
        kept_releases.put(_release(upgrade, release))
    results.save(kept_releases, path)


def _records(release: ReleaseResult) -> list[tuple[str, AnyRecord]]:
    """Each record of the suite's problems, of those that could be counted too."""
    counted = {
        name: record
        for name, record in release.bytecodes.items()
        if any(row.bytecodes is not None for row in record.counts)
    }
    return [*release.records().items(), *counted.items()]


def _is_passing(record: AnyRecord) -> bool:
    return isinstance(record, records.Parity) and any(
        map(cached.is_passing, record.modes.values())
    )


def _release(upgrade: Upgrade, release: ReleaseResult) -> Release:
    versions = release.environment
    first = upgrade.releases[0]
    return Release(
        name=versions["flax"],
        date=upgrade.date,
        command=f"linen2nnx check {versions['flax']}+jax{versions['jax']} --save",
        environment=versions,
        error=release.error,
        notes=release.notes,
        modes=release.facts.modes,
        behaviour=release.facts.behaviour,
        numbers=release.facts.numbers,
        api=None if release is first else api_changes(first, release),
    )


def _row(upgrade: Upgrade, release: ReleaseResult) -> Row:
    worse, changed = upgrade.changes(release)
    verdicts: dict[str, dict[str, Cell]] = {}
    for problem, mode, cell in release.cells():
        verdicts.setdefault(problem, {})[mode] = cell
    names = dict.fromkeys(name for files in release.own.values() for name in files)
    return Row(
        name=release.name,
        date=upgrade.date,
        command=upgrade.command,
        environment=release.environment,
        error=release.error,
        notes=release.notes,
        modes=release.facts.modes,
        behaviour=release.facts.behaviour,
        numbers=release.facts.numbers,
        api=api_changes(upgrade.releases[0], release),
        verdicts=verdicts,
        worse=worse,
        changed=changed,
        own={name: release.outcomes(name) for name in names},
    )


def save_junit(upgrade: Upgrade, path: Path) -> None:
    """Write a JUnit file: a suite per release and mode, a case per problem."""
    xml = junitparser.JUnitXml(upgrade.command)
    for release in upgrade.releases:
        if release.error:
            suite = junitparser.TestSuite(release.title)
            case = junitparser.TestCase("flax", release.name)
            case.result = [junitparser.Error(_xml(release.error))]
            suite.add_testcase(case)
            xml.add_testsuite(suite)
            continue
        for mode in release.facts.modes:
            suite = junitparser.TestSuite(f"{release.title}, {mode} mode")
            for problem in upgrade.problems:
                cell = release.cell(problem, mode)
                case = junitparser.TestCase(problem, f"{release.name}.{mode}")
                if cell.verdict == "not there yet":
                    case.result = [junitparser.Skipped(_xml(str(cell)))]
                elif not cell.verdict.startswith("holds"):
                    case.result = [junitparser.Failure(_xml(str(cell)))]
                suite.add_testcase(case)
            xml.add_testsuite(suite)
    write_whole(path, xml.tostring())


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
    modes = [mode for r in upgrade.releases if not r.error for mode in r.facts.modes]
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
    for problem in release.problems:
        for mode, outcome in release.outcomes(problem).items():
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
