"""The code of a page, pasted block by block, needs flax and what flax needs."""

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest

from linen2nnx.suite import catalog
from pages import blocks
from pages.page import read

INSTALLED = (
    "flax",
    "jax",
    "numpy",
    "optax",
    "orbax-checkpoint",
)  # all that a reader has
CASES = [(p.name, side) for p in catalog.problems() for side in blocks.TITLES]

OURS = {"linen2nnx", "linen_impl", "nnx_impl", "parity_tests", "pages", "tests"}

# Pastes the blocks of each case into a namespace of its own, where no module can be
# imported that a reader does not have. Prints the errors as JSON.
PASTE = """
import importlib.abc, json, sys, traceback

given = json.load(sys.stdin)
refused = set(given["refused"])

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
errors = {}
for name, codes in given["blocks"].items():
    names = {"__name__": "pasted"}
    for code in codes:
        try:
            exec(code, names)
        except BaseException:
            last = traceback.format_exc().splitlines()[-1]
            errors.setdefault(name, f"{last} in the block\\n{code}")
print(json.dumps(errors))
"""


def modules_without(distributions):
    """The top-level modules that are here, but of these and of what they require."""
    found, todo = set(), list(distributions)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        todo += [
            re.match(r"[\w.-]+", requirement)[0]
            for requirement in requires
            if "extra ==" not in requirement
        ]
    here = importlib.metadata.packages_distributions()
    return OURS | {
        module
        for module, names in here.items()
        if not found & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    }


def paste(codes):
    """What goes wrong with each list of blocks, by its name."""
    given = {"refused": sorted(modules_without(INSTALLED)), "blocks": codes}
    run = subprocess.run(
        [sys.executable, "-c", PASTE],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def errors():
    pages = {problem.name: read(problem) for problem in catalog.problems()}
    return paste({f"{n}, {s}": blocks.pasted(pages[n], s) for n, s in CASES})


@pytest.mark.parametrize(("name", "side"), CASES)
def test_blocks_run_in_the_order_of_the_page(name, side, errors):
    assert errors.get(f"{name}, {side}") is None


def test_what_a_reader_lacks_is_refused():
    errors = paste(
        {
            "a tool": ["import jaxtyping"],
            "this suite": ["from linen2nnx import arguments"],
            "a later name": ["def f(x: Later): ...", "class Later: ..."],
            "fine": ["from flax import nnx", "import orbax.checkpoint", "import optax"],
        }
    )
    assert errors["a tool"].startswith("ModuleNotFoundError: No module named 'jaxtyp")
    assert errors["this suite"].startswith("ModuleNotFoundError: No module named 'line")
    assert errors["a later name"].startswith("NameError: name 'Later' is not defined")
    assert "fine" not in errors


def test_a_page_shows_each_region_once():
    for problem in catalog.problems():
        regions = [region.name for region in problem.regions("nnx")]
        assert sorted(read(problem).shown) == sorted(regions)
