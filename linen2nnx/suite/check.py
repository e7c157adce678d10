"""Run the parity tests of problems in the current environment.

Each mode of nnx gets a pytest process of its own, both at the same time. What a problem
showed in a mode is kept as it ends, and runs again only when the code or what is
installed has changed.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from linen2nnx.files import cache_folder
from linen2nnx.modes import MODES
from linen2nnx.suite import cached, catalog
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.pytest_run import PytestRun
from linen2nnx.suite.records import Outcome, Parity, now
from linen2nnx.suite.seen import Seen, options


class CheckError(RuntimeError):
    """The check could not run."""


@dataclass(frozen=True)
class Checked:
    """One problem whose tests have run in both modes.

    Attributes:
        problem: which.
        record: what they showed.
        is_kept: whether some of that is of an earlier run.
    """

    problem: catalog.ProblemFiles
    record: Parity
    is_kept: bool


def check(
    problems: Sequence[catalog.ProblemFiles],
    *,
    fresh: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    ended: Callable[[Checked], None] = lambda checked: None,
) -> list[Checked]:
    """Check problems in graph and in tree mode.

    Args:
        problems: which.
        fresh: run what an earlier check has kept, too.
        progress: called often, with the number of tests that ended and of all tests.
        ended: called with each problem when it has ended in both modes.

    Returns:
        All of them, in the order of `problems`.

    Raises:
        CheckError: if there is no problem, or pytest could not run them to their end.
        OSError: if a result cannot be kept.
    """
    if not problems:
        raise CheckError(f"there is no problem in {catalog.root()}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [_Run(mode, problems, fresh) for mode in MODES]
        for run in runs:
            run.start(folder)
            stack.callback(run.stop)
        found: dict[str, Checked] = {}
        running = True
        while running:
            running = any(run.is_running() for run in runs)
            for run in runs:
                run.read()
            for problem in problems:
                if problem.name not in found and all(
                    problem.name in run.ended for run in runs
                ):
                    found[problem.name] = _both(problem, runs)
                    ended(found[problem.name])
            progress(sum(r.tests_ended for r in runs), sum(r.tests for r in runs))
            for run in runs:
                run.raise_if_stopped()
            if running:
                time.sleep(0.1)
    return [found[problem.name] for problem in problems]


class _Run:
    """What problems show in one mode: what is kept, and a process for the others."""

    def __init__(
        self, mode: str, problems: Sequence[catalog.ProblemFiles], fresh: bool
    ) -> None:
        depends_on = {
            "packages": cached.installed(),
            "python": platform.python_version(),
            "machine": cached.machine(),
            "switches": cached.switches(),
            "mode": mode,
        }
        self.mode = mode
        self.code = {p.name: digest_of(p, "parity") for p in problems}
        self.files = {
            name: cached.path_of(cache_folder(), name, "parity", code, **depends_on)
            for name, code in self.code.items()
        }
        self.ended: dict[str, Parity] = {}
        for name, file in self.files.items():
            record = None if fresh else cached.find(file)
            if isinstance(record, Parity):
                self.ended[name] = record
        self.kept = frozenset(self.ended)
        self.missing = [p for p in problems if p.name not in self.kept]
        self.seen = Seen(catalog.root())
        self.process: PytestRun | None = None
        self.has_stopped = False

    def start(self, folder: Path) -> None:
        """Start the process, unless there is nothing to run."""
        if self.missing:
            files = [problem.test_path() for problem in self.missing]
            self.process = PytestRun(files, options(self.mode), {}, folder, self.mode)

    def stop(self) -> None:
        if self.process:
            self.process.stop()

    @property
    def tests(self) -> int:
        return self.process.total if self.process else 0

    @property
    def tests_ended(self) -> int:
        return self.seen.ended

    def is_running(self) -> bool:
        return self.process is not None and self.process.is_running()

    def read(self) -> None:
        """Take what was reported since the last call, and keep what has ended."""
        if self.process is None or self.seen.is_finished:
            return
        self.has_stopped = not self.process.is_running()  # before events are read
        for event in self.process.events():
            self.seen.take(event)
        for name in self.seen.take_ended():
            self._end(name)
        if self.seen.is_finished:
            for problem in self.missing:
                if problem.name not in self.ended:
                    self._end(problem.name)

    def raise_if_stopped(self) -> None:
        """Raise an error if the process has stopped before its end."""
        if self.process and self.has_stopped and not self.seen.is_finished:
            cause = self.process.last_words()
            raise CheckError(f"the tests in {self.mode} mode {cause}")

    def _end(self, name: str) -> None:
        outcome = self.seen.outcomes.get(name, Outcome())
        record = Parity(
            digest=self.code[name],
            environment=self.seen.environment,
            date=now(),
            command=f"linen2nnx check --only {name} --save",
            modes={self.mode: outcome},
        )
        self.ended[name] = record
        if not cached.is_passing(outcome):
            cached.keep(name, record, self.files[name])


def _both(problem: catalog.ProblemFiles, runs: Sequence[_Run]) -> Checked:
    record = cached.merged([run.ended[problem.name] for run in runs])
    is_kept = any(problem.name in run.kept for run in runs)
    return Checked(problem, record, is_kept)
