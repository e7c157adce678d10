"""What flax releases showed, besides what became of each problem.

In a clone `docs/results/releases.json` holds it, a row for each release with its jax:

    {
      "format": "linen2nnx results",
      "version": 1,
      "releases": [
        {
          "name": "0.12.6",
          "date": "2026-11-26T01:15:00+00:00",
          "command": "linen2nnx check 0.12.6 --save",
          "environment": {"python": "3.12.1", "flax": "0.12.6", ..., "device": "..."},
          "error": "",
          "notes": [],
          "modes": ["graph", "tree"],
          "behaviour": {"tree mode": "there", ...},
          "numbers": {"initial weights of nnx.Linear for the same seed": [...], ...},
          "api": {"since": "0.12.1", "gone": [...], "added": [...], "changed": [...]}
        }
      ]
    }

What became of its problems is in their files, by `linen2nnx.suite.records`.
"""

from pathlib import Path

import msgspec
from packaging.version import Version

from linen2nnx.modes import Mode
from linen2nnx.suite import records
from linen2nnx.suite.records import FORMAT, VERSION

Numbers = list[float] | str  # or the error that they raised


class Facts(msgspec.Struct, kw_only=True):
    """What `linen2nnx.releases.probe` states of a release.

    Attributes:
        error: why flax does not import; nothing else is stated then.
        environment: versions and device.
        modes: of nnx.
        behaviour: by what was tried.
        numbers: by what was computed, such as an initial weight.
        api: by public name, its parameters.
    """

    error: str = ""
    environment: dict[str, str] = {}
    modes: list[Mode] = []
    behaviour: dict[str, str] = {}
    numbers: dict[str, Numbers] = {}
    api: dict[str, list[str]] = {}


class ApiChanges(msgspec.Struct):
    """How the public names of `flax.linen` and `flax.nnx` differ between two releases.

    Attributes:
        since: the release that this one is compared with.
        gone: names that it has and this one lacks.
        added: names that this one has and it lacks.
        changed: names that take other parameters, with them.
    """

    since: str
    gone: list[str] = []
    added: list[str] = []
    changed: list[str] = []


class Release(msgspec.Struct, kw_only=True):
    """What one release showed.

    Attributes:
        name: as it was asked for.
        date: in UTC, ISO 8601.
        command: that renews it.
        environment: versions and device; without them where flax was not installed.
        error: why no problem ran. Empty if they did.
        notes: how its jax was chosen, if not by the table.
        modes: of nnx.
        behaviour: by what was tried.
        numbers: by what was computed.
        api: what changed from the first release of the check.
    """

    name: str
    date: str
    command: str
    environment: dict[str, str]
    error: str = ""
    notes: list[str] = []
    modes: list[Mode] = []
    behaviour: dict[str, str] = {}
    numbers: dict[str, Numbers] = {}
    api: ApiChanges | None = None


class Releases(msgspec.Struct, kw_only=True):
    """The file of all releases, oldest first."""

    format: str = FORMAT
    version: int = VERSION
    releases: list[Release]

    def put(self, release: Release) -> None:
        """Add a release in the place of an older row of the same flax and jax."""
        others = []
        for row in self.releases:
            if _versions(row) != _versions(release):
                others.append(row)
            elif release.api is None:  # it was checked alone
                release.api = row.api
        self.releases = sorted([*others, release], key=_versions)


def load(path: Path) -> Releases:
    """Read the file of releases. The inverse of `save`.

    Raises:
        linen2nnx.suite.records.RecordError: in one line, if it is no such file.
        OSError: if it cannot be read.
    """
    return records.read(path, Releases)


def save(releases: Releases, path: Path) -> None:
    """Write the file of releases, in one step. The inverse of `load`.

    Raises:
        OSError: if it cannot be written; the old file is left then.
    """
    records.write(releases, path)


def _versions(release: Release) -> tuple[Version, Version]:
    return Version(release.environment["flax"]), Version(release.environment["jax"])
