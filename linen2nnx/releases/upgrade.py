"""Run the suite on several flax releases.

Each release gets an isolated environment; each of its modes a pytest process. Where one
test hangs or ends its process, its problem fails and the others go on in a new one.
What a problem showed is kept as it ends, and runs again only when its code, the
packages or the machine have changed.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from linen2nnx.files import cache_folder, compilation_cache, digest, write_whole
from linen2nnx.releases import environments
from linen2nnx.releases.changes import changes
from linen2nnx.releases.environments import (
    Children,
    Environment,
    InstallError,
    Spec,
    Stopped,
    Uv,
)
from linen2nnx.releases.results import Facts
from linen2nnx.releases.verdicts import VERDICTS, ReleaseResult
from linen2nnx.suite import bytecodes, cached, catalog
from linen2nnx.suite.cached import TIME_LIMIT
from linen2nnx.suite.digests import digest_of, digest_of_modules
from linen2nnx.suite.pytest_run import PytestRun
from linen2nnx.suite.records import (
    Bytecodes,
    Count,
    Failure,
    Kind,
    Outcome,
    Parity,
    now,
)
from linen2nnx.suite.seen import WARNINGS, Seen, options

LIMIT = 180.0  # seconds without a test's end after which a run is stopped
MEMORY_OF_A_RUN = 2 << 30
PROBE = "linen2nnx.releases.probe"


@dataclass
class Upgrade:
    """All releases of one check, the first being what the others are compared with."""

    command: str
    date: str
    releases: list[ReleaseResult]

    @property
    def problems(self) -> list[str]:
        """Every problem that ran on any release."""
        names = {name: None for release in self.releases for name in release.problems}
        return list(names)

    def changes(self, release: ReleaseResult) -> tuple[list[str], list[str]]:
        """What got worse from the first release to this one, and what else changed."""
        return changes(self.releases[0], release, self.problems)

    @property
    def exit_status(self) -> int:
        """0: nothing got worse; 1: something did; 2: it could not be told."""
        first, *others = self.releases
        if not first.told:
            return 2
        if others:
            worse = any(self.changes(other)[0] for other in others if other.told)
        else:
            worse = bool(first.error or first.unexpected()) or any(
                cell.verdict in VERDICTS[2:] for _, _, cell in first.cells()
            )
        if worse:
            return 1
        return 0 if all(release.told for release in self.releases) else 2


Progress = Callable[[dict[str, tuple[str, int, int]]], None]


def upgrade(
    arguments: Sequence[str],
    *,
    problems: Sequence[catalog.ProblemFiles] | None = None,
    python: str | None = None,
    newest_jax: bool = False,
    fresh: bool = False,
    limit: float = LIMIT,
    tests: Path | None = None,
    requirements: Sequence[str] = (),
    cache: Path | None = None,
    progress: Progress = lambda runs: None,
) -> Upgrade:
    """Check the suite on several flax releases.

    Args:
        arguments: the releases, as `linen2nnx.releases.environments.parse` takes them.
        problems: which; None are all.
        python: version or path of the Python of all environments; None is this one.
        newest_jax: take the newest jax, whatever the table of releases says.
        fresh: run what is in the cache again.
        limit: seconds without a test's end after which a run is stopped.
        tests: a file or folder of other tests, run beside the suite.
        requirements: what those tests need, as pip takes it; a folder is installed so
            that an edit there counts.
        cache: the folder of environments and results; None is the user's.
        progress: called often, with what each run does and how far it is.

    Returns:
        The results, in the order of the arguments.

    Raises:
        linen2nnx.releases.environments.UpgradeError: if the check cannot begin.

    Example:
        upgrade(["0.12.6", "0.12.8"]).exit_status
    """
    cache = (cache or cache_folder()).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    problems = catalog.problems() if problems is None else problems
    if not problems:
        raise environments.UpgradeError(f"there is no problem in {catalog.root()}")
    children = Children()
    uv = Uv(python, children)
    specs = environments.parse(arguments, uv, cache, newest_jax=newest_jax)
    date = now()
    work = _Work(uv, cache, problems, fresh, limit, tests, requirements)
    results = []
    pool = ThreadPoolExecutor(_parallel_runs())
    try:
        pending: set[Future[Any]] = set()
        prepared: dict[Future[Any], ReleaseResult] = {}
        for spec in specs:
            if isinstance(spec, Spec):
                results.append(
                    ReleaseResult(spec.name, notes=[spec.note] if spec.note else [])
                )
                future = pool.submit(work.prepare, spec, results[-1])
                prepared[future] = results[-1]
                pending.add(future)
            else:
                name, cause = spec
                error = f"could not be installed: {cause}"
                results.append(ReleaseResult(name, error, told=False))
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in done:
                environment = future.result()
                if future in prepared and environment:
                    result = prepared[future]
                    if uv.can_count_bytecodes:
                        count = pool.submit(work.count, result, environment)
                        pending.add(count)
                    for mode in result.facts.modes:
                        run = pool.submit(work.run, result, environment, mode)
                        pending.add(run)
                        if tests:
                            own = pool.submit(work.run_own, result, environment, mode)
                            pending.add(own)
            progress(dict(work.progress))
    finally:
        children.stop()
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(work.folder, ignore_errors=True)
    words = ["linen2nnx check", *arguments]
    words += ["--python", python] if python else []
    words += ["--jax newest"] if newest_jax else []
    words += [f"--tests {tests}"] if tests else []
    return Upgrade(" ".join(words), date, results)


class _OwnRun(msgspec.Struct):
    """What the user's tests showed in one mode, by file, and the log of pytest."""

    log: str
    files: dict[str, Outcome]


class _Work:
    """What one check does, in the threads of its pool."""

    def __init__(
        self,
        uv: Uv,
        cache: Path,
        problems: Sequence[catalog.ProblemFiles],
        fresh: bool,
        limit: float,
        tests: Path | None,
        requirements: Sequence[str],
    ) -> None:
        self.tests = tests.resolve() if tests else None
        self.requirements = requirements
        self.uv = uv
        self.children = uv.children
        self.cache = cache
        self.problems = problems
        self.fresh = fresh
        self.limit = limit
        self.code = {
            kind: {p.name: digest_of(p, kind) for p in problems}
            for kind in ("parity", "bytecodes")
        }
        self.root = environments.suite_copy(cache)
        self.folder = Path(tempfile.mkdtemp(prefix="linen2nnx-"))
        self.progress: dict[str, tuple[str, int, int]] = {}

    def prepare(self, spec: Spec, result: ReleaseResult) -> Environment | None:
        """Make the environment and take its facts; None where there is nothing to run.

        Raises:
            Stopped: if the check was interrupted.
        """
        self.progress[spec.name] = ("installing", 0, 0)
        try:
            environment = self.uv.environment(spec, self.requirements, self.cache)
        except InstallError as error:
            result.error = f"could not be installed: {error}"
            result.told = False
            return None
        finally:
            del self.progress[spec.name]
        self.progress[spec.name] = ("importing flax", 0, 0)
        try:
            result.facts = self._facts(environment)
        finally:
            del self.progress[spec.name]
        if cause := result.facts.error:
            result.environment = {
                name: environment.packages[name]
                for name in ("flax", "jax")
                if name in environment.packages
            }
            seen = Seen(self.root)
            result.error = f"flax does not import: {seen.clean(cause)}"
            return None
        result.environment = result.facts.environment
        return environment

    def run(self, result: ReleaseResult, environment: Environment, mode: str) -> None:
        """Run the suite in one mode: of each problem, what is kept, or its tests."""
        label = f"{result.title}, {mode} mode"
        files = self._files(environment, "parity", mode=mode, limit=self.limit)
        found: dict[str, Parity] = {}
        for name, file in files.items():
            record = None if self.fresh else cached.find(file)
            if isinstance(record, Parity):
                found[name] = record
        missing = [p for p in self.problems if p.name not in found]
        seen = Seen(self.root)

        def end(name: str) -> None:
            outcome = seen.outcomes.get(name, Outcome())
            record = Parity(
                digest=self.code["parity"][name],
                environment=result.environment,
                date=now(),
                command=_command(result, name),
                modes={mode: outcome},
            )
            found[name] = record
            if not cached.is_passing(outcome):
                cached.keep(name, record, files[name])

        log = self.cache / "logs" / f"{files[self.problems[0].name].stem}.log"
        batches = [missing] if missing else []
        try:
            while batches:
                batch = batches.pop(0)
                folder = Path(tempfile.mkdtemp(dir=self.folder))
                tests = [p.test_path().relative_to(catalog.root()) for p in batch]
                run = PytestRun(
                    [self.root / test for test in tests],
                    options(mode),
                    self._variables(environment),
                    folder,
                    mode,
                    python=environment.python,
                    root=self.root,
                )
                if cause := self._follow(run, seen, label, end):
                    batches = [*_after(batch, seen, cause), *batches]
                _add_to_log(log, folder / f"{mode}.log")
        finally:
            self.progress.pop(label, None)
        for problem in missing:
            if problem.name not in found:
                end(problem.name)
        result.parity[mode] = {p.name: found[p.name] for p in self.problems}
        if log.is_file():
            result.logs[mode] = str(log)

    def count(self, result: ReleaseResult, environment: Environment) -> None:
        """Count the bytecodes of each idiom: what is kept, or in a process.

        A problem that ends its process is noted, and the others go on in a new one.
        """
        label = f"{result.title}, bytecodes"
        files = self._files(environment, "bytecodes")
        found = result.bytecodes
        for name, file in files.items():
            record = None if self.fresh else cached.find(file)
            if isinstance(record, Bytecodes):
                found[name] = record
        missing = [p.name for p in self.problems if p.name not in found]
        while missing:
            self.progress[label] = ("", len(found), len(self.problems))
            try:
                status, out, error = self.children.run(
                    [environment.python, "-m", bytecodes.__name__, *missing],
                    self._variables(environment) | {"PYTHONHASHSEED": "0"},
                    self.folder,
                    self.limit * len(missing),
                )
            finally:
                del self.progress[label]
            counted = bytecodes.rows(out)
            left = [name for name in missing if name not in counted]
            if left and status is not None:
                last = (error.strip().splitlines() or ["no output"])[-1]
                cause = Seen(self.root).clean(last)
                counted[left[0]] = [Count("import", "", None, None, None, cause)]
            for name, counts in counted.items():
                record = Bytecodes(
                    digest=self.code["bytecodes"][name],
                    environment={
                        "python": ".".join(self.uv.python_version.split(".")[:2]),
                        "flax": result.environment["flax"],
                        "jax": result.environment["jax"],
                    },
                    date=now(),
                    command=_command(result, name),
                    counts=counts,
                )
                found[name] = record
                if status != -9:
                    cached.keep(name, record, files[name])
            missing = left[1:]
            if left and status is None:
                result.notes.append(f"bytecodes of {left[0]} took too long to count")
        causes: dict[str, list[str]] = {}
        for name, record in found.items():
            for row in record.counts:
                if row.what == "import":
                    causes.setdefault(row.error, []).append(name)
        for cause, names in causes.items():
            result.notes.append(
                f"bytecodes per call were not counted: {cause}: {', '.join(names)}"
            )

    def run_own(
        self, result: ReleaseResult, environment: Environment, mode: str
    ) -> None:
        """Run the user's tests likewise; each file stands as a problem."""
        label = f"{result.title}, {mode} mode, {self.tests}"
        file = self._file(
            environment,
            "own tests",
            [self.root.name, str(self.tests), self._digest_of_own()],
            mode=mode,
            limit=self.limit,
        )
        try:
            content = None if self.fresh else _read(file, _OwnRun)
            if content is None:
                content = self._run_own_mode(environment, mode, label, file.stem)
                if not any(map(cached.is_passing, content.files.values())):
                    _write(content, file)
        finally:
            self.progress.pop(label, None)
        result.own[mode] = content.files
        result.logs[f"{mode}, own tests"] = content.log

    def _digest_of_own(self) -> str:
        """Of every Python file of the tests and of the folders they need."""
        assert self.tests
        folders = [Path(r.removeprefix("--editable=")) for r in self.requirements]
        found = [
            path.read_bytes()
            for top in (self.tests, *folders)
            for path in ([top] if top.is_file() else sorted(top.rglob("*.py")))
            if not any(part.startswith(".") for part in path.relative_to(top).parts)
        ]
        return digest(found)

    def _run_own_mode(
        self, environment: Environment, mode: str, label: str, name: str
    ) -> _OwnRun:
        assert self.tests
        tests = self.tests
        seen = Seen(self.root, lambda test: test.partition("::")[0] or tests.name)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        run = PytestRun(
            [tests],
            ["--override-ini", WARNINGS, "--nnx-mode", mode],
            self._variables(environment) | {"NNX_GRAPH_MODE": str(mode == "graph")},
            folder,
            mode,
            python=environment.python,
            own_settings=True,
        )
        if cause := self._follow(run, seen, label):
            test = seen.running or f"{tests.name}::import"
            seen.fail(test, f"{cause}; no test ran after it")
        log = self.cache / "logs" / f"{name}.log"
        _add_to_log(log, folder / f"{mode}.log")
        ran = {n: out for n, out in seen.outcomes.items() if out.tests or out.failures}
        return _OwnRun(str(log), ran)

    def _facts(self, environment: Environment) -> Facts:
        file = self._file(environment, "probe", digest_of_modules([PROBE]))
        if not self.fresh and (facts := _read(file, Facts)):
            return facts
        status, out, error = self.children.run(
            [environment.python, "-m", PROBE],
            environments.isolated(self.root),
            self.folder,
            self.limit,
        )
        if status is None or status == -9:
            cause = f"its import had not ended after {self.limit:.0f} s"
            return Facts(error=cause)
        if status == 0:
            facts = msgspec.json.decode(out.splitlines()[-1], type=Facts)
        else:
            last = (error.strip().splitlines() or ["no output"])[-1]
            cause = f"its import ended Python with exit status {status}: {last}"
            facts = Facts(error=cause)
        _write(facts, file)
        return facts

    def _follow(
        self,
        run: PytestRun,
        seen: Seen,
        label: str,
        end: Callable[[str], None] = lambda name: None,
    ) -> str | None:
        """Take what a process reports; None if it ran to its end, or why not.

        Args:
            run: the process.
            seen: takes it.
            label: of the progress.
            end: called with each problem whose last test has ended.
        """
        before = seen.ended
        last = time.monotonic()
        seen.running, seen.is_finished = None, False
        try:
            running = True
            while running:
                if self.children.stopped:
                    raise Stopped
                running = run.is_running()
                for event in run.events():
                    seen.take(event)
                    last = time.monotonic()
                for name in seen.take_ended():
                    end(name)
                self.progress[label] = ("", seen.ended, before + run.total)
                if time.monotonic() - last > self.limit:
                    return f"{TIME_LIMIT}: not ended after {self.limit:.0f} s"
                time.sleep(0.05)
            return (
                None if seen.is_finished else f"Crash: the process {run.last_words()}"
            )
        finally:
            run.stop()

    def _variables(self, environment: Environment) -> dict[str, str]:
        """With the programs that were compiled in that environment before."""
        programs = compilation_cache(environment.folder / "compiled")
        return environments.isolated(self.root) | programs

    def _files(
        self, environment: Environment, kind: Kind, **more: object
    ) -> dict[str, Path]:
        """By problem, where its record is kept."""
        depends_on = self._depends_on(environment) | more
        return {
            name: cached.path_of(self.cache, name, kind, code, **depends_on)
            for name, code in self.code[kind].items()
        }

    def _file(
        self, environment: Environment, kind: str, code: object, **more: object
    ) -> Path:
        """Where something that is of no problem is kept."""
        parts = [kind, code, self._depends_on(environment), more]
        name = digest([msgspec.json.encode(parts, order="sorted")])
        return self.cache / "results" / f"{name}.json"

    def _depends_on(self, environment: Environment) -> dict[str, object]:
        return {
            "packages": dict(environment.packages),
            "python": self.uv.python_version,
            "machine": cached.machine(),
            "switches": cached.switches(environments.isolated(self.root)),
        }


def _command(result: ReleaseResult, problem: str) -> str:
    versions = result.environment
    release = f"{versions['flax']}+jax{versions['jax']}"
    return f"linen2nnx check {release} --only {problem} --save"


def _read(file: Path, kind: type[Any]) -> Any:
    """What a file of the cache holds; None if it is not there or cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write(content: msgspec.Struct, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, msgspec.json.encode(content))


def _add_to_log(log: Path, more: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.read_text() if log.is_file() else ""
    write_whole(log, before + more.read_text(errors="replace"))


def _parallel_runs() -> int:
    """As many as the cores and the free memory bear, one at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return cores
    return max(1, min(cores, free // MEMORY_OF_A_RUN))


def _after(
    batch: list[catalog.ProblemFiles], seen: Seen, cause: str
) -> list[list[catalog.ProblemFiles]]:
    """The problems that new processes are to run after one that stopped.

    The problem whose test was running is given up. Where none was, importing a test
    file was the cause, and each file gets a process of its own to find out which.
    """
    if seen.running is not None:
        seen.fail(seen.running, cause)
    left = [problem for problem in batch if problem.name not in seen.outcomes]
    if seen.running is not None:
        return [left] if left else []
    if len(batch) > 1:
        return [[problem] for problem in left]
    for problem in left:
        seen.outcomes.setdefault(problem.name, Outcome()).failures.append(
            Failure(f"{problem.name}::import", cause)
        )
    return []
