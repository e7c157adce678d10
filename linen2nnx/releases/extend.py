"""Add flax releases to the table, each with the newest jax with which it works.

In a clone, `python -m linen2nnx.releases.extend 0.12.12` runs `releases.trial` in
isolated environments: with the newest jax first and, where that fails, by bisecting the
releases of jax down to two that follow each other, of which only the first works.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console

from linen2nnx.files import cache_folder, write_whole
from linen2nnx.releases import environments
from linen2nnx.releases import table as releases
from linen2nnx.releases.environments import (
    Children,
    InstallError,
    Spec,
    UpgradeError,
    Uv,
)
from linen2nnx.releases.table import Release

LIMIT = 600.0


class Trials:
    """Tries pairs of flax and jax, each in an environment of its own."""

    def __init__(self, uv: Uv, cache: Path) -> None:
        """Nothing was tried yet.

        Args:
            uv: makes the environments.
            cache: where they are kept.
        """
        self.uv = uv
        self.cache = cache

    def run(self, flax: str, jax: str | None) -> dict[str, Any]:
        """What `trial` prints with these two; None is a plain install's jax.

        Raises:
            InstallError: if the two cannot be installed.
        """
        wanted = f"jax=={jax}" if jax else "jax"
        spec = Spec(flax, flax, f"flax=={flax}", wanted)
        environment = self.uv.environment(spec, [], self.cache)
        status, out, error = self.uv.children.run(
            [environment.python, "-m", "linen2nnx.releases.trial"],
            environments.isolated(environments.suite_copy(self.cache)),
            self.cache,
            LIMIT,
        )
        found: dict[str, Any] = {"jax": environment.packages["jax"]}
        if status == 0:
            return found | json.loads(out.splitlines()[-1])
        last = (error.strip().splitlines() or ["no output"])[-1]
        return found | {"error": f"import: exit status {status}: {last}"}

    def jax_releases(self, oldest: str, newest: str) -> list[str]:
        """All releases of jax between the two, oldest first."""
        found = [newest]
        while True:
            try:
                found.append(self.uv.newest(f"jax>={oldest},<{found[-1]}"))
            except InstallError:
                return found[::-1]


def measure(flax: str, trials: Trials, log: Console) -> Release:
    """The row of one release.

    Args:
        flax: its version.
        trials: tries it.
        log: is told of each trial.

    Raises:
        UpgradeError: if no jax works with it.
        InstallError: if it cannot be installed.
    """
    results: dict[str, dict[str, Any]] = {}

    def works(jax: str | None) -> bool:
        result = trials.run(flax, jax)
        results[result["jax"]] = result
        log.print(f"flax {flax} with jax {result['jax']}: {result['error'] or 'works'}")
        return result["error"] is None

    is_newest = works(None)
    (newest,), (plain,) = results.keys(), results.values()
    (requires_jax,) = (
        requirement.specifier
        for requirement in map(Requirement, plain["requires"])
        if requirement.name == "jax" and not requirement.marker
    )
    working, broken = newest, None
    if not is_newest:
        oldest = next(s.version for s in requires_jax if s.operator in (">=", "=="))
        working, broken = _neighbours(trials.jax_releases(oldest, newest), works)
    names, before = set(results[working]["nnx_names"]), _names_before(flax, trials)
    return Release(
        flax=flax,
        requires_python=plain["requires_python"],
        requires_jax=str(requires_jax),
        newest_working_jax=working,
        first_broken_jax=broken,
        first_broken_error=results[broken]["error"] if broken else None,
        nnx_names_added=tuple(sorted(names - before)),
        nnx_names_removed=tuple(sorted(before - names)),
    )


def _neighbours(
    candidates: Sequence[str], works: Callable[[str], bool]
) -> tuple[str, str]:
    """Two releases that follow each other, of which the first one works.

    Args:
        candidates: oldest first; the last does not work. The first ones may not work
            either: a declared minimum is often too low.
        works: tries one.

    Raises:
        UpgradeError: if none that was tried works.

    Example:
        >>> _neighbours("abcdefgh", lambda release: release in "bcdef")
        ('f', 'g')
    """
    last = len(candidates) - 1
    starts = [0, *(2**i for i in range(last.bit_length()))]
    low = next((i for i in starts if i < last and works(candidates[i])), None)
    if low is None:
        raise UpgradeError(f"no jax from {candidates[0]} to {candidates[last]} works")
    high = last
    while high - low > 1:
        middle = (low + high) // 2
        if works(candidates[middle]):
            low = middle
        else:
            high = middle
    return candidates[low], candidates[high]


def _names_before(flax: str, trials: Trials) -> set[str]:
    """The public names of `flax.nnx` in the release of the table before this one."""
    older = [row for row in releases.table() if Version(row.flax) < Version(flax)]
    if not older:
        return set()
    return set(trials.run(older[-1].flax, older[-1].newest_working_jax)["nnx_names"])


def extend(row: Release, path: Path = releases.TABLE) -> None:
    """Put a row into the table, in its place, instead of an older one of that release.

    Args:
        row: what was measured.
        path: the file of the table.
    """
    content = json.loads(path.read_text())
    others = [r for r in content["releases"] if r["flax"] != row.flax]
    rows = [*others, asdict(row)]
    content["releases"] = sorted(rows, key=lambda r: Version(r["flax"]))
    write_whole(path, json.dumps(content, indent=1) + "\n")
    releases.table.cache_clear()


def main(
    flax: Annotated[list[str], typer.Argument(help="Releases, such as 0.12.12.")],
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="VERSION", help="Python of the environments."),
    ] = None,
) -> None:
    """Add flax releases to the table of linen2nnx/releases.json, by trying."""
    children = Children()
    log = Console(stderr=True, soft_wrap=True)
    cache = cache_folder().absolute()
    try:
        trials = Trials(Uv(python, children), cache)
        for version in flax:
            row = measure(version, trials, log)
            extend(row)
            broken = (
                f", not with {row.first_broken_jax}" if row.first_broken_jax else ""
            )
            log.print(f"flax {version} works with jax {row.newest_working_jax}{broken}")
    except (UpgradeError, InstallError) as error:
        log.print(f"linen2nnx: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    finally:
        children.stop()


if __name__ == "__main__":
    typer.run(main)
