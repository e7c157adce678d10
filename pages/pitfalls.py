"""The pitfalls of a problem: the docstrings of the tests that show them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from linen2nnx.suite import catalog
from pages import ROOT
from pages.page import Page
from pages.templates import draw

PREFIX = "test_pitfall_"
KINDS = ("raises", "warns", "silent")


@dataclass(frozen=True)
class Pitfall:
    """What a test shows, in words.

    Attributes:
        test: the test, such as `parity_tests/surgery/test_x.py::test_pitfall_y`.
        title: the first paragraph of its docstring.
        text: the rest, in Markdown.
        expected: type and pattern of each error or warning that the test expects.
    """

    test: str
    title: str
    text: str
    expected: list[tuple[str, str]]

    @property
    def anchor(self) -> str:
        """Its address on the page."""
        return self.test.rpartition(PREFIX)[2].replace("_", "-")

    @property
    def kind(self) -> str:
        """Whether it raises, warns or is silent, by what its title quotes."""
        if re.search(r"`[^`]*\w(Error|Exception)\b", self.title):
            return "raises"
        return "warns" if re.search(r"`[^`]*\wWarning\b", self.title) else "silent"

    @property
    def of_linen(self) -> bool:
        """Whether it is one of Linen, which its title says first."""
        return self.title.startswith("Linen:")

    def not_quoted(self) -> list[str]:
        """What the test expects and the text does not say."""
        words = " ".join(f"{self.title} {self.text}".split())
        return [
            f"{error} {pattern!r}" if pattern else error
            for error, pattern in self.expected
            if error not in words or not re.search(pattern, words)
        ]


def pitfalls(problem: catalog.ProblemFiles) -> list[Pitfall]:
    """The pitfalls of a problem: errors first, Linen's last, else as in the file."""
    file = problem.test_path()
    found = [
        _pitfall(f"{file.relative_to(ROOT).as_posix()}::{node.name}", node)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(PREFIX)
    ]
    return sorted(found, key=lambda p: (p.of_linen, KINDS.index(p.kind)))


def section(page: Page) -> str:
    """The section of a page that lists its pitfalls; empty if there are none."""
    return draw("pitfalls", pitfalls=pitfalls(page.problem))


def _pitfall(test: str, node: ast.FunctionDef) -> Pitfall:
    title, _, text = (ast.get_docstring(node) or "").partition("\n\n")
    return Pitfall(test, " ".join(title.split()), text.strip(), [*_expected(node)])


def _expected(test: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Type and pattern of each `pytest.raises` and `pytest.warns` of a test."""
    for node in ast.walk(test):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
            error = ast.unparse(node.args[0]).rpartition(".")[2]
            patterns = [k.value for k in node.keywords if k.arg == "match"]
            yield error, ast.literal_eval(patterns[0]) if patterns else ""
