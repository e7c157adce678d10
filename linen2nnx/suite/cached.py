"""What has ended on this machine, a record a file, named by all that it depends on."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from linen2nnx.environment import PACKAGES
from linen2nnx.files import digest
from linen2nnx.suite import records
from linen2nnx.suite.records import (
    AnyRecord,
    Kind,
    Outcome,
    Parity,
    RecordError,
    Results,
)

# In the message of a failure that another run may not have.
TIME_LIMIT = "TimeLimit"
KILLED = "exit status -9:"
_PASSING = (TIME_LIMIT, KILLED, "MemoryError", "No space left", "RESOURCE_EXHAUSTED")

_SWITCHES = ("JAX_", "XLA_FLAGS", "FLAX_", "NNX_")
_NO_SWITCHES = ("JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_")


def path_of(
    cache: Path, problem: str, kind: Kind, code: str, **depends_on: object
) -> Path:
    """The file of one record.

    Args:
        cache: the cache folder.
        problem: its name.
        kind: of the record.
        code: the digest of the code.
        **depends_on: what else the record depends on, as JSON takes it.
    """
    text = json.dumps([code, depends_on], sort_keys=True)
    return cache / "results" / problem / f"{kind}-{digest([text.encode()])}.json"


def find(path: Path) -> AnyRecord | None:
    """The record in that file; None if it is not there or cannot be read."""
    try:
        return records.load(path).records[0]
    except (FileNotFoundError, RecordError, IndexError):
        return None


def keep(problem: str, record: AnyRecord, path: Path) -> None:
    """Write the record of a problem to that file.

    Raises:
        OSError: if it cannot be written.
    """
    records.save(Results(problem=problem, records=[record]), path)


def merged(found: Sequence[Parity]) -> Parity:
    """One record of several, of a mode each; its date is the earliest."""
    newest = max(found, key=lambda record: record.date)
    return Parity(
        digest=newest.digest,
        environment=newest.environment,
        date=min(record.date for record in found),
        command=newest.command,
        modes={mode: out for record in found for mode, out in record.modes.items()},
    )


def is_passing(outcome: Outcome) -> bool:
    """Whether a test failed of what is of this run: time, disk or memory."""
    texts = [failure.message for failure in outcome.failures]
    return any(words in text for words in _PASSING for text in texts)


def installed() -> dict[str, str]:
    """Versions of the packages that a problem's tests depend on."""
    plugins = (entry.dist for entry in entry_points(group="jax_plugins"))
    found = {plugin.name: plugin.version for plugin in plugins if plugin}
    for name in (*PACKAGES, "orbax-checkpoint", "pytest"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def machine() -> dict[str, str]:
    """What a result depends on of the machine."""
    return {"platform": platform.platform(), "machine": platform.machine()}


def switches(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables that change what JAX and flax do."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_SWITCHES) and not name.startswith(_NO_SWITCHES)
    }
