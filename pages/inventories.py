"""Where the official reference of a name is: from the inventories, kept as data.

    python -m pages.inventories

A site made by Sphinx has a file `objects.inv`, which says where each of its names is.
The command reads those of all sites in `SITES` and writes `inventories.json`:

    {
      "flax": {
        "url": "https://flax.readthedocs.io/en/latest/",
        "from": "objects.inv of Flax, read on 2026-11-26",
        "names": {"flax.nnx.jit": "api_reference/flax.nnx/transforms.html#$", ...}
      },
      ...
    }

`$` stands for the name. The site `by hand` holds names that no inventory has; the
command leaves it as it is.
"""

import functools
import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import sphobjinv

from linen2nnx.files import write_whole

FILE = Path(__file__).with_suffix(".json")
BY_HAND = "by hand"
SITES = {  # address, and how its names begin; of two sites the first counts
    "flax-linen": ("https://flax-linen.readthedocs.io/en/latest/", ("flax.",)),
    "flax": ("https://flax.readthedocs.io/en/latest/", ("flax.",)),
    "jax": ("https://docs.jax.dev/en/latest/", ("jax.",)),
    "optax": ("https://optax.readthedocs.io/en/latest/", ("optax.",)),
    "orbax": ("https://orbax.readthedocs.io/en/latest/", ("orbax.",)),
    "python": (
        "https://docs.python.org/3/",
        ("collections.", "contextlib.", "dataclasses.", "functools.", "itertools."),
    ),
}


class Links(Mapping[str, str]):
    """Full names to addresses.

    A name that no site has is looked for in the modules of its module:
    `flax.nnx.Optimizer` is `flax.nnx.optimizer.Optimizer`.
    """

    def __init__(self, urls: dict[str, str]):
        """Take the addresses by the names that the sites have."""
        self._urls = urls
        self._by_last: dict[str, list[str]] = {}
        for name in urls:
            self._by_last.setdefault(name.rpartition(".")[2], []).append(name)

    def __getitem__(self, name: str) -> str:
        if name in self._urls:
            return self._urls[name]
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            first, last = (".".join(p) for p in (parts[:length], parts[length:]))
            pattern = re.compile(rf"{re.escape(first)}\.[a-z_.]+\.{re.escape(last)}")
            longer = filter(pattern.fullmatch, self._by_last.get(parts[-1], []))
            if found := min(longer, key=len, default=None):
                return self._urls[found]
        raise KeyError(name)

    def __iter__(self):
        return iter(self._urls)

    def __len__(self) -> int:
        return len(self._urls)


@functools.cache
def links() -> Links:
    """The addresses of all names, by full name."""
    urls: dict[str, str] = {}
    for site in json.loads(FILE.read_text()).values():
        for name, path in site["names"].items():
            urls.setdefault(name, site["url"] + path.replace("$", name))
    return Links(urls)


def names_of(inventory: sphobjinv.Inventory, starts: tuple[str, ...]) -> dict[str, str]:
    """The Python names of an inventory that begin so, and the paths of their pages."""
    return {
        entry.name: entry.uri
        for entry in inventory.objects
        if entry.domain == "py" and entry.name.startswith(starts)
    }


def renew() -> None:
    """Read the inventories of all sites and write the file.

    Raises:
        OSError: if a site cannot be read; the old file is left then.
    """
    content = {BY_HAND: json.loads(FILE.read_text())[BY_HAND]}
    today = datetime.now(UTC).date()
    for site, (url, starts) in SITES.items():
        inventory = sphobjinv.Inventory(url=f"{url}objects.inv")
        names = names_of(inventory, starts)
        origin = f"objects.inv of {inventory.project}, read on {today}"
        content[site] = {
            "url": url,
            "from": origin,
            "names": dict(sorted(names.items())),
        }
    write_whole(FILE, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    try:
        renew()
    except OSError as error:
        sys.exit(f"pages.inventories: {error}")
