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
WITH_ENTRY = {  # the problems that are stated with an entry function
    "surgery/replace_kernel": "replace_kernel",
    "surgery/zero_last_layer": "zero_last_layer_kernel",
    "surgery/warm_start": "add_layer_warm_start",
    "state/zero_by_path": "state_zero_kernel",
    "state/pure_update": "pure_state_update",
}

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


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


def code_of(regions):
    return ast.parse("\n\n".join(region.code for region in regions))


def test_there_are_problems():
    assert len(PROBLEMS) >= 13
    assert {problem.chapter for problem in PROBLEMS} <= set(catalog.CHAPTERS)


def test_every_problem_is_in_all_places():
    names = {problem.name for problem in PROBLEMS}
    assert problem_names("linen_impl", ".py") == names
    assert problem_names("nnx_impl", ".py") == names
    assert problem_names("parity_tests", ".py", prefix="test_") == names
    assert problem_names("parity_tests", ".py") == {
        name.replace("/", "/test_") for name in names
    }
    assert names <= problem_names("docs", ".md")


@every_problem
class TestProblem:
    def test_twins_have_the_same_names_in_the_same_order(self, problem):
        ours, theirs = problem.regions("linen"), problem.regions("nnx")
        alone = [r for r in theirs if r.name.startswith("nnx_")]  # Linen has none
        shared = [r for r in theirs if r not in alone]
        assert [r.name for r in ours] == [r.name for r in shared]
        assert functions(code_of(ours)) == functions(code_of(shared))

    @pytest.mark.parametrize("side", SIDES)
    def test_the_file_imports_the_checks_of_its_entry_alone(self, problem, side):
        assert not OF_OURS & set(imports(ast.parse(problem.idiom(side))))
        whole = ast.parse(problem.path(side).read_text())
        names = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(whole)
            if isinstance(node, ast.ImportFrom) and node.module in OF_OURS
            for alias in node.names
        ]
        assert names == ["linen2nnx.arguments"] * (problem.name in WITH_ENTRY)

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
    def test_after_the_idiom_comes_what_runs_it(self, problem, side):
        _, _, rest = problem.path(side).read_text().partition("\n# region: end\n")
        tree = ast.parse(rest)
        assert ast.unparse(tree.body[-1].test) == "__name__ == '__main__'"
        entry = WITH_ENTRY.get(problem.name)
        assert functions(tree) == [entry] * (entry is not None)
        for function in tree.body[:-1]:
            docstring = ast.get_docstring(function)
            for argument in [*function.args.args, *function.args.kwonlyargs]:
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
    assert capsys.readouterr().out.strip()


def test_a_file_runs_as_a_script_from_any_folder(tmp_path):
    path = PROBLEMS[0].path("nnx")
    result = subprocess.run(
        [sys.executable, "-W", "error", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip()


def test_find_by_name_and_by_short_name():
    problem = catalog.find("surgery/replace_kernel")
    assert catalog.find("replace_kernel") == problem
    assert problem.chapter == "surgery"
    assert problem.test_path() == ROOT / "parity_tests/surgery/test_replace_kernel.py"


def problem_of(source, tmp_path, monkeypatch):
    file = tmp_path / "nnx_impl/state/made.py"
    file.parent.mkdir(parents=True)
    file.write_text(source)
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    return catalog.ProblemFiles("state/made")


def test_imports_and_regions(tmp_path, monkeypatch):
    problem = problem_of(
        '"""Made.\n\nFor the test.\n"""\n\nimport jax\nfrom flax import nnx\n\n'
        "from linen2nnx import arguments\n\n\n# region: model - The model\na = 1\n\n\n"
        "# region: edit\n# nnx: a remark\nb = 2\n\n\n# region: end\n\n\nc = 3\n",
        tmp_path,
        monkeypatch,
    )
    assert problem.imports("nnx") == "import jax\nfrom flax import nnx"
    assert problem.regions("nnx") == [
        catalog.Region("model", "The model", "a = 1"),
        catalog.Region("edit", "", "# nnx: a remark\nb = 2"),
    ]
    assert problem.idiom("nnx") == (
        "import jax\nfrom flax import nnx\n\n\na = 1\n\n\n# nnx: a remark\nb = 2\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# region: model\nx = 1\n", "region model has no end, '# region: end'"),
        ("# region: a\n# region: a\n# region: end\n", "has two regions a"),
    ],
)
def test_a_wrong_region_is_an_error(source, message, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=message):
        problem_of(source, tmp_path, monkeypatch).regions("nnx")


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
        regions = catalog.find("surgery/replace_kernel").regions(side)
        (edit,) = (region.code for region in regions if region.name == "edit")
        assert edit.partition("\n\n\n")[0] in readme


def test_the_test_in_the_readme_passes():
    (example,) = re.findall(
        r"```python\n(import.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    names = {}
    exec(example, names)
    names["test_port"]()
