"""Records that have been measured are kept: for this machine, and in a clone for all.

The cache folder has every record that was measured here, one a file, named by what it
depends on. `docs/results` of a clone has a file for each problem.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from linen2nnx.environment import PACKAGES
from linen2nnx.files import cache_folder
from linen2nnx.suite import cached, catalog, records
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import AnyRecord, Kind, Results

VERSIONS = ("python", *(package for package in PACKAGES if package != "linen2nnx"))

Measure = Callable[
    [Sequence[catalog.ProblemFiles]], Iterator[tuple[catalog.ProblemFiles, AnyRecord]]
]


class NotKeptError(RuntimeError):
    """A result cannot be kept."""


def results_folder() -> Path:
    """`docs/results` of the clone.

    Raises:
        NotKeptError: if this is none.
    """
    docs = catalog.root() / "docs"
    if not docs.is_dir():
        raise NotKeptError(
            f"results are kept in a clone of linen2nnx; no folder {docs}"
        )
    return docs / "results"


def load(problem: catalog.ProblemFiles, folder: Path) -> Results:
    """What a results folder has of a problem; no records if there is no file.

    Raises:
        RecordError: in one line, if the file holds no records.
    """
    path = folder / f"{problem.name}.json"
    return records.load(path) if path.is_file() else Results(problem=problem.name)


def complete(
    problems: Sequence[catalog.ProblemFiles],
    kind: Kind,
    environment: Mapping[str, str],
    measure: Measure,
    *,
    fresh: bool = False,
    folder: Path | None = None,
) -> list[Results]:
    """One record of each problem, of its code now: what is not kept is measured.

    Each record is kept as it ends, so that a call that was interrupted is taken up by
    the next one.

    Args:
        problems: which.
        kind: of the records.
        environment: that `measure` runs in, as it stands in a record.
        measure: yields a record for each problem that it gets, as it ends.
        fresh: measure all.
        folder: a results folder that gets the records too.

    Returns:
        For each problem, in their order, its results: that one record.

    Raises:
        NotKeptError: if the code changed while it was measured.
        RecordError: if a file of the folder holds no records.
        OSError: if a record cannot be written.
    """
    found: dict[str, AnyRecord] = {}
    missing = []
    for problem in problems:
        record = None if fresh else _find(problem, kind, environment)
        if record is None:
            missing.append(problem)
        else:
            found[problem.name] = record
            put(problem, record, folder)
    for problem, record in measure(missing) if missing else ():
        if digest_of(problem, kind) != record.digest:
            raise NotKeptError(
                f"{problem.name}: its code changed while it was measured"
            )
        found[problem.name] = record
        path = _cached(problem, kind, record.digest, environment)
        cached.keep(problem.name, record, path)
        put(problem, record, folder)
    return [Results(problem=p.name, records=[found[p.name]]) for p in problems]


def _find(
    problem: catalog.ProblemFiles, kind: Kind, environment: Mapping[str, str]
) -> AnyRecord | None:
    """The record of the code now: of this environment, or a clone's of its versions."""
    now = digest_of(problem, kind)
    if record := cached.find(_cached(problem, kind, now, environment)):
        return record
    try:
        of_problem = load(problem, results_folder())
    except NotKeptError:
        return None
    return next(
        (
            record
            for record in of_problem.records
            if (record.key[0], record.digest) == (kind, now)
            if _versions(record.environment) == _versions(environment)
        ),
        None,
    )


def _versions(environment: Mapping[str, str]) -> tuple[str | None, ...]:
    """The versions, and whether the device is a CPU or which other platform."""
    platform = environment.get("device", "").partition(":")[0]
    return platform, *(environment.get(name) for name in VERSIONS)


def _cached(
    problem: catalog.ProblemFiles,
    kind: Kind,
    code: str,
    environment: Mapping[str, str],
) -> Path:
    depends_on = {k: v for k, v in environment.items() if k != "linen2nnx"}
    return cached.path_of(
        cache_folder(), problem.name, kind, code, environment=depends_on
    )


def put(problem: catalog.ProblemFiles, record: AnyRecord, folder: Path | None) -> None:
    """Put a record into the file of its problem in a results folder, if there is one.

    Raises:
        RecordError: if the file holds no records.
        OSError: if it cannot be written.
    """
    if folder is None:
        return
    results = load(problem, folder)
    if record not in results.records:
        results.put(record)
        records.save(results, folder / f"{problem.name}.json")
