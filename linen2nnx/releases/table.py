"""Which jax goes with which flax, and since when flax has an API: a measured table.

flax does not cap jax, so the newest jax is often one with which a flax release does not
import. `releases.json` beside this file holds, for each flax release, the newest jax
with which it works, the first with which it does not, and how that one fails.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

TABLE = Path(__file__).with_name("releases.json")

_MISSING_NAME = (
    re.compile(r"[Mm]odule '?flax\.nnx(?:\.\w+)*'? has no attribute '(\w+)'"),
    re.compile(r"cannot import name '(\w+)' from 'flax\.nnx"),
)


@dataclass(frozen=True)
class Release:
    """What the table knows of one flax release.

    Attributes:
        flax: its version.
        requires_python: which Python its wheel takes.
        requires_jax: the jax that it declares.
        newest_working_jax: the newest jax with which it works.
        first_broken_jax: the next one, with which it does not; None if there is none.
        first_broken_error: how that one fails.
        nnx_names_added: public names of `flax.nnx` that the release before lacks.
        nnx_names_removed: those that the release before has and this one lacks.
    """

    flax: str
    requires_python: str
    requires_jax: str
    newest_working_jax: str
    first_broken_jax: str | None
    first_broken_error: str | None
    nnx_names_added: tuple[str, ...]
    nnx_names_removed: tuple[str, ...]


@functools.cache
def table() -> list[Release]:
    """All releases of the table, oldest first."""
    rows = json.loads(TABLE.read_text())["releases"]
    names = ("nnx_names_added", "nnx_names_removed")
    return [Release(**row | {name: tuple(row[name]) for name in names}) for row in rows]


def find(flax: str) -> Release | None:
    """The row of one release, or None where the table does not know it.

    Args:
        flax: a version, such as `0.12.8`.

    Example:
        >>> find("0.12.1").newest_working_jax
        '0.8.1'
        >>> find("9.9.9") is None
        True
    """
    wanted = Version(flax)
    return next((row for row in table() if Version(row.flax) == wanted), None)


def between(first: str, last: str) -> list[str]:
    """The releases of the table from `first` to `last`, with both.

    Example:
        >>> between("0.12.6", "0.12.8")
        ['0.12.6', '0.12.7', '0.12.8']
    """
    low, high = Version(first), Version(last)
    return [row.flax for row in table() if low <= Version(row.flax) <= high]


def not_there_yet(message: str, flax: str) -> tuple[str, str] | None:
    """The API that an error misses on a release that came before it.

    Args:
        message: of the error.
        flax: the release on which it was raised.

    Returns:
        The API and the first release that has it, or None if the error has another
        cause: also if the release has, or had, that API.

    Example:
        >>> not_there_yet("module 'flax.nnx' has no attribute 'List'", "0.10.7")
        ('nnx.List', '0.12.0')
        >>> not_there_yet("module 'flax.nnx' has no attribute 'List'", "0.12.6")
    """
    for api, since, pattern in _apis():
        if Version(flax) < Version(since) and re.search(pattern, message):
            return api, since
    for missing in _MISSING_NAME:
        if match := missing.search(message):
            for row in table():
                if (
                    Version(flax) < Version(row.flax)
                    and match[1] in row.nnx_names_added
                ):
                    return f"nnx.{match[1]}", row.flax
    return None


@functools.cache
def _apis() -> list[tuple[str, str, str]]:
    """APIs that an error does not name as an attribute of `flax.nnx`."""
    rows = json.loads(TABLE.read_text())["apis"]
    return [(row["api"], row["since"], row["error"]) for row in rows]
