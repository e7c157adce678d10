"""`linen2nnx check`, on a small suite made for the purpose."""

import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.suite import cached, catalog, check, check_table, records
from linen2nnx.suite.check import Checked
from linen2nnx.suite.records import Compared, Failure, Outcome, Parity

ROOT = Path(__file__).parents[1]

TESTS = {  # by problem: what its test file holds
    "surgery/good": """
        import numpy as np
        import pytest
        from linen2nnx import parity
        @pytest.mark.parametrize("case", [1, 2])
        def test_same(nnx_mode, case):
            parity.assert_equal({"a": np.ones(3)}, {"a": np.ones(3)})
            loose = parity.Tolerance("made for the test", atol=0.5)
            parity.assert_equal(np.ones(1), 1.25 * np.ones(1), check="gradients",
                                tolerance=loose)
        def test_pitfall_that_holds(nnx_mode):
            with pytest.raises(parity.ParityError):
                parity.assert_equal(np.zeros(1), np.full(1, 77.0))
        @pytest.mark.meta
        def test_of_the_suite(nnx_mode):
            raise AssertionError
        @pytest.mark.cost
        def test_cost():
            raise AssertionError
    """,
    "surgery/different": """
        import numpy as np
        from linen2nnx import parity
        def test_other(nnx_mode):
            factor = 2.0 if nnx_mode == "tree" else 1.0
            parity.assert_equal({"kernel": np.ones(2)}, {"kernel": factor * np.ones(2)})
        def test_nan(nnx_mode):
            parity.assert_equal(np.ones(1), np.full(1, np.nan))
    """,
    "surgery/failing": """
        def test_raises(nnx_mode):
            raise KeyError("layers_7")
    """,
    "surgery/import_error": """
        from nowhere import nothing
    """,
    "state/pitfall": """
        def test_fine(nnx_mode):
            pass
        def test_pitfall_that_flax_mended(nnx_mode):
            assert nnx_mode == "none"
    """,
    "state/warning": """
        import warnings
        def test_warns(nnx_mode):
            for _ in range(2):
                warnings.warn("old name", DeprecationWarning)
            warnings.warn(
                "Error reading persistent compilation cache entry for 'jit_f': error -5"
            )
    """,
    "state/without_tests": "",
}


def make_suite(root, tests):
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, content in tests.items():
        chapter, _, file = name.partition("/")
        for path in (
            f"linen_impl/{chapter}/{file}.py",
            f"nnx_impl/{chapter}/{file}.py",
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text('"""A problem."""\n')
        path = root / f"parity_tests/{chapter}/test_{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "\n".join(line.removeprefix(" " * 8) for line in content.splitlines())
        )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All of `TESTS`, by problem."""
    root = tmp_path_factory.mktemp("suite")
    make_suite(root, TESTS)
    seen, ended = [], []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(catalog, "root", lambda: root)
        monkeypatch.setenv("LINEN2NNX_CACHE", str(root / "cache"))
        found = check.check(
            catalog.problems(),
            progress=lambda done, total: seen.append((done, total)),
            ended=ended.append,
        )
    assert all(done <= total for done, total in seen)
    assert sorted(ended, key=found.index) == found
    return {checked.problem.name: checked for checked in found}


def outcome(results, name, mode):
    return results[name].record.modes[mode]


def verdicts(results, name):
    return [outcome(results, name, mode).verdict for mode in ("graph", "tree")]


def test_verdicts(results):
    assert {name: verdicts(results, name) for name in TESTS} == {
        "surgery/good": ["holds", "holds"],
        "surgery/different": ["differs", "differs"],
        "surgery/failing": ["fails", "fails"],
        "surgery/import_error": ["fails", "fails"],
        "state/pitfall": ["pitfall changed", "pitfall changed"],
        "state/warning": ["holds", "holds"],
        "state/without_tests": ["nothing ran", "nothing ran"],
    }
    assert not any(checked.is_kept for checked in results.values())


def test_what_was_compared(results):
    found = outcome(results, "surgery/good", "tree")
    assert found.tests == 3  # none of those that are `meta` or `cost`
    assert found.compared == {  # the pitfall's 77 is not among it
        "outputs": Compared(2, 0.0),
        "gradients": Compared(2, 0.25),
    }
    assert found.largest_difference == 0.25


def test_failures_say_which_path_and_how_far(results):
    modes = results["surgery/different"].record.modes
    messages = {mode: [f.message for f in o.failures] for mode, o in modes.items()}
    assert len(messages["graph"]) == 1
    assert len(messages["tree"]) == 2
    message = next(m for m in messages["tree"] if "kernel" in m)
    assert message.startswith("linen2nnx.parity.equal.ParityError: outputs: 1 of 1")
    assert "kernel (2,) float64: 2 of 2 values differ by up to 1 at [0]" in message
    assert math.isnan(modes["graph"].largest_difference)
    (failure,) = outcome(results, "surgery/import_error", "graph").failures
    assert "No module named 'nowhere'" in failure.message


def test_warnings_are_listed_once_and_none_of_the_shared_cache(results):
    (warning,) = outcome(results, "state/warning", "graph").warnings
    assert warning.message == "DeprecationWarning: old name"
    assert warning.where == "parity_tests/state/test_warning.py:5"


def test_the_environment_is_recorded(results):
    import flax
    import jax

    record = results["surgery/good"].record
    assert record.environment["flax"] == flax.__version__
    assert record.environment["jax"] == jax.__version__
    assert record.environment["device"] == "cpu: cpu"


def test_saved_results_are_read_back(results, tmp_path):
    file = tmp_path / "results.json"
    record = results["surgery/different"].record
    of_problem = records.Results(problem="surgery/different", records=[record])
    records.save_all([of_problem], file)
    ((again,),) = [found.records for found in records.load_all(file)]
    assert again.modes["tree"].failures == record.modes["tree"].failures
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    (kept,) = content["problems"][0]["records"]
    compared = kept["modes"]["graph"]["compared"]
    assert compared["outputs"]["largest_difference"] == "nan"
    assert math.isnan(again.modes["graph"].largest_difference)
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"format": "linen2nnx results", "version": 9}'],
)
def test_other_files_are_no_results(content, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(records.RecordError) as raised:
        records.load(file)
    assert str(raised.value).startswith(f"{file} holds no linen2nnx results")
    assert "\n" not in str(raised.value)


def render(found, width=100, **terminal):
    file = io.StringIO()
    console = Console(width=width, file=file, **terminal)
    table = check_table.CheckTable(checked.problem.name for checked in found)
    console.print(table.head(found[0].record.environment))
    for checked in found:
        console.print(table.line(checked))
    console.print(check_table.details(found))
    return file.getvalue()


def test_the_table(results):
    text = render([*results.values()])
    lines = {
        line.split()[0]: line.split() for line in text.splitlines() if line.strip()
    }
    assert lines["surgery/good"][1:] == ["holds", "holds", "0.25", "0"]
    assert "nan" in lines["surgery/different"]
    assert lines["state/warning"][-1] == "2"  # one in each mode
    assert "2 of 7 problems hold in graph and tree mode\n" in text
    assert "differs: surgery/different, test_other (tree mode)" in text
    assert "differs: surgery/different, test_nan (graph and tree mode)" in text
    assert "pitfall changed: state/pitfall, test_pitfall_that_flax_mended" in text
    assert text.count("DeprecationWarning: old name") == 1


def test_a_line_of_80_columns_holds_a_name_of_30(results):
    checked = Checked(
        catalog.ProblemFiles("checkpoints/orbax_linen_to_nnx"),
        results["surgery/good"].record,
        False,
    )
    *_, headings, line, _, _ = render([checked], width=80).splitlines()
    assert headings.split() == ["problem", "mode", "mode", "difference", "warnings"]
    assert line.split()[1:] == ["holds", "holds", "0.25", "0"]
    assert line.index("0.25") + 4 == headings.index("difference") + 10


def test_only_what_holds_is_green(results):
    green, red = "\x1b[32m", "\x1b[31m"
    found = [*results.values()]
    text = render(found, force_terminal=True, color_system="standard")
    assert f"{green}holds" in text
    assert all(f"{red}{bad}" in text for bad in ("differs", "fails", "pitfall"))


def dated(name, date, is_kept):
    environment = dict.fromkeys(["flax", "jax", "python", "device"], "1")
    modes = {"graph": Outcome(tests=1), "tree": Outcome(tests=1)}
    record = Parity(
        digest="", environment=environment, date=date, command="", modes=modes
    )
    return Checked(catalog.ProblemFiles(name), record, is_kept)


def test_the_summary_says_what_is_of_an_earlier_run():
    found = [
        dated("a/new", "2026-11-26T10:00:00", False),
        dated("a/old", "2026-11-25T10:00:00", True),
        dated("a/same_day", "2026-11-25T11:00:00", True),
    ]
    assert render(found).splitlines()[-1] == (
        "3 of 3 problems hold in graph and tree mode; 2 of them as checked on "
        "2026-11-25, --fresh runs all"
    )
    found.append(dated("a/older", "2026-11-20T10:00:00", True))
    assert "3 of them as checked from 2026-11-20 to 2026-11-25" in " ".join(
        render(found).split()
    )


ONE = "def test_a(nnx_mode): pass\n"


class FakeRun:
    """In place of a process of pytest: each line of a test file is a test.

    One that says `raise` fails with what it raises; one that says `exit` ends the
    process, one that says `interrupt` as a user does.
    """

    started: ClassVar[list[list[str]]] = []

    def __init__(self, paths, options, environment, folder, name):
        self.paths, self.has_ended = paths, False
        self.started.append([path.stem.removeprefix("test_") for path in paths])
        lines = [(path, n) for path in paths for n in path.read_text().splitlines()]
        self.tests = [(p, line) for p, line in lines if line.startswith("def test_")]
        self.total = len(self.tests)

    def is_running(self):
        return not self.has_ended

    def events(self):
        if self.has_ended:
            return
        self.has_ended = True
        versions = dict.fromkeys(["flax", "jax", "python", "device"], "1")
        yield {"event": "collected", "tests": self.total, "environment": versions}
        for path, line in self.tests:
            test = f"{path.relative_to(catalog.root())}::test_a"
            yield {"event": "started", "test": test}
            if "exit" in line:
                return
            if "interrupt" in line:
                yield {"event": "finished", "exit_status": 2}
                return
            yield {
                "event": "test",
                "test": test,
                "outcome": "failed" if "raise" in line else "passed",
                "message": line.partition("raise ")[2] or None,
                "compared": {},
                "cpu": 0.0,
            }
        yield {"event": "finished", "exit_status": 0}

    def last_words(self):
        return "stopped with exit status 3: no output"

    def stop(self):
        pass


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Three problems in two chapters, in a clone, an empty cache, and no process."""
    monkeypatch.setattr(check, "PytestRun", FakeRun)
    monkeypatch.setattr(FakeRun, "started", [])
    root = tmp_path / "clone"
    (root / "docs").mkdir(parents=True)
    make_suite(root, {"surgery/a": ONE, "surgery/b": ONE, "state/c": ONE})
    monkeypatch.setattr(catalog, "root", lambda: root)
    monkeypatch.setenv("LINEN2NNX_CACHE", str(tmp_path / "cache"))
    return root


def edit(root, name, text):
    chapter, _, file = name.partition("/")
    path = root / f"parity_tests/{chapter}/test_{file}.py"
    path.write_text(text)
    stamp = path.stat().st_mtime_ns + 1_000_000  # some file systems are coarse
    os.utime(path, ns=(stamp, stamp))


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["check", *arguments])


def test_only_what_changed_runs_again(suite):
    assert invoke().exit_code == 0
    edit(suite, "surgery/a", '"""A docstring."""\n\n# and a comment\n' + ONE)
    found = check.check(catalog.problems())
    assert [checked.is_kept for checked in found] == [True, True, True]
    edit(suite, "surgery/a", ONE + "def test_b(nnx_mode): pass\n")
    found = check.check(catalog.problems())
    assert [checked.is_kept for checked in found] == [False, True, True]
    assert found[0].record.modes["tree"].tests == 2
    found = check.check(catalog.problems(), fresh=True)
    assert [checked.is_kept for checked in found] == [False, False, False]


def test_what_is_installed_and_the_switches_of_jax_count(suite, monkeypatch):
    problems = catalog.problems()[:1]
    check.check(problems)
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    assert not check.check(problems)[0].is_kept
    assert check.check(problems)[0].is_kept
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(suite))
    assert check.check(problems)[0].is_kept
    packages = cached.installed() | {"numpy": "3.0"}
    monkeypatch.setattr(cached, "installed", lambda: packages)
    assert not check.check(problems)[0].is_kept


@pytest.mark.parametrize("end", ["exit", "interrupt"])
def test_an_interrupted_check_goes_on_where_it_was(suite, end):
    """The second problem ends its process; the first has ended by then."""
    edit(suite, "surgery/b", f"def test_b(nnx_mode): {end}(3)\n")
    with pytest.raises(check.CheckError, match="mode stopped with exit status 3"):
        check.check(catalog.problems())
    edit(suite, "surgery/b", ONE)
    kept = {p.parent.name for p in (suite.parent / "cache/results").rglob("*.json")}
    assert kept == {"a"}
    FakeRun.started.clear()
    found = check.check(catalog.problems())
    assert [c.record.holds for c in found] == [True, True, True]
    assert FakeRun.started == [["b", "c"], ["b", "c"]]
    assert [checked.is_kept for checked in found] == [True, False, False]


@pytest.mark.parametrize(
    "message",
    [
        "MemoryError",
        "OSError('[Errno 28] No space left on device')",
        "RuntimeError('RESOURCE_EXHAUSTED: Out of memory')",
    ],
)
def test_a_passing_fault_is_not_kept(suite, message):
    edit(suite, "state/c", f"def test_c(nnx_mode): raise {message}\n")
    result = invoke("--only", "state/c", "--save")
    assert result.exit_code == 1
    assert not [*suite.rglob("docs/results/**/*.json")]
    assert not check.check([catalog.find("state/c")])[0].is_kept
    edit(suite, "state/c", "def test_c(nnx_mode): raise KeyError\n")
    assert invoke("--only", "state/c").exit_code == 1
    assert check.check([catalog.find("state/c")])[0].is_kept


def test_only(suite):
    result = invoke("--only", "surgery/", "--only", "c")
    assert result.stdout.count(" holds ") == 6
    result = invoke("--only", "surgery/")
    assert "2 of 2 problems hold" in result.stdout
    assert "state/c" not in result.stdout
    result = invoke("--only", "layers/")
    assert (result.exit_code, result.stderr) == (
        2,
        "linen2nnx: there is no chapter 'layers/'; there are surgery/, state/\n",
    )
    result = invoke("--only", "state/d")
    assert "no problem is named 'state/d'; the nearest is state/c" in result.stderr


def test_json_and_save(suite, tmp_path):
    file = tmp_path / "found.json"
    result = invoke("--json", str(file), "--save")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [r.problem for r in records.load_all(file)] == [
        "surgery/a",
        "surgery/b",
        "state/c",
    ]
    for problem in catalog.problems():
        (record,) = records.load(suite / f"docs/results/{problem.name}.json").parity()
        assert [*record.modes] == ["graph", "tree"]
        assert record.command == f"linen2nnx check --only {problem.name} --save"
    assert not check.cached.is_passing(record.modes["tree"])


def test_a_file_that_is_no_record_is_one_line(suite):
    file = suite / "docs/results/state/c.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    result = invoke("--only", "state/c", "--save")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"linen2nnx: {file} holds no linen2nnx results")
    assert result.stderr.count("\n") == 1


def test_save_takes_a_clone(suite):
    (suite / "docs").rmdir()
    result = invoke("--save")
    assert result.exit_code == 2
    assert "results are kept in a clone of linen2nnx" in result.stderr


def test_a_line_is_there_when_its_problem_has_ended(suite, monkeypatch):
    shown = []
    line = check_table.CheckTable.line
    monkeypatch.setattr(
        check_table.CheckTable,
        "line",
        lambda self, checked: shown.append(checked.problem.name) or line(self, checked),
    )
    edit(suite, "state/c", "def test_c(nnx_mode): exit(3)\n")
    result = invoke()
    assert result.exit_code == 2
    assert shown == ["surgery/a", "surgery/b"]
    assert [text.split()[0] for text in result.stdout.splitlines()[3:]] == shown


BAD = Outcome(tests=1, failures=[Failure("a::b", "KeyError: 'x'")])


def pretend(monkeypatch, bad):
    """A check that finds one problem."""
    checked = dated("a/b", "", False)
    if bad:
        checked.record.modes["tree"] = BAD

    def run(problems, *, ended, **options):
        ended(checked)
        return [checked]

    monkeypatch.setattr(cli, "run_check", run)


def test_exit_status(monkeypatch, tmp_path):
    file = tmp_path / "results.json"
    pretend(monkeypatch, bad=False)
    result = invoke("--json", str(file))
    assert result.exit_code == 0
    assert "1 of 1 problems hold" in result.stdout
    assert records.load_all(file)[0].records[0].holds
    pretend(monkeypatch, bad=True)
    result = invoke("--json", str(file))
    assert result.exit_code == 1
    assert "KeyError: 'x'" in result.stdout
    assert not records.load_all(file)[0].records[0].holds


def test_results_that_cannot_be_written(monkeypatch, tmp_path):
    pretend(monkeypatch, bad=False)
    result = invoke("--json", str(tmp_path / "no/results.json"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "is no folder to write results.json to" in result.stderr
    result = invoke("--json", str(tmp_path))
    assert result.exit_code == 2
    assert "was not written: Is a directory" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("conftest", "tests", "message"),
    [
        ("import nowhere\n", ONE, "No module named 'nowhere'"),
        ("", "import os\ndef test_a(nnx_mode): os._exit(3)", "exit status 3"),
    ],
)
def test_a_suite_that_cannot_run(tmp_path, monkeypatch, conftest, tests, message):
    make_suite(tmp_path, {"state/a": tests})
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    monkeypatch.setenv("LINEN2NNX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "parity_tests/conftest.py").write_text(conftest)
    result = invoke()
    assert result.exit_code == 2
    assert "mode stopped with exit status" in result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_suite_without_problems(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    result = invoke()
    assert result.exit_code == 2
    assert f"there is no problem in {tmp_path}" in result.stderr
