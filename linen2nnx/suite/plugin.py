"""The pytest plugin under which the parity tests run.

`-p linen2nnx.suite.plugin` loads it, in development and in `linen2nnx check`.
It runs a test with the fixture `nnx_mode` once in graph mode and once in tree mode,
writes what happened, as it happens, as one JSON object per line to the file that
`--linen2nnx-events` names, and says which problems take the most CPU time. Compiled
programs are kept between runs, in a folder for the installed versions.
"""

import json
import os
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from linen2nnx.environment import environment
from linen2nnx.files import compilation_cache, compiled_folder
from linen2nnx.modes import MODES

# CPU seconds that a problem's tests may take in both modes: on average, and each.
BUDGETS = {"cold": (12.0, 30.0), "warm": (6.0, 15.0)}
SHOWN_PROBLEMS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("linen2nnx")
    group.addoption(
        "--nnx-mode",
        choices=MODES,
        help="run the parity tests in this mode only; in both if not given",
    )
    group.addoption(
        "--linen2nnx-events",
        type=Path,
        metavar="FILE",
        help="write what happens to FILE, a JSON object per line",
    )
    group.addoption(
        "--budget",
        choices=BUDGETS,
        help="fail if the problems' tests take more CPU time than they may, without "
        "(cold) or with (warm) compiled programs of an earlier run",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Keep compiled programs, unless the user has a folder for them.

    JAX reads the variables when it is imported, which another plugin may have done.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    variables = compilation_cache(compiled_folder())
    os.environ.update(variables)
    if "jax" in sys.modules:
        import jax

        for name, value in variables.items():
            option = name.lower()
            kind = type(jax.config.values[option])
            jax.config.update(
                option, value if kind in (str, type(None)) else kind(value)
            )


def pytest_configure(config: pytest.Config) -> None:
    """Write events if a file was given; add up what the problems take.

    What is timed runs on one thread, which JAX is told before a file imports it.
    """
    if config.getoption("benchmark_enable", default=False):
        from linen2nnx.cost import paired

        paired.use_one_thread()
    if path := config.getoption("--linen2nnx-events"):
        config.pluginmanager.register(_EventWriter(path))
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_CpuTime(config.getoption("--budget")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses `nnx_mode` in both modes, or the one asked for.

    A test of the suite itself, and one that times, runs once: it has no mode.
    """
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if "nnx_mode" in metafunc.fixturenames and not marks & {"meta", "cost"}:
        mode = metafunc.config.getoption("--nnx-mode")
        modes = [mode] if mode else MODES
        metafunc.parametrize("nnx_mode", modes, indirect=True)


@pytest.fixture
def nnx_mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """`graph` or `tree`: nnx is set to it; to `graph` for a test without a mode."""
    from flax import nnx

    mode = getattr(request, "param", "graph")
    if hasattr(nnx, "set_graph_mode"):
        with nnx.set_graph_mode(mode == "graph"):
            yield mode
    else:  # before flax 0.12.6 graph mode is the only one
        yield mode


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Attach to a test what it compared: by check, `[leaves, largest difference]`."""
    parity = sys.modules.get("linen2nnx.parity")
    if parity is None:  # no test file imports it: there is nothing to compare
        return (yield)
    with parity.recording() as rows:
        try:
            return (yield)
        finally:
            by_check = {
                check: parity.Report([row for row in rows if row.check == check])
                for check in {row.check: None for row in rows}
            }
            compared = {
                check: [len(report.rows), report.largest_difference]
                for check, report in by_check.items()
            }
            item.user_properties.append(("compared", compared))


_STARTED = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Begin to count the CPU time of a test."""
    item.stash[_STARTED] = time.process_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Attach to each report of a test its CPU seconds so far, setup and all."""
    others = [pair for pair in item.user_properties if pair[0] != "cpu"]
    seconds = time.process_time() - item.stash[_STARTED]
    item.user_properties[:] = [*others, ("cpu", round(seconds, 4))]
    return (yield)


@contextmanager
def warnings_at_our_lines(root: Path) -> Iterator[None]:
    """Attribute each warning to the innermost line below `root` that led to it.

    A warning that flax or jax raises about itself names a line of theirs; which line of
    ours calls it is what one can mend. Installed packages and this one are not ours.
    """
    show = warnings.showwarning

    def show_at_our_line(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        *rest: Any,
    ) -> None:
        if not _is_ours(filename, root):
            for frame in reversed(traceback.extract_stack()):
                if _is_ours(frame.filename, root):
                    filename, lineno = frame.filename, frame.lineno or 0
                    break
        show(message, category, filename, lineno, *rest)

    warnings.showwarning = show_at_our_line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = show


def _is_ours(filename: str, root: Path) -> bool:
    path = Path(filename)
    installed = sysconfig.get_paths()
    not_ours = (installed["purelib"], installed["stdlib"], Path(__file__).parents[1])
    return path.is_relative_to(root) and not any(
        path.is_relative_to(folder) for folder in not_ours
    )


class _EventWriter:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", buffering=1)
        self.reader = os.getppid()

    def write(self, event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **content}), file=self.file)

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self, session: pytest.Session) -> Iterator[None]:
        with warnings_at_our_lines(session.config.rootpath):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        with warnings_at_our_lines(item.config.rootpath):
            return (yield)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.write("collected", tests=len(session.items), environment=environment())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write("error", test=report.nodeid, message=_last_line(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if os.getppid() != self.reader:  # killed: nobody reads what happens here
            pytest.exit("the command that runs these tests has ended", returncode=3)
        self.write("started", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self.write(
                "test",
                test=report.nodeid,
                outcome=report.outcome,
                message=_message(report),
                compared=dict(report.user_properties).get("compared", {}),
                cpu=_cpu(report),
            )

    def pytest_warning_recorded(
        self, warning_message: Any, nodeid: str, location: Any
    ) -> None:
        self.write(
            "warning",
            test=nodeid,
            message=f"{warning_message.category.__name__}: {warning_message.message}",
            where=f"{warning_message.filename}:{warning_message.lineno}",
        )

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.write("finished", exit_status=int(exitstatus))
        self.file.close()


class _CpuTime:
    """The CPU seconds of all tests of each problem, in both modes together."""

    def __init__(self, budget: str | None) -> None:
        self.budget = budget
        self.by_problem: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and report.nodeid.startswith("parity_tests/"):
            path = Path(report.nodeid.partition("::")[0])
            name = f"{path.parent.name}/{path.stem.removeprefix('test_')}"
            before = self.by_problem.get(name, 0.0)
            self.by_problem[name] = before + _cpu(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.over_budget() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> None:
        if self.by_problem:
            terminalreporter.section("CPU seconds of a problem's tests", sep="-")
            dearest = sorted(self.by_problem.items(), key=lambda pair: -pair[1])
            for name, seconds in dearest[:SHOWN_PROBLEMS]:
                terminalreporter.line(f"{seconds:6.1f}  {name}")
            mean = f"on average, of {len(dearest)}"
            terminalreporter.line(f"{self.average:6.1f}  {mean}")
        for line in self.over_budget():
            terminalreporter.line(line, red=True)

    @property
    def average(self) -> float:
        return sum(self.by_problem.values()) / len(self.by_problem)

    def over_budget(self) -> list[str]:
        """One line for each problem that takes too long, and for the average."""
        if self.budget is None:
            return []
        if not self.by_problem:
            return [f"--budget {self.budget}: no test of a problem ran"]
        on_average, each = BUDGETS[self.budget]
        lines = [
            f"--budget {self.budget}: {name} takes {seconds:.1f} CPU seconds, "
            f"more than {each:.0f}"
            for name, seconds in self.by_problem.items()
            if seconds > each
        ]
        if self.average > on_average:
            lines.append(
                f"--budget {self.budget}: a problem takes {self.average:.1f} CPU "
                f"seconds on average, more than {on_average:.0f}"
            )
        return lines


def _cpu(report: pytest.TestReport) -> float:
    return float(dict(report.user_properties).get("cpu", 0.0))  # type: ignore[arg-type]


def _message(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The error of a failed report, with its type."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message
    return str(report.longrepr) if report.failed else None


def _last_line(report: pytest.CollectReport) -> str:
    return (_message(report) or "").strip().splitlines()[-1].removeprefix("E").strip()
