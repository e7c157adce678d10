"""What is known of a problem: its files, the page that a person wrote, its results."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from linen2nnx.suite import catalog, records
from pages import DOCS, RESULTS

_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
INCLUDE = re.compile(r'^ *--8<-- "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """The page of one problem. What a person forgot is empty; `pages.faults` says so.

    Attributes:
        problem: its files.
        text: the Markdown that a person wrote.
        results: what was measured of it.
    """

    problem: catalog.ProblemFiles
    text: str
    results: records.Results

    @property
    def name(self) -> str:
        """Chapter and file name, such as `surgery/replace_kernel`."""
        return self.problem.name

    @property
    def path(self) -> Path:
        """The file of the Markdown."""
        return page_path(self.problem)

    @property
    def title(self) -> str:
        """Its first heading."""
        match = re.search(r"^# (.+)$", self.text, re.MULTILINE)
        return match[1] if match else ""

    @property
    def link(self) -> str:
        """A link to it from a page at the top."""
        return f"[{self.title}]({self.name}.md)"

    @property
    def names(self) -> list[tuple[str, str]]:
        """The rows of its table of names, Linen and nnx."""
        table = self.text.partition("\n## Names\n")[2].partition("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
        cells = [row.strip("|").split(" | ") for row in rows]
        return [(row[0].strip(), row[-1].strip()) for row in cells]

    @property
    def includes(self) -> list[str]:
        """The fragments that it includes, in order, such as `edit` and `evidence`."""
        own = f"{self.name}/"
        found = INCLUDE.findall(self.text)
        return [
            include.removeprefix(own).removesuffix(".md")
            for include in found
            if include.startswith(own)
        ]

    @cached_property
    def shown(self) -> list[str]:
        """The regions that it shows, in order."""
        known = {region.name for region in self.problem.regions("nnx")}
        return [name for name in self.includes if name in known]


def page_path(problem: catalog.ProblemFiles) -> Path:
    """Where the page of a problem is."""
    return DOCS / f"{problem.name}.md"


def results_path(problem: catalog.ProblemFiles) -> Path:
    """Where the results of a problem are."""
    return RESULTS / f"{problem.name}.json"


def read(problem: catalog.ProblemFiles) -> Page:
    """The page of a problem.

    Raises:
        OSError: if there is no page.
        linen2nnx.suite.records.RecordError: if the file of results holds no records.
    """
    path = results_path(problem)
    none = records.Results(problem=problem.name)
    results = records.load(path) if path.is_file() else none
    return Page(problem, page_path(problem).read_text(), results)


def description(text: str) -> str:
    """What the front matter of a page says that the page is; empty if nothing."""
    match = _FRONT_MATTER.match(text)
    try:
        front = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return ""
    return str(front.get("description") or "") if isinstance(front, dict) else ""
