"""`linen2nnx check`, on a small suite made for the purpose."""

import io
import json
import math
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.suite import catalog, check
from linen2nnx.suite import results as report
from linen2nnx.suite.results import Outcome, Results

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
    root = tmp_path_factory.mktemp("suite")
    make_suite(root, TESTS)
    seen = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(catalog, "root", lambda: root)
        found = check.check(lambda done, total: seen.append((done, total)))
    assert all(done <= total for done, total in seen)
    return found


def verdicts(results, name):
    return [results.problems[name][mode].verdict for mode in ("graph", "tree")]


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
    assert not results.all_hold


def test_what_was_compared(results):
    outcome = results.problems["surgery/good"]["tree"]
    assert outcome.tests == 3
    assert outcome.compared == {  # the pitfall's 77 is not among it
        "outputs": {"leaves": 2, "largest_difference": 0.0},
        "gradients": {"leaves": 2, "largest_difference": 0.25},
    }
    assert outcome.largest_difference == 0.25


def test_failures_say_which_path_and_how_far(results):
    modes = results.problems["surgery/different"]
    messages = {mode: [f["message"] for f in o.failures] for mode, o in modes.items()}
    assert len(messages["graph"]) == 1
    assert len(messages["tree"]) == 2
    message = next(m for m in messages["tree"] if "kernel" in m)
    assert message.startswith("linen2nnx.parity.equal.ParityError: outputs: 1 of 1")
    assert "kernel (2,) float64: 2 of 2 values differ by up to 1 at [0]" in message
    assert math.isnan(modes["graph"].largest_difference)
    failed_import = results.problems["surgery/import_error"]["graph"].failures
    assert "No module named 'nowhere'" in failed_import[0]["message"]


def test_warnings_are_listed_once_and_none_of_the_shared_cache(results):
    (warning,) = results.problems["state/warning"]["graph"].warnings
    assert warning["message"] == "DeprecationWarning: old name"
    assert warning["where"].endswith("parity_tests/state/test_warning.py:5")


def test_the_environment_is_recorded(results):
    import flax
    import jax

    assert results.environment["flax"] == flax.__version__
    assert results.environment["jax"] == jax.__version__
    assert results.environment["device"] == "cpu: cpu"


def test_saved_results_are_read_back(results, tmp_path):
    file = tmp_path / "results.json"
    results.save(file)
    again = report.load(file)
    assert render(again) == render(results)
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert (content["format"], content["version"]) == ("linen2nnx check", 1)
    different = content["problems"]["surgery/different"]["graph"]
    assert different["verdict"] == "differs"
    assert different["compared"]["outputs"]["largest_difference"] == "nan"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    "content", ["{}", '{"format": "linen2nnx check", "version": 9}']
)
def test_other_files_are_no_results(content, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="no linen2nnx check result of version 1"):
        report.load(file)


def render(results, width=100, **terminal):
    file = io.StringIO()
    Console(width=width, file=file, **terminal).print(report.render(results))
    return file.getvalue()


def test_the_table(results):
    text = render(results)
    lines = {line.split()[1]: line for line in text.splitlines() if line[:1] == "│"}
    assert lines["surgery/good"].split()[3:-1] == [
        "holds",
        "│",
        "holds",
        "│",
        "0.25",
        "│",
        "0",
    ]
    assert "nan" in lines["surgery/different"]
    assert lines["state/warning"].split()[-2] == "2"  # one in each mode
    assert "2 of 7 problems hold in graph and tree mode" in text
    assert "differs: surgery/different, test_other (tree mode)" in text
    assert "differs: surgery/different, test_nan (graph and tree mode)" in text
    assert "pitfall changed: state/pitfall, test_pitfall_that_flax_mended" in text
    words = " ".join(text.split())  # a long path before it breaks the line anywhere
    assert words.count("DeprecationWarning: old name") == 1


def test_the_table_has_a_heading_for_every_column_of_80(results):
    text = render(results, width=80)
    headings = text.splitlines()[3].replace("┃", " ").split()
    assert headings == ["problem", "mode", "mode", "difference", "warnings"]


def test_only_what_holds_is_green(results):
    green, red = "\x1b[32m", "\x1b[31m"
    text = render(results, force_terminal=True, color_system="standard")
    assert f"{green}holds" in text
    assert all(f"{red}{bad}" in text for bad in ("differs", "fails", "pitfall changed"))


GOOD = Outcome(tests=1)
BAD = Outcome(tests=1, failures=[{"test": "a::b", "message": "KeyError: 'x'"}])


def invoke(monkeypatch, outcome, *arguments):
    environment = dict.fromkeys(["flax", "jax", "python", "device"], "1")
    found = Results("", "", environment, {"a/b": {"graph": GOOD, "tree": outcome}})
    monkeypatch.setattr(cli, "run_check", lambda progress: found)
    return CliRunner().invoke(cli.app, ["check", *arguments])


def test_exit_status(monkeypatch, tmp_path):
    file = tmp_path / "results.json"
    result = invoke(monkeypatch, GOOD, "--json", str(file))
    assert result.exit_code == 0
    assert "1 of 1 problems hold" in result.stdout
    assert report.load(file).all_hold
    result = invoke(monkeypatch, BAD, "--json", str(file))
    assert result.exit_code == 1
    assert "KeyError: 'x'" in result.stdout
    assert not report.load(file).all_hold


def test_results_that_cannot_be_written(monkeypatch, tmp_path):
    result = invoke(monkeypatch, GOOD, "--json", str(tmp_path / "no/results.json"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "is no folder to write results.json to" in result.stderr
    result = invoke(monkeypatch, GOOD, "--json", str(tmp_path))
    assert result.exit_code == 2
    assert "was not written: Is a directory" in result.stderr
    assert os.listdir(tmp_path) == []


def run_broken_suite(monkeypatch, root):
    monkeypatch.setattr(catalog, "root", lambda: root)
    return CliRunner().invoke(cli.app, ["check"])


def test_a_suite_that_cannot_run(monkeypatch, tmp_path):
    make_suite(tmp_path, {"state/good": "def test_a(nnx_mode): pass"})
    (tmp_path / "parity_tests/conftest.py").write_text("import nowhere\n")
    result = run_broken_suite(monkeypatch, tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("linen2nnx: the tests in graph mode stopped")
    assert "No module named 'nowhere'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_suite_that_crashes(monkeypatch, tmp_path):
    crash = "import os\ndef test_a(nnx_mode): os._exit(3)"
    make_suite(tmp_path, {"state/crash": crash})
    result = run_broken_suite(monkeypatch, tmp_path)
    assert result.exit_code == 2
    assert "stopped with exit status 3" in result.stderr


def test_a_suite_without_problems(monkeypatch, tmp_path):
    result = run_broken_suite(monkeypatch, tmp_path)
    assert result.exit_code == 2
    assert f"there is no problem in {tmp_path}" in result.stderr
