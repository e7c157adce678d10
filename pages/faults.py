"""All that is wrong with the pages and their sources, a line each."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml

from linen2nnx.suite import catalog, records
from pages import (
    DOCS,
    RESULTS,
    ROOT,
    blocks,
    inventories,
    reference,
    releases,
    site,
)
from pages import pitfalls as pitfalls_of
from pages.page import INCLUDE, Page, description, page_path, results_path

T = TypeVar("T")

_TEST = re.compile(r"(parity_tests/\w+/test_\w+\.py)::(test_\w+)")


def find() -> list[str]:
    """What is wrong with each page and file; empty if all is well."""
    unknown = sorted(
        folder.name
        for folder in (ROOT / "nnx_impl").iterdir()
        if folder.name not in catalog.CHAPTERS and any(folder.glob("*.py"))
    )
    if unknown:
        chapters = "is no chapter of linen2nnx/suite/catalog.py"
        return [f"nnx_impl/{name} {chapters}" for name in unknown]
    problems = catalog.problems()
    found = [fault for problem in problems for fault in _of_problem(problem)]
    return [*found, *_of_the_site(problems)]


def _of_problem(problem: catalog.ProblemFiles) -> Iterator[str]:
    missing = [path for path in problem.paths() if not path.is_file()]
    own_page = page_path(problem)
    if not own_page.is_file():
        missing.append(own_page)
    yield from (f"{_name(path)}: is missing" for path in missing)
    if missing:
        return
    results = records.Results(problem=problem.name)
    path = results_path(problem)
    if path.is_file():
        try:
            results = records.load(path)
        except records.RecordError as error:
            yield str(error).replace(str(path), f"{_name(path)}:")
        if results.problem != problem.name:
            yield f"{_name(path)}: is of {results.problem}"
    try:
        for file in problem.paths():
            ast.parse(file.read_text(), file.name)
        for side in blocks.TITLES:
            problem.regions(side)
    except SyntaxError as error:
        yield f"{_name(file)}: line {error.lineno}: {error.msg}"
        return
    except ValueError as error:
        yield str(error).replace(f"{ROOT}/", "")
        return
    yield from of_page(Page(problem, own_page.read_text(), results))


def of_page(page: Page) -> Iterator[str]:
    """What is wrong with a page, and with the twins and tests it is drawn from."""
    where = _name(page.path)
    wrong = [*_of_text(page), *_of_includes(page), *_of_links(page)]
    yield from (f"{where}: {what}" for what in wrong)
    yield from _of_twins(page)
    yield from _of_pitfalls(page)


def _of_text(page: Page) -> Iterator[str]:
    if not page.title:
        yield "has no title, a line '# ...'"
    if not description(page.text):
        yield "has no description in its front matter"
    if not page.names:
        yield "has no table under the heading Names"
    for names in _doubles(page.names):
        yield f"names {' and '.join(names)} twice"
    for file, test in sorted(set(_TEST.findall(page.text))):
        if test not in _tests(ROOT / file):
            yield f"names {file}::{test}, which does not exist"


def _of_includes(page: Page) -> Iterator[str]:
    regions = [region.name for region in page.problem.regions("nnx")]
    for name in [*regions, "facts", "evidence"]:
        if name not in page.includes:
            yield f"does not include {page.name}/{name}.md"
    for name in _doubles(page.includes):
        yield f"includes {page.name}/{name}.md twice"


def _of_links(page: Page) -> Iterator[str]:
    known = inventories.links()
    called = {
        full for names in reference.linked(page).values() for full in names.values()
    }
    for name in sorted(called):
        if name not in known:
            yield (
                f"{name} has no link in {_name(inventories.FILE)}; "
                "`python -m pages.inventories` renews that"
            )


def _of_twins(page: Page) -> Iterator[str]:
    linen, nnx = (
        [region.name for region in page.problem.regions(side)] for side in blocks.TITLES
    )
    where = {side: _name(page.problem.path(side)) for side in blocks.TITLES}
    for name in linen:
        if name not in nnx:
            yield f"{where['linen']}: region {name} is not in the nnx twin"
    for name in nnx:
        if name in site.OF_PROBLEM:
            yield f"{where['nnx']}: no region can be named {name}"
        if name not in linen and not name.startswith(blocks.NNX_ALONE):
            yield (
                f"{where['nnx']}: region {name} is not in the Linen twin; one of nnx "
                f"alone begins with {blocks.NNX_ALONE}"
            )
    for side in blocks.TITLES:
        for region in page.problem.regions(side):
            for fault in blocks.block(region.code, side).faults:
                yield f"{where[side]}: region {region.name}: {fault}"


def _of_pitfalls(page: Page) -> Iterator[str]:
    where = _name(page.problem.test_path())
    pitfalls = pitfalls_of.pitfalls(page.problem)
    for pitfall in pitfalls:
        name = pitfall.test.rpartition("::")[2]
        if not pitfall.title or not pitfall.text:
            yield f"{where}: {name} has no docstring of a title, a blank line, a text"
        for expected in pitfall.not_quoted():
            yield f"{where}: the docstring of {name} does not quote {expected}"
    for test in _doubles(pitfall.test for pitfall in pitfalls):
        yield f"{where}: {test.rpartition('::')[2]} is there twice"


def _of_the_site(problems: list[catalog.ProblemFiles]) -> Iterator[str]:
    known = {problem.name for problem in problems}
    for chapter in catalog.CHAPTERS:
        for path in sorted((DOCS / chapter).glob("*.md")):
            if f"{chapter}/{path.stem}" not in known:
                yield f"{_name(path)}: is the page of no problem"
    for path in sorted(RESULTS.glob("*/*.json")):
        if f"{path.parent.name}/{path.stem}" not in known:
            yield f"{_name(path)}: is of no problem"
    yield from _of_all_includes(problems)
    titles = [
        Page(problem, path.read_text(), records.Results(problem=problem.name)).title
        for problem in problems
        if (path := page_path(problem)).is_file()
    ]
    for title in _doubles(filter(None, titles)):
        yield f"docs: two pages are called {title!r}"
    try:
        releases.known()
    except records.RecordError as error:
        yield str(error).replace(str(releases.PATH), f"{_name(releases.PATH)}:")
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    if not any(site.IN_NAV in part for part in nav):
        yield f"mkdocs.yml: nav has no part {site.IN_NAV}"


def _of_all_includes(problems: list[catalog.ProblemFiles]) -> Iterator[str]:
    """What a page includes that is no fragment and no file."""
    known = set(site.SHARED)
    unread = []  # whose regions cannot be read, which is said above
    for problem in problems:
        try:
            names = [region.name for region in problem.regions("nnx")]
        except (OSError, ValueError):
            unread.append(f"{problem.name}/")
        else:
            fragments = [*names, *site.OF_PROBLEM]
            known |= {f"{problem.name}/{name}.md" for name in fragments}
    for path in sorted(DOCS.rglob("*.md")):
        for include in dict.fromkeys(INCLUDE.findall(path.read_text())):
            is_known = include in known or include.startswith(tuple(unread))
            if not is_known and not (ROOT / include).is_file():
                yield f"{_name(path)}: includes {include}, which nothing gives"


def _tests(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _doubles(items: Iterable[T]) -> list[T]:
    return [item for item, count in Counter(items).items() if count > 1]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
