"""Every problem is in all four places, in the shape that the design gives it."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from linen2nnx.suite import catalog

ROOT = Path(__file__).parents[1]
PROBLEMS = catalog.problems()
SIDES = ("linen", "nnx")
OF_OURS = {"linen2nnx", "linen_impl", "nnx_impl", "parity_tests"}


def problem_names(folder, suffix, prefix=""):
    return {
        f"{path.parent.name}/{path.stem.removeprefix(prefix)}"
        for path in (ROOT / folder).glob(f"*/{prefix}*{suffix}")
    }


def functions(tree):
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_there_are_problems():
    assert len(PROBLEMS) >= 5
    assert {problem.chapter for problem in PROBLEMS} <= set(catalog.CHAPTERS)


def test_every_problem_is_in_all_places():
    names = {problem.name for problem in PROBLEMS}
    assert problem_names("linen_impl", ".py") == names
    assert problem_names("nnx_impl", ".py") == names
    assert problem_names("parity_tests", ".py", prefix="test_") == names
    assert names <= problem_names("docs", ".md")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
class TestProblem:
    def test_twins_have_the_same_names_in_the_same_order(self, problem):
        ours, theirs = (ast.parse(problem.path(side).read_text()) for side in SIDES)
        shared = [name for name in functions(ours) if name in functions(theirs)]
        assert [name for name in functions(theirs) if name in shared] == shared
        sections, own = problem.sections("nnx"), []
        for name in [name for name in sections if name.startswith("nnx_")]:
            own += functions(ast.parse(sections.pop(name)))  # an idiom that Linen lacks
        assert set(functions(ours)) == set(functions(theirs)) - set(own)
        assert [*problem.sections("linen")] == [*sections]

    @pytest.mark.parametrize("side", SIDES)
    def test_the_idiom_imports_nothing_of_ours(self, problem, side):
        assert not OF_OURS & set(imports(ast.parse(problem.idiom(side))))
        whole = ast.parse(problem.path(side).read_text())
        names = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(whole)
            if isinstance(node, ast.ImportFrom) and node.module in OF_OURS
            for alias in node.names
        ]
        assert names == ["linen2nnx.arguments"]

    @pytest.mark.parametrize("side", SIDES)
    def test_the_idiom_runs_alone(self, problem, side):
        names = {}
        exec(compile(problem.idiom(side), problem.name, "exec"), names)
        public = functions(ast.parse(problem.path(side).read_text()))[:-1]
        assert set(public) <= names.keys()
        assert "(1)!" not in problem.idiom(side)

    @pytest.mark.parametrize("side", SIDES)
    def test_the_file_is_short_and_narrow(self, problem, side):
        lines = problem.path(side).read_text().splitlines()
        assert sum(bool(line.strip()) for line in lines) <= 120
        assert max(map(len, lines)) <= 68

    @pytest.mark.parametrize("side", SIDES)
    def test_no_condition_on_a_release_and_no_deprecated_value(self, problem, side):
        tree = ast.parse(problem.path(side).read_text())
        attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not attributes & {"__version__", "value", "raw_value"}

    @pytest.mark.parametrize("side", SIDES)
    def test_the_entry_function_says_what_it_takes(self, problem, side):
        entry = ast.parse(problem.path(side).read_text()).body[-2]
        docstring = ast.get_docstring(entry)
        for argument in [*entry.args.args, *entry.args.kwonlyargs]:
            assert f"\n    {argument.arg}: " in docstring
        assert "Returns:" in docstring
        assert "Raises:" in docstring

    def test_the_description_is_one_short_line(self, problem):
        assert problem.description.endswith(".")
        assert len(problem.description) <= 60


@pytest.mark.parametrize(
    "path",
    [problem.path(side) for problem in PROBLEMS for side in SIDES],
    ids=lambda path: "/".join(path.parts[-3:]),
)
def test_the_file_runs_by_itself(path, capsys):
    """As `python path` would, without a new process and its imports."""
    source = compile(path.read_text(), path, "exec")
    exec(source, {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("[")


def test_a_file_runs_as_a_script_from_any_folder(tmp_path):
    path = PROBLEMS[0].path("nnx")
    result = subprocess.run(
        [sys.executable, "-W", "error", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("[")


def test_who_imports_whom():
    """The library knows no problem by name, and nothing imports from the tests."""
    for path in (ROOT / "linen2nnx").glob("*.py"):
        assert not {"linen_impl", "nnx_impl", "parity_tests", "docs"} & set(
            imports(ast.parse(path.read_text()))
        ), path


def test_find_by_name_and_by_short_name():
    problem = catalog.find("surgery/replace_kernel")
    assert catalog.find("replace_kernel") == problem
    assert problem.chapter == "surgery"
    assert problem.test_path() == ROOT / "parity_tests/surgery/test_replace_kernel.py"


def test_an_unclosed_section_is_an_error(tmp_path, monkeypatch):
    file = tmp_path / "nnx_impl/state/broken.py"
    file.parent.mkdir(parents=True)
    file.write_text("# --8<-- [start:model]\nx = 1\n")
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    with pytest.raises(ValueError, match="section model has no end"):
        catalog.ProblemFiles("state/broken").sections("nnx")


@pytest.mark.parametrize(
    "module",
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "linen2nnx").rglob("*.py"))
        if ">>>" in path.read_text()
    ],
)
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    assert result.attempted > 0


def test_the_example_of_the_readme_is_the_tested_code():
    readme = (ROOT / "README.md").read_text()
    for side in SIDES:
        assert catalog.find("surgery/replace_kernel").sections(side)["edit"] in readme


def test_the_test_in_the_readme_passes():
    (example,) = re.findall(
        r"```python\n(import.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    names = {}
    exec(example, names)
    names["test_port"]()
