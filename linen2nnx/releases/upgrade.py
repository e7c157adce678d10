"""Run the suite on several flax releases, and say what changed from the first.

Each release gets an isolated environment; each of its modes a pytest process. Where one
test hangs or ends its process, its problem fails and the others go on in a new one.
"""

import json
import math
import os
import re
import shutil
import struct
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linen2nnx.files import cache_folder, compilation_cache, digest, write_whole
from linen2nnx.releases import environments
from linen2nnx.releases import table as releases
from linen2nnx.releases.environments import (
    Children,
    Environment,
    InstallError,
    Spec,
    Stopped,
    Uv,
)
from linen2nnx.suite import bytecodes, catalog, expected
from linen2nnx.suite.seen import (
    WARNINGS,
    Seen,
    options,
    problem_name,
)
from linen2nnx.suite.pytest_run import PytestRun
from linen2nnx.suite.results import Outcome, finite, kind_of, largest

LIMIT = 180.0  # seconds without a test's end after which a run is stopped
MEMORY_OF_A_RUN = 2 << 30
SHOWN_NAMES = 8

VERDICTS = (  # from best to worst
    "holds",
    "holds with warnings",
    "pitfall changed",
    "not there yet",
    "nothing ran",
    "differs",
    "fails",
    "flax does not import",
    "could not be installed",
)


@dataclass(frozen=True)
class Cell:
    """What became of one problem in one mode on one release.

    Attributes:
        verdict: one of `VERDICTS`.
        reason: the API that is missing, the path that differs, the error; or empty.
    """

    verdict: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


@dataclass
class ReleaseResult:
    """What one release showed.

    Attributes:
        name: as it was asked for.
        error: why there is nothing else: flax could not be installed, or does not
            import. Empty if the suite ran.
        told: False where that does not say anything about flax itself.
        notes: how its jax was chosen, if not by the table; what could not be measured.
        environment: versions and device.
        facts: what `linen2nnx.releases.probe` stated.
        problems: by problem and mode.
        logs: by mode, the log of pytest.
        bytecodes: by problem and idiom, how many Python bytecodes a call executes.
    """

    name: str
    error: str = ""
    told: bool = True
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    bytecodes: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The release and its jax, such as `0.12.6, jax 0.10.2`."""
        jax = self.environment.get("jax")
        return f"{self.name}, jax {jax}" if jax else self.name

    def cell(self, problem: str, mode: str) -> Cell:
        """What became of one problem in one mode."""
        if self.error:
            verdict, _, reason = self.error.partition(": ")
            return Cell(verdict, reason)
        if mode not in self.facts["modes"]:
            return Cell("not there yet", "tree mode, since 0.12.6")
        outcome = self.problems.get(problem, {}).get(mode, Outcome())
        return _cell(outcome, self.environment["flax"])

    def cells(self) -> list[tuple[str, str, Cell]]:
        """Problem, mode and cell of all that ran."""
        return [
            (problem, mode, self.cell(problem, mode))
            for problem, modes in self.problems.items()
            for mode in modes
        ]

    def unexpected(self) -> list[str]:
        """What is not as `linen2nnx.suite.expected` states, in either direction."""
        lines = []
        known = {problem.name for problem in catalog.problems()}
        for problem, mode, cell in self.cells():
            if problem in known:
                wanted = expected.find(problem, mode, self.environment["flax"])
                if cell.verdict != wanted.verdict:
                    lines.append(f"{problem}, {mode} mode: {cell}; expected: {wanted}")
        return lines


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
        return _changes(self.releases[0], release, self.problems)

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

    def save(self, path: Path) -> None:
        """Write everything as JSON, in one step."""
        rows = []
        for release in self.releases:
            worse, other = self.changes(release)
            row = asdict(release) | {"worse": worse, "changed": other}
            for name, modes in row["problems"].items():
                for mode, outcome in modes.items():
                    cell = release.cell(name, mode)
                    row["problems"][name][mode] = asdict(cell) | outcome
            row["facts"].pop("api", None)
            row["api"] = _api_changes(self.releases[0], release)
            del row["logs"]
            rows.append(row)
        content = {
            "format": "linen2nnx upgrade check",
            "version": 1,
            "command": self.command,
            "date": self.date,
            "releases": rows,
        }
        write_whole(path, json.dumps(finite(content), indent=2) + "\n")


Progress = Callable[[dict[str, tuple[str, int, int]]], None]


def upgrade(
    arguments: Sequence[str],
    *,
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
    if not catalog.problems():
        raise environments.UpgradeError(f"there is no problem in {catalog.root()}")
    children = Children()
    uv = Uv(python, children)
    specs = environments.parse(arguments, uv, cache, newest_jax=newest_jax)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    work = _Work(uv, cache, fresh, limit, tests, requirements)
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
                    for mode in result.facts["modes"]:
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


class _Work:
    """What one check does, in the threads of its pool."""

    def __init__(
        self,
        uv: Uv,
        cache: Path,
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
        self.fresh = fresh
        self.limit = limit
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
            result.facts = self._cached(
                environment, "probe", lambda: self._probe(environment)
            )
        finally:
            del self.progress[spec.name]
        if cause := result.facts.get("error"):
            result.environment = {
                name: environment.packages[name]
                for name in ("flax", "jax")
                if name in environment.packages
            }
            result.error = f"flax does not import: {_INSTALLED.sub('', cause)}"
            return None
        result.environment = result.facts["environment"]
        return environment

    def run(self, result: ReleaseResult, environment: Environment, mode: str) -> None:
        """Run the suite in one mode and keep what became of each problem."""
        label = f"{result.title}, {mode} mode"
        try:
            content = self._cached(
                environment, mode, lambda: self._run_mode(environment, mode, label)
            )
        finally:
            self.progress.pop(label, None)
        self._keep(result, mode, mode, content)

    def count(self, result: ReleaseResult, environment: Environment) -> None:
        """Count the bytecodes of each idiom."""
        label = f"{result.title}, bytecodes"
        self.progress[label] = ("", 0, 0)
        try:
            content = self._cached(
                environment, "bytecodes", lambda: self._count(environment)
            )
        finally:
            del self.progress[label]
        result.bytecodes = content["counts"]
        if cause := content["error"]:
            result.notes.append(f"bytecodes per call were not counted: {cause}")

    def _count(self, environment: Environment) -> dict[str, Any]:
        names = [problem.name for problem in catalog.problems()]
        status, out, error = self.children.run(
            [environment.python, "-m", "linen2nnx.suite.bytecodes", *names],
            environments.isolated(self.root)
            | compilation_cache(self.folder / environment.folder.name)
            | {"PYTHONHASHSEED": "0"},
            self.folder,
            self.limit,
        )
        if status == 0:
            return {"counts": bytecodes.by_name(bytecodes.rows(out)), "error": ""}
        last = (error.strip().splitlines() or ["no output"])[-1]
        return {"counts": {}, "error": last if status else "it took too long"}

    def run_own(
        self, result: ReleaseResult, environment: Environment, mode: str
    ) -> None:
        """Run the user's tests likewise; each file stands as a problem."""
        label = f"{result.title}, {mode} mode, {self.tests}"
        what = f"{mode} mode, {self.tests}, {self._digest_of_own()}"
        try:
            content = self._cached(
                environment,
                what,
                lambda: self._run_own_mode(environment, mode, label, what),
            )
        finally:
            self.progress.pop(label, None)
        self._keep(result, mode, f"{mode}, own tests", content)

    def _keep(
        self, result: ReleaseResult, mode: str, log: str, content: dict[str, Any]
    ) -> None:
        result.logs[log] = content["log"]
        text = json.dumps(content["problems"]).replace(f"{self.root}/", "")
        for name, outcome in json.loads(_INSTALLED.sub("", text)).items():
            result.problems.setdefault(name, {})[mode] = Outcome(**outcome)

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
        self, environment: Environment, mode: str, label: str, what: str
    ) -> dict[str, Any]:
        assert self.tests
        tests = self.tests
        seen = Seen(lambda test: test.partition("::")[0] or tests.name)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        run = PytestRun(
            [tests],
            ["--override-ini", WARNINGS, "--nnx-mode", mode],
            environments.isolated(self.root)
            | compilation_cache(self.folder / environment.folder.name)
            | {"NNX_GRAPH_MODE": str(mode == "graph")},
            folder,
            mode,
            python=environment.python,
            own_settings=True,
        )
        if cause := self._follow(run, seen, label):
            test = seen.running or f"{tests.name}::import"
            failure = {"test": test, "message": f"{cause}; no test ran after it"}
            seen.outcomes.setdefault(seen.name_of(test), Outcome()).failures.append(
                failure
            )
        log = self._write_log(environment, what, [folder / f"{mode}.log"])
        problems = {
            name: asdict(outcome)
            for name, outcome in seen.outcomes.items()
            if outcome.tests or outcome.failures
        }
        return {"log": log, "problems": problems}

    def _write_log(
        self, environment: Environment, what: str, logs: Sequence[Path]
    ) -> str:
        path = self.cache / "logs" / f"{self._key(environment, what)}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [log.read_text(errors="replace") for log in logs]
        write_whole(path, "\n".join(texts))
        return str(path)

    def _probe(self, environment: Environment) -> dict[str, Any]:
        status, out, error = self.children.run(
            [environment.python, "-m", "linen2nnx.releases.probe"],
            environments.isolated(self.root),
            self.folder,
            self.limit,
        )
        if status == 0:
            return json.loads(out.splitlines()[-1])
        if status is None or status == -9:
            return {"error": f"its import had not ended after {self.limit:.0f} s"}
        last = (error.strip().splitlines() or ["no output"])[-1]
        return {"error": f"its import ended Python with exit status {status}: {last}"}

    def _run_mode(
        self, environment: Environment, mode: str, label: str
    ) -> dict[str, Any]:
        """Outcomes by problem, from as many pytest processes as it takes."""
        seen, logs = Seen(), []
        batches = [catalog.problems()]
        while batches:
            batch = batches.pop(0)
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            run = PytestRun(
                [self.root / p.test_path().relative_to(catalog.root()) for p in batch],
                options(mode),
                environments.isolated(self.root)
                | compilation_cache(self.folder / environment.folder.name),
                folder,
                mode,
                python=environment.python,
                root=self.root,
            )
            if cause := self._follow(run, seen, label):
                batches = [*_after(batch, seen, cause), *batches]
            logs.append(folder / f"{mode}.log")
        return {
            "log": self._write_log(environment, mode, logs),
            "problems": {
                problem.name: asdict(seen.outcomes.get(problem.name, Outcome()))
                for problem in catalog.problems()
            },
        }

    def _follow(self, run: PytestRun, seen: Seen, label: str) -> str | None:
        """Take what a process reports; None if it ran to its end, or why not."""
        before = seen.ended
        last = time.monotonic()
        seen.running = None
        try:
            running = True
            while running:
                if self.children.stopped:
                    raise Stopped
                running = run.is_running()
                for event in run.events():
                    seen.take(event)
                    last = time.monotonic()
                self.progress[label] = ("", seen.ended, before + run.total)
                if time.monotonic() - last > self.limit:
                    return f"TimeLimit: not ended after {self.limit:.0f} s"
                time.sleep(0.05)
            if error := run.error():
                return f"Crash: the process {error}"
            return None
        finally:
            run.stop()

    def _cached(
        self, environment: Environment, what: str, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What an earlier check kept; or make it and keep it, whole or not at all."""
        path = self.cache / "results" / f"{self._key(environment, what)}.json"
        if path.is_file() and not self.fresh:
            return json.loads(path.read_text())
        content = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1))
        return content

    def _key(self, environment: Environment, what: str) -> str:
        depends_on = {
            "suite": self.root.name,
            "packages": dict(environment.packages),
            "python": self.uv.python_version,
            "what": what,
            "limit": self.limit,
            "machine": environments.fingerprint(),
        }
        return digest([json.dumps(depends_on, sort_keys=True).encode()])


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
        at = problem_name(seen.running)
        failure = {"test": seen.running, "message": cause}
        seen.outcomes.setdefault(at, Outcome()).failures.append(failure)
    left = [problem for problem in batch if problem.name not in seen.outcomes]
    if seen.running is not None:
        return [left] if left else []
    if len(batch) > 1:
        return [[problem] for problem in left]
    for problem in left:
        failure = {"test": f"{problem.name}::import", "message": cause}
        seen.outcomes[problem.name] = Outcome(failures=[failure])
    return []


def _cell(outcome: Outcome, flax: str) -> Cell:
    if not outcome.tests and not outcome.failures:
        return Cell("nothing ran")
    found: dict[str, list[str]] = {}
    for failure in outcome.failures:
        missing = releases.not_there_yet(failure["message"], flax)
        if missing:
            found.setdefault("not there yet", []).append(
                f"{missing[0]}, since {missing[1]}"
            )
        else:
            reason = _reason(failure)
            found.setdefault(kind_of(failure), []).append(reason)
    for verdict in reversed(VERDICTS):
        if verdict in found:
            reasons = list(dict.fromkeys(found[verdict]))
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            return Cell(verdict, reasons[0] + more)
    if outcome.warnings:
        count = len(outcome.warnings)
        return Cell("holds with warnings", f"{count}")
    return Cell("holds")


_INSTALLED = re.compile(r"/[^\s\"']*?/lib/python3\.\d+/(site-packages/)?")
_OTHER_MESSAGE = re.compile(
    r"Regex pattern did not match\..*(?:Input|Actual message): (['\"])(?P<text>.*)\1",
    re.DOTALL,
)
_FARTHEST = re.compile(r"\n\s+(\S+) .*? values differ by up to (\S+)")


def _shorten(text: str) -> str:
    return textwrap.shorten(text, 100, placeholder="...")


def _reason(failure: dict[str, str]) -> str:
    """One line: the path that differs and how far, or the error's first line."""
    test = failure["test"].rpartition("::")[2].partition("[")[0]
    if found := _FARTHEST.search(failure["message"]):
        return f"{found[1]} by {found[2]} ({test})"
    if found := _OTHER_MESSAGE.search(failure["message"]):
        return f"the error says: {_shorten(found['text'])} ({test})"
    lines = failure["message"].strip().splitlines() or [""]
    return f"{lines[0]} ({test})"


def _changes(
    first: ReleaseResult, other: ReleaseResult, problems: Sequence[str]
) -> tuple[list[str], list[str]]:
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
        for mode in dict.fromkeys([*first.facts["modes"], *other.facts["modes"]]):
            before, after = first.cell(problem, mode), other.cell(problem, mode)
            ranks = VERDICTS.index(before.verdict), VERDICTS.index(after.verdict)
            text = f"{before.verdict} -> {after}"
            if ranks[0] == ranks[1]:
                outcomes = (r.problems.get(problem, {}).get(mode) for r in both)
                text = _moved(*outcomes)
                if not text and before.reason != after.reason and ranks[0] > 1:
                    text = f"{before} -> {after.reason}"
            if text:
                by_text.setdefault((ranks[1] > ranks[0], text), []).append(mode)
        for (is_worse, text), modes in by_text.items():
            line = f"{problem}, {' and '.join(modes)} mode: {text}"
            (worse if is_worse else changed).append(line)
        known = {message for message, _ in _warnings(first, problem)}
        for message, where in _warnings(other, problem):
            if message not in known:
                known.add(message)
                worse.append(f"{problem}: new warning at {where}: {message}")
    for name, before_value in first.facts["numbers"].items():
        after_value = other.facts["numbers"].get(name)
        if text := _distance(before_value, after_value):
            worse.append(f"{name}: {text}")
    for name, before_text in first.facts["behaviour"].items():
        after_text = other.facts["behaviour"].get(name)
        if before_text != after_text:
            old, new = (_shorten(str(text)) for text in (before_text, after_text))
            changed.append(f"{name}: {old} -> {new}")
    changed += _moved_bytecodes(first.bytecodes, other.bytecodes)
    for kind, names in _api_changes(first, other).items():
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


def _moved_bytecodes(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """One line for each idiom whose calls execute more or fewer bytecodes."""
    moves: dict[str, list[tuple[float, str]]] = {}
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if old != new:
            problem, what, idiom, *layers = name.split(", ")
            where = ", ".join([problem, *layers])
            move = new / old - 1, f"{where}: {old:,} -> {new:,}"
            moves.setdefault(f"{what}, {idiom}", []).append(move)
    lines = []
    for idiom, found in sorted(moves.items()):
        (low, _), (high, _) = min(found), max(found)
        parts = f"{low:+.1%}" if low == high else f"{low:+.1%} to {high:+.1%}"
        farthest = max(found, key=lambda move: abs(move[0]))[1]
        lines.append(f"bytecodes per call, {idiom}: {parts} ({farthest})")
    return lines


def first_line(warning: dict[str, str]) -> str:
    """What a warning says, as one line."""
    return warning["message"].strip().splitlines()[0]


def place(warning: dict[str, str]) -> str:
    """File and line of a warning, without the folders above the suite's."""
    return "/".join(Path(warning["where"]).parts[-3:])


def _warnings(release: ReleaseResult, problem: str) -> list[tuple[str, str]]:
    """First line and place of each warning of a problem, in any mode."""
    found: dict[tuple[str, str], None] = {}
    for outcome in release.problems.get(problem, {}).values():
        for warning in outcome.warnings:
            found[first_line(warning), place(warning)] = None
    return list(found)


def _distance(before: Any, after: Any) -> str:
    """How far numbers moved, or that a message changed; empty if neither."""
    if before == after:
        return ""
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


def _api_changes(first: ReleaseResult, other: ReleaseResult) -> dict[str, list[str]]:
    """Names of flax.linen and flax.nnx that are gone, are new or take other ones."""
    before, after = first.facts.get("api", {}), other.facts.get("api", {})
    if not (before and after):
        return {"gone": [], "added": [], "with other parameters": []}
    both = [name for name in before if name in after and before[name] != after[name]]
    return {
        "gone": [name for name in before if name not in after],
        "added": [name for name in after if name not in before],
        "with other parameters": [
            f"{name}({_other(before[name], after[name])})" for name in both
        ],
    }


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
