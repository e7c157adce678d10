"""The command `linen2nnx`.

It imports neither jax nor flax, but for `compare`: tests run in processes of their own.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TimeElapsedColumn,
)
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from linen2nnx.files import write_whole
from linen2nnx.suite import bench as benchmarks
from linen2nnx.suite import bytecodes as counts
from linen2nnx.suite import catalog, kept, records
from linen2nnx.suite.cached import is_passing
from linen2nnx.suite.check import Checked, CheckError
from linen2nnx.suite.check import check as run_check
from linen2nnx.suite.check_table import CheckTable, details
from linen2nnx.suite.stale import stale as list_stale

SIDE_WIDTH = 68
SIDES: dict[str, catalog.Side] = {"Linen": "linen", "nnx": "nnx"}

app = typer.Typer(
    help="Compare Flax Linen with Flax nnx, problem by problem, and prove both equal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def check(
    release: Annotated[
        list[str] | None,
        typer.Argument(
            help="Releases of flax to compare: 0.12.8, 0.12.8+jax0.10.2, "
            "0.12.6..0.12.8, current, latest, a wheel or folder of flax. "
            "None: only the tests, in the current environment."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="A problem, or a chapter such as surgery/; several are fine.",
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            "--python", metavar="VERSION", help="Python of the environments: 3.12."
        ),
    ] = None,
    jax: Annotated[
        str | None,
        typer.Option(
            "--jax", metavar="newest", help="The jax that a plain install would get."
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            "--limit", metavar="SECONDS", min=1, help="For one test, before it fails."
        ),
    ] = 180,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the results of earlier checks.")
    ] = False,
    tests: Annotated[
        Path | None,
        typer.Option(
            "--tests",
            metavar="PATH",
            exists=True,
            help="Run your own tests too: a file or folder.",
        ),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="PACKAGE", help="What they need; or a folder."),
    ] = None,
    requirements: Annotated[
        Path | None,
        typer.Option(
            "--requirements",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The same, a line each.",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the results to FILE."),
    ] = None,
    save: Annotated[
        bool,
        typer.Option("--save", help="Keep the results in docs/results of the clone."),
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write the report to FILE."),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Write JUnit's XML to FILE."),
    ] = None,
) -> None:
    """Run the parity tests, in graph and tree mode: here, or on releases of flax.

    Releases get an environment each, made by uv and kept in a cache; the current one is
    left alone. What changed is told from the first to each other.

    Exit status: 0 when every problem holds (of releases: when nothing got worse), 1
    when one does not (when something did), 2 when it could not be told.
    """
    for file in (json, markdown, junit):
        if file is not None and not file.parent.is_dir():
            _fail(f"{file.parent} is no folder to write {file.name} to")
    if jax not in (None, "newest"):
        _fail(f"--jax takes newest, got {jax}; one version is 0.12.8+jax0.10.2")
    needed = [_requirement(text) for text in with_ or []]
    if requirements is not None:
        needed.append(f"--requirements={requirements.resolve()}")
    if save and any(Path(name).exists() for name in release or []):
        _fail("--save keeps what others can run again; a path is none of that")
    if needed and tests is None:
        _fail("--with and --requirements say what --tests needs; it takes a path")
    try:
        problems = catalog.chosen(only or [])
        folder = kept.results_folder() if save else None
    except (catalog.UnknownProblemError, kept.NotKeptError) as error:
        _fail(str(error))
    if release:
        options = {
            "problems": problems,
            "python": python,
            "newest_jax": jax == "newest",
            "limit": limit,
            "fresh": fresh,
            "tests": tests,
            "requirements": needed,
        }
        _check_releases(release, options, json, markdown, junit, folder)
    for option, given in {
        "--python": python,
        "--jax": jax,
        "--tests": tests,
        "--markdown": markdown,
        "--junit": junit,
    }.items():
        if given:
            _fail(f"{option} is for releases; name one, such as 0.12.8")
    _check_here(problems, fresh, json, folder)


def _check_here(
    problems: list[catalog.ProblemFiles],
    fresh: bool,
    json: Path | None,
    folder: Path | None,
) -> NoReturn:
    """Check in the current environment, print, write and exit."""
    console, errors = Console(), Console(stderr=True)
    bars = console if console.is_terminal else errors  # lines go above the bar
    columns = ("parity tests", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    table = CheckTable(problem.name for problem in problems)
    has_head = False

    def show(checked: Checked) -> None:
        nonlocal has_head
        if not has_head:
            console.print(table.head(checked.record.environment))
            has_head = True
        console.print(table.line(checked))
        if folder is not None and not any(
            map(is_passing, checked.record.modes.values())
        ):
            kept.put(checked.problem, checked.record, folder)

    try:
        with Progress(
            *columns, console=bars, transient=True, disable=not bars.is_terminal
        ) as progress:
            task = progress.add_task("", total=None)
            found = run_check(
                problems,
                fresh=fresh,
                progress=lambda done, total: progress.update(
                    task, completed=done, total=total or None
                ),
                ended=show,
            )
        console.print(details(found))
        if json is not None:
            of_problems = [
                records.Results(problem=c.problem.name, records=[c.record])
                for c in found
            ]
            records.save_all(of_problems, json)
    except (CheckError, records.RecordError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename2 or error.filename} was not written: {error.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted; what had ended is kept, and the next check goes on there")
    raise typer.Exit(0 if all(checked.record.holds for checked in found) else 1)


def _check_releases(
    names: list[str],
    options: dict[str, Any],
    json: Path | None,
    markdown: Path | None,
    junit: Path | None,
    folder: Path | None,
) -> NoReturn:
    """Check, print, write and exit."""
    from linen2nnx.files import cache_folder
    from linen2nnx.releases import report as upgrade_report
    from linen2nnx.releases.environments import UpgradeError
    from linen2nnx.releases.upgrade import upgrade
    from linen2nnx.suite.expected import ExpectedError

    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=max(100, 40 + 24 * len(names)))
    columns = (BarColumn(), MofNCompleteColumn(), "{task.description}")
    try:
        with Progress(
            *columns, console=errors, transient=True, disable=not errors.is_terminal
        ) as bars:
            tasks: dict[str, TaskID] = {}

            def show(runs: dict[str, tuple[str, int, int]]) -> None:
                for name in tasks.keys() - runs.keys():
                    bars.remove_task(tasks.pop(name))
                for name, (what, done, total) in runs.items():
                    if name not in tasks:
                        tasks[name] = bars.add_task(name, total=None)
                    bars.update(
                        tasks[name],
                        description=f"flax {name} {what}",
                        completed=done,
                        total=total or None,
                    )

            found = upgrade(names, **options, progress=show)
        console.print(upgrade_report.render(found))
        if json is not None:
            upgrade_report.save_json(found, json)
        if markdown is not None:
            write_whole(markdown, upgrade_report.markdown(found))
        if junit is not None:
            upgrade_report.save_junit(found, junit)
        if folder is not None:
            upgrade_report.save_records(found, folder)
    except (UpgradeError, ExpectedError, records.RecordError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or cache_folder()}: {error.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted; what had ended is kept, and the next check goes on there")
    raise typer.Exit(found.exit_status)


def _requirement(text: str) -> str:
    """A folder as uv installs it, so that an edit of it counts; else as it is."""
    return f"--editable={Path(text).resolve()}" if Path(text).is_dir() else text


@app.command()
def bench(
    problem: Annotated[
        list[str] | None,
        typer.Argument(help="Such as surgery/replace_kernel; all if none is given."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the results to FILE."),
    ] = None,
    save: Annotated[
        bool,
        typer.Option("--save", help="Keep the results in docs/results of the clone."),
    ] = False,
    bytecodes: Annotated[
        bool,
        typer.Option(
            "--bytecodes", help="Count Python bytecodes instead: exact, Python 3.12+."
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what has been kept.")
    ] = False,
) -> None:
    """Time every nnx idiom against Linen, on the CPU or GPU that JAX finds.

    What was measured before, of the same code and versions, is not measured again. Each
    problem's result is kept as it ends.

    Exit status: 0 when every measurement is published, 1 when the machine was too noisy
    for one, 2 when the benchmarks could not run.
    """
    if json is not None and not json.parent.is_dir():
        _fail(f"{json.parent} is no folder to write {json.name} to")
    measure, show = (
        (counts.bytecodes, counts.render)
        if bytecodes
        else (benchmarks.bench, benchmarks.render)
    )
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "{task.description}",
    )
    errors = Console(stderr=True)
    try:
        problems = [catalog.find(name) for name in problem or []] or catalog.problems()
        with Progress(
            *columns, console=errors, transient=True, disable=not errors.is_terminal
        ) as progress:
            task = progress.add_task("starting", total=None)
            found = measure(
                problems,
                fresh=fresh,
                save=save,
                progress=lambda done, total, name: progress.update(
                    task, completed=done, total=total, description=name
                ),
            )
        console = Console()
        if not console.is_terminal:
            console = Console(width=160)
        console.print(show(found))
        if json is not None:
            records.save_all(found, json)
    except (
        benchmarks.BenchError,
        catalog.UnknownProblemError,
        kept.NotKeptError,
        records.RecordError,
    ) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename} was not written: {error.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted; what had ended is kept, and the next run goes on there")
    costs = (record for results in found for record in results.records)
    noisy = any(isinstance(r, records.Cost) and r.not_published for r in costs)
    raise typer.Exit(1 if noisy else 0)


@app.command()
def stale() -> None:
    """List what of docs/results of a clone is missing or of other code than now's.

    Exit status: 0 when nothing is, 1 when something is, 2 when this is no clone.
    """
    try:
        lines = list_stale(kept.results_folder())
    except kept.NotKeptError as error:
        _fail(str(error))
    for line in lines:
        Console(soft_wrap=True, highlight=False).print(line, markup=False)
    raise typer.Exit(1 if lines else 0)


@app.command()
def compare(
    linen: Annotated[
        str,
        typer.Argument(help="package.module:Model, of Linen; or of a Pair, alone."),
    ],
    nnx: Annotated[str | None, typer.Argument(help="The same of nnx.")] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SPEC",
            help="What both are called with, in order: float32[8,32], bool[8], "
            "'int32[4,16]<100', x.npy, x.npz, or by keyword: mask=bool[4,16].",
        ),
    ] = None,
    linen_kwargs: Annotated[
        list[str] | None,
        typer.Option(
            "--linen-kwargs", metavar="NAME=VALUE", help="Such as train=False."
        ),
    ] = None,
    nnx_kwargs: Annotated[
        list[str] | None,
        typer.Option("--nnx-kwargs", metavar="NAME=VALUE", help="The same for nnx."),
    ] = None,
    eval_: Annotated[
        bool,
        typer.Option("--eval", help="Set the nnx model to eval mode; it is in train."),
    ] = False,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            metavar="LINEN=NNX",
            help="Such as Dense_0=hidden, or a JSON file of such pairs.",
        ),
    ] = None,
    variables: Annotated[
        Path | None,
        typer.Option(
            "--variables",
            metavar="PATH",
            help="A Linen checkpoint: msgpack, npz, or a folder of orbax. None: random "
            "values in every leaf.",
        ),
    ] = None,
    checks: Annotated[
        str | None,
        typer.Option("--checks", metavar="NAMES", help="Such as outputs,gradients."),
    ] = None,
    jit: Annotated[
        bool, typer.Option("--jit", help="Run both under jax.jit, not op by op.")
    ] = False,
    randomness: Annotated[
        str | None,
        typer.Option(
            "--randomness",
            metavar="KIND",
            help="deterministic, same-keys or statistics.",
        ),
    ] = None,
) -> None:
    """Compare your Linen model with your port to nnx, from the same values.

    A model is named by package.module:name, found from the current folder: a class, a
    model, or a function without arguments that makes one; of nnx it may take rngs. A
    linen2nnx.Pair, named alone, says itself what both are and are called with.

    Exit status: 0 when both compute the same, 1 when they differ, 2 when it could not
    be told.
    """
    from linen2nnx import named, parity

    names = [name.replace("-", " ") for name in checks.split(",")] if checks else None
    options: dict[str, Any] = {
        "inputs": input_,
        "linen_kwargs": linen_kwargs,
        "nnx_kwargs": nnx_kwargs,
        "rename": rename,
        "variables": variables,
        "eval_mode": eval_,
        "randomness": randomness and randomness.replace("-", " "),
    }
    options = {name: value for name, value in options.items() if value}
    if nnx is not None and not input_:
        _fail("--input is missing: what both models are called with")
    try:
        if nnx is None:
            pair = named.named_pair(linen)
            if options:
                raise named.CompareError(
                    "beside a Pair, which says the rest itself, --checks and --jit go"
                )
        else:
            pair = named.pair_of(linen, nnx, **options)
        report = parity.compare(pair, checks=names or parity.CHECKS, jit=jit)
    except named.CompareError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    except Exception as error:  # of the code that is compared
        first_line = f"{error}".partition("\n")[0]
        advice = [n for n in getattr(error, "__notes__", ()) if not n.startswith("--")]
        _fail(" ".join([f"{type(error).__name__}: {first_line}", *advice]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    console.print(report)
    raise typer.Exit(1 if report.failed else 0)


@app.command("list")
def list_problems() -> None:
    """List the problems by chapter."""
    console = Console(highlight=False, soft_wrap=True)
    problems = catalog.problems()
    width = max(len(problem.name) for problem in problems)
    chapter = None
    for problem in problems:
        if problem.chapter != chapter:
            chapter = problem.chapter
            console.print(chapter, style="bold")
        console.print(f"  {problem.name:{width}}  {problem.description}", markup=False)


@app.command()
def show(
    problem: Annotated[str, typer.Argument(help="Such as surgery/replace_kernel.")],
    nnx: Annotated[
        bool, typer.Option("--nnx", help="Print the nnx idiom alone, as plain code.")
    ] = False,
    linen: Annotated[
        bool, typer.Option("--linen", help="Print the Linen idiom alone, likewise.")
    ] = False,
) -> None:
    """Print how a problem is written in Linen and in nnx, side by side."""
    if nnx and linen:
        _fail("--nnx and --linen print one side alone; give one of them, or neither")
    try:
        found = catalog.find(problem)
    except catalog.UnknownProblemError as error:
        _fail(str(error))
    if nnx or linen:
        sys.stdout.write(found.idiom("nnx" if nnx else "linen"))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=2 * SIDE_WIDTH + 3)
    _print_side_by_side(console, found)


def _print_side_by_side(console: Console, problem: catalog.ProblemFiles) -> None:
    """Section by section, so that the two sides stay level; stacked if too narrow."""
    console.print(Text(f"{problem.name}: {problem.description}", style="bold"))
    sides = {
        side: {"imports": problem.imports(of)}
        | {region.name: region.code for region in problem.regions(of)}
        for side, of in SIDES.items()
    }
    wide = console.width >= 2 * SIDE_WIDTH + 3
    for section in dict.fromkeys([*sides["Linen"], *sides["nnx"]]):
        blocks = [
            Group(
                Rule(
                    f"{side}: {section if section in code else 'no counterpart'}",
                    align="left",
                    style="dim",
                ),
                Syntax(
                    code.get(section, ""),
                    "python",
                    theme="ansi_light",
                    background_color="default",
                    word_wrap=True,
                ),
            )
            for side, code in sides.items()
        ]
        if wide:
            row = Table.grid(padding=(0, 3, 1, 0))
            row.add_column(width=SIDE_WIDTH)
            row.add_column(width=SIDE_WIDTH)
            row.add_row(*blocks)
            console.print(row)
        else:
            console.print(*blocks, sep="\n")


def _fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"linen2nnx: {message}", style="red", markup=False)
    raise typer.Exit(2)


def main() -> None:
    """Run the command; a request to end it ends its children too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="linen2nnx")
    except SyntaxError as error:  # of a problem's file, which is read and not imported
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        where = f"{error.filename}:{error.lineno}"
        console.print(f"linen2nnx: {where}: {error.msg}", style="red", markup=False)
        sys.exit(2)
