"""The pytest plugin under which the parity tests run.

`-p linen2nnx.suite.plugin` loads it, in development and in `linen2nnx check`.
It runs a test with the fixture `nnx_mode` once in graph mode and once in tree mode,
and writes what happened, as it happens, as one JSON object per line to the file that
`--linen2nnx-events` names.
"""

import json
import os
import shutil
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from linen2nnx.environment import environment
from linen2nnx.files import compilation_cache
from linen2nnx.suite.modes import MODES


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


def pytest_configure(config: pytest.Config) -> None:
    """Share compiled programs between processes; write events if a file was given."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # not a worker: they inherit it
        folder = tempfile.mkdtemp(prefix="linen2nnx-")
        os.environ.update(compilation_cache(Path(folder)))
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if path := config.getoption("--linen2nnx-events"):
        config.pluginmanager.register(_EventWriter(path))


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
        self.write("started", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self.write(
                "test",
                test=report.nodeid,
                outcome=report.outcome,
                message=_message(report),
                compared=dict(report.user_properties).get("compared", {}),
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


def _message(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The error of a failed report, with its type."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message
    return str(report.longrepr) if report.failed else None


def _last_line(report: pytest.CollectReport) -> str:
    return (_message(report) or "").strip().splitlines()[-1].removeprefix("E").strip()
