"""`linen2nnx check A B` on small fake packages: no network, no second flax."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import pytest
from packaging.version import Version
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.releases import environments, results, upgrade
from linen2nnx.releases import report as upgrade_report
from linen2nnx.releases.verdicts import ReleaseResult
from linen2nnx.suite import catalog, expected, records
from linen2nnx.suite.records import Bytecodes, Count
from tests.fake_flax import (
    JAX,
    NNX,
    TESTS,
    TREE_MODE,
    offline,
    write_flax,
    write_wheel,
)
from tests.test_check import make_suite

HANG = "__import__('time').sleep(600)"
PLANTED = {  # by version: what was done to nnx.py, or to __init__.py
    "0.12.101": NNX,
    "0.12.102": NNX.replace("kernel=0.5", "kernel=0.75"),
    "0.12.103": NNX.replace("warm_start", "warm_up"),
    "0.12.104": NNX.replace("x * self.kernel", "x * self.kernel + 1"),
    "0.12.105": NNX.replace("    pass\n\n", f"    {HANG}\n\n")
    + f"def warm_start():\n    {HANG}\n",
    "0.12.106": NNX + "raise ImportError('no MainTrace')\n",
    "0.12.107": NNX + "def warm_start():\n    os.abort()\n",
    "0.12.108": NNX + TREE_MODE,
    "0.12.109": NNX
    + "import warnings\ndef warm_start():\n"
    + "    warnings.warn('old name', DeprecationWarning)\n",
    "0.12.110": NNX + "os.abort()\n",
    "0.10.7": NNX + "def __getattr__(name):\n"
    "    raise AttributeError(f\"module 'flax.nnx' has no attribute 'List'\")\n"
    "del warm_start\n",
}


@contextlib.contextmanager
def alone(folder):
    """One process of pytest-xdist at a time."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def packages(tmp_path_factory, worker_id):
    """A folder of wheels, a fake suite, a cache; uv sees nothing else."""
    base = tmp_path_factory.getbasetemp()
    top = (base if worker_id == "master" else base.parent) / "upgrade"
    folder, root, cache = top / "wheels", top / "suite", top / "cache"
    top.mkdir(exist_ok=True)
    with alone(top):
        if not folder.is_dir():
            for made in (folder, root, cache):
                made.mkdir()
            for version, nnx in PLANTED.items():
                write_flax(folder, version, nnx)
            write_wheel(folder, "jax", "0.7.0", {"jax/__init__.py": JAX})
            write_wheel(folder, "helpful", "1.0", {"helpful.py": "HALF = 0.5"})
            make_suite(root, TESTS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        offline(monkeypatch, folder, cache)
        monkeypatch.setattr(catalog, "root", lambda: root)
        yield folder


@pytest.fixture(scope="module")
def found(packages):
    """All of them, checked once: the next process finds them in the cache."""
    with alone(packages.parent):
        return upgrade.upgrade([*PLANTED, "0.12.999"], limit=6.0)


def cell(found, version, problem, mode="graph"):
    release = next(r for r in found.releases if r.name == version)
    return str(release.cell(problem, mode))


def changes(found, version):
    release = next(r for r in found.releases if r.name == version)
    return found.changes(release)


LINEAR, AFTER = TESTS


def test_a_release_that_holds(found):
    assert cell(found, "0.12.101", LINEAR) == "holds"
    assert cell(found, "0.12.101", AFTER) == "holds"
    assert cell(found, "0.12.101", AFTER, "tree") == (
        "not there yet: tree mode, since 0.12.6"
    )


def test_a_changed_default(found):
    text = "differs: kernel by 0.25 (test_linear)"
    assert cell(found, "0.12.102", LINEAR) == text
    worse, changed = changes(found, "0.12.102")
    assert worse == [f"{LINEAR}, graph mode: holds -> {text}"]
    (api,) = changed
    assert api == ("API names with other parameters: nnx.Linear(kernel=0.5 -> 0.75)")


def test_a_renamed_function(found):
    assert cell(found, "0.12.103", LINEAR) == "holds"
    reason = "AttributeError: module 'flax.nnx' has no attribute 'warm_start'"
    assert cell(found, "0.12.103", AFTER).startswith(f"fails: {reason}")
    assert changes(found, "0.12.103")[1] == [
        "API names gone: nnx.warm_start",
        "API names added: nnx.warm_up",
    ]


def test_a_wrong_result(found):
    assert cell(found, "0.12.104", LINEAR).startswith("differs: kernel by 0.25")
    assert cell(found, "0.12.104", AFTER) == "holds"


def test_a_hang_does_not_stop_the_others(found):
    text = "fails: TimeLimit: not ended after 6 s (test_after)"
    assert cell(found, "0.12.105", AFTER) == text
    assert cell(found, "0.12.105", LINEAR) == "holds"


def test_a_crash_at_import(found):
    text = "flax does not import: ImportError: no MainTrace"
    assert cell(found, "0.12.106", LINEAR) == text
    assert changes(found, "0.12.106")[0] == [f"flax imports -> {text}"]


def test_an_abort_at_import(found):
    assert "its import ended Python with exit status -6" in cell(
        found, "0.12.110", LINEAR
    )


def test_an_abort_in_a_test(found):
    assert cell(found, "0.12.107", LINEAR) == "holds"
    assert "Crash: the process stopped with exit status -6" in cell(
        found, "0.12.107", AFTER
    )


def test_tree_mode_appears(found):
    assert cell(found, "0.12.108", AFTER, "tree") == "holds"
    worse, changed = changes(found, "0.12.108")
    assert worse == []
    assert f"{AFTER}, tree mode: not there yet -> holds" in changed
    assert "tree mode: not there -> there" in changed


def test_a_new_warning(found):
    assert cell(found, "0.12.109", AFTER) == "holds with warnings: 1"
    assert changes(found, "0.12.109")[0] == [
        f"{AFTER}, graph mode: holds -> holds with warnings: 1",
        f"{AFTER}: new warning at parity_tests/state/test_after.py:4: "
        "DeprecationWarning: old name",
    ]


def test_a_warning_is_listed_once_with_the_line_of_ours(found):
    """Where flax raised it says nothing to who has to mend it."""
    text = upgrade_report.markdown(found)
    line = "warning: DeprecationWarning: old name, caused at parity_tests/state/"
    (shown,) = [row for row in text.replace("\\", "").splitlines() if line in row]
    assert shown.endswith(f"test_after.py:4: {AFTER} (graph)")


def test_an_api_that_is_not_there_yet(found):
    text = "not there yet: nnx.List, since 0.12.0"
    assert cell(found, "0.10.7", AFTER) == text


def test_what_is_not_as_expected_is_said_in_both_directions(found, monkeypatch):
    rows = [
        expected.Expectation("==0.12.101", ("graph",), "differs", "a cause"),
        expected.Expectation("==0.12.104", ("graph",), "differs", "a cause"),
    ]
    monkeypatch.setattr(expected, "of", lambda p: rows if p.name == LINEAR else [])
    by_name = {release.name: release for release in found.releases}
    assert by_name["0.12.101"].unexpected() == [
        f"{LINEAR}, graph mode: holds; expected: differs (a cause)"
    ]
    assert by_name["0.12.104"].unexpected() == []
    (line,) = by_name["0.12.102"].unexpected()
    assert line.startswith(f"{LINEAR}, graph mode: differs: kernel by 0.25")
    assert line.endswith("expected: holds")
    upgraded = upgrade.Upgrade("", "", [by_name["0.12.101"]])
    assert upgraded.exit_status == 1
    assert "0.12.101, jax 0.7.0: not as expected" in upgrade_report.markdown(upgraded)


def counted(**rows):
    """Records of bytecodes: by problem, what an idiom with 4 layers executes."""
    return {
        f"state/{name}": Bytecodes(
            digest="",
            environment={"flax": "0.12.12", "jax": "0.12.0.1", "python": "3.12"},
            date="",
            command="",
            counts=[Count("jitted", "nnx.jit", "tree", 4, count)],
        )
        for name, count in rows.items()
    }


def test_bytecodes_per_call():
    before, after = (
        ReleaseResult(name, environment={"flax": name}, bytecodes=bytecodes)
        for name, bytecodes in {
            "1": counted(a=1000, b=100, c=7, d=1),
            "2": counted(a=1200, b=99, c=7),
        }.items()
    )
    worse, changed = upgrade.Upgrade("", "", [before, after]).changes(after)
    assert worse == []
    assert changed == [
        "bytecodes per call, jitted, nnx.jit (tree mode): -1.0% to +20.0% "
        "(state/a, 4 layers: 1,000 -> 1,200)"
    ]


def test_bytecodes_that_cannot_be_counted_stop_nothing(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(environments.Uv, "can_count_bytecodes", True)
    found = upgrade.upgrade(["0.12.101"], cache=tmp_path)
    assert found.exit_status == 0
    note = found.releases[0].notes[-1]
    assert note.startswith("bytecodes per call were not counted: ")
    assert note.endswith(f": {LINEAR}, {AFTER}")
    monkeypatch.setattr(environments.Children, "run", pytest.fail)
    again = upgrade.upgrade(["0.12.101"], cache=tmp_path)  # of which none is run
    assert again.releases[0].notes == found.releases[0].notes


def test_no_path_of_this_machine_is_kept(found, tmp_path):
    upgrade_report.save_json(found, tmp_path / "found.json")
    assert "/tmp" not in (tmp_path / "found.json").read_text()


def test_a_release_that_does_not_exist(found):
    assert cell(found, "0.12.999", LINEAR) == (
        "could not be installed: there is no version of flax==0.12.999"
    )
    assert changes(found, "0.12.999") == ([], [])


def test_reports(found, tmp_path):
    upgrade_report.save_json(found, tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["format"] == "linen2nnx upgrade check"
    assert content["releases"][1]["verdicts"][LINEAR]["graph"] == {
        "verdict": "differs",
        "reason": "kernel by 0.25 (test_linear)",
    }
    linear, _ = content["problems"]
    assert linear["problem"] == LINEAR
    assert linear["records"][1]["modes"]["graph"]["failures"][0]["test"]
    upgrade_report.save_junit(found, tmp_path / "found.xml")
    suites = ET.parse(tmp_path / "found.xml").getroot()
    assert {s.get("name") for s in suites} >= {"0.12.101, jax 0.7.0, graph mode"}
    assert len(suites.findall("*/*/failure")) == 5
    assert len(suites.findall("*/*/skipped")) == 1
    assert len(suites.findall("*/*/error")) == 3
    text = upgrade_report.markdown(found)
    assert "| surgery/linear | graph | holds | differs |" in text
    assert "could not be installed: there is no version of flax==0.12.999" in text


def test_records_of_releases(found, tmp_path):
    """In a results folder: of each problem, and of each release."""
    old = results.Release(
        name="0.12.12",
        date="",
        command="",
        environment={"flax": "0.12.12", "jax": "0.12.0"},
    )
    results.save(results.Releases(releases=[old]), tmp_path / "releases.json")
    upgrade_report.save_records(found, tmp_path)
    rows = results.load(tmp_path / "releases.json").releases
    assert [row.name for row in rows[:3]] == ["0.10.7", "0.12.12", "0.12.101"]
    assert [row.name for row in rows if row.error] == ["0.12.106", "0.12.110"]
    assert rows[3].behaviour["tree mode"] == "not there"
    assert rows[4].api.since == "0.12.101"
    assert rows[4].api.gone == ["nnx.warm_start"]
    after = records.load(tmp_path / f"{AFTER}.json").parity()
    flax = [record.environment["flax"] for record in after]
    assert flax[:2] == ["0.10.7", "0.12.101"]
    assert "0.12.104" in flax
    assert "0.12.105" not in flax  # it took too long
    (tree,) = [r for r in after if r.environment["flax"] == "0.12.108"]
    assert [*tree.modes] == ["graph", "tree"]
    assert tree.command == f"linen2nnx check 0.12.108+jax0.7.0 --only {AFTER} --save"
    upgrade_report.save_records(found, tmp_path)
    assert results.load(tmp_path / "releases.json").releases == rows
    alone = upgrade.Upgrade("", "", [r for r in found.releases if r.name == "0.12.103"])
    upgrade_report.save_records(alone, tmp_path)
    again = results.load(tmp_path / "releases.json").releases
    assert again[4].api == rows[4].api


@pytest.mark.parametrize(
    ("names", "status", "text"),
    [
        (["0.12.101", "0.12.108"], 0, "nothing got worse"),
        (["0.12.101", "0.12.101"], 0, "0.12.101"),
        (["0.12.101", "0.12.104"], 1, "From 0.12.101 to 0.12.104: got worse"),
        (["0.12.101", "0.12.106"], 1, "flax does not import"),
        (["0.12.101", "0.12.999"], 2, "there is no version of flax==0.12.999"),
        (["0.12.104"], 1, "not every problem holds"),
        (["0.12.101"], 0, "every problem holds"),
    ],
)
def test_exit_status_from_the_cache(found, names, status, text, monkeypatch):
    monkeypatch.setattr(upgrade, "PytestRun", pytest.fail)
    result = CliRunner().invoke(cli.app, ["check", "--limit", "6", *names])
    assert (result.exit_code, result.stderr) == (status, "")
    assert text in result.stdout


BACKEND = """
import shutil
def build_wheel(out, config_settings=None, metadata_directory=None):
    return shutil.copy("flax-0.12.104-py3-none-any.whl", out).rpartition("/")[2]
"""


def test_a_local_flax(found, packages, tmp_path):
    """A folder, of which a wheel is built."""
    shutil.copy(packages / "flax-0.12.104-py3-none-any.whl", tmp_path)
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
        'backend-path = ["."]\n[project]\nname = "flax"\nversion = "0.12.104"\n'
    )
    result = upgrade.upgrade(["0.12.101", str(tmp_path)], limit=6.0)
    assert result.releases[1].cell(LINEAR, "graph").verdict == "differs", result
    assert result.exit_status == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["newest"], "'newest' is no release; it takes a version such as 0.12.8"),
        (["0.12.8+jaxnew"], "'0.12.8+jaxnew' is no release"),
        (["a..b"], "a..b names no release; a range takes two"),
        (["0.12.8", "--python", "3.99"], "there is no Python 3.99 on this machine"),
        (["0.12.8", "--jax", "0.8"], "--jax takes newest, got 0.8"),
        (["--junit", "a.xml"], "--junit is for releases; name one"),
        (["0.12.8", "--save"], "results are kept in a clone of linen2nnx"),
        (["/tmp", "--save"], "--save keeps what others can run again"),
        (["0.12.8", "--only", "states/"], "there is no chapter"),
        (["0.12.8", "--with", "a"], "say what --tests needs; it takes a path"),
        (["0.12.8", "--junit", "no/a.xml"], "no is no folder to write a.xml to"),
    ],
)
def test_bad_input_is_one_line(packages, arguments, message):
    result = CliRunner().invoke(cli.app, ["check", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_uv(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "")
    result = CliRunner().invoke(cli.app, ["check", "0.12.101"])
    assert result.exit_code == 2
    assert result.stderr == "linen2nnx: there is no uv; `pip install uv` installs it\n"


def test_names_of_releases(packages):
    uv = environments.Uv(None, environments.Children())
    specs = environments.parse(
        ["0.12.6..0.12.8", "0.12.1", "0.12.8+jax0.10.0", "current"], uv, packages
    )
    assert [(s.flax, s.jax) for s in specs[:5]] == [
        ("0.12.6", "jax<=0.10.2"),
        ("0.12.7", "jax<=0.11.0"),
        ("0.12.8", "jax<=0.11.0"),
        ("0.12.1", "jax<=0.8.1"),
        ("0.12.8", "jax==0.10.0"),
    ]
    assert Version(specs[5].flax) >= Version("0.12.6")
    (newest,) = environments.parse(["0.12.1"], uv, packages, newest_jax=True)
    assert newest.jax == "jax"
    (latest,) = environments.parse(["latest"], uv, packages)
    assert latest.flax == "0.12.110"
    assert "does not know flax 0.12.110" in latest.note


def test_without_network(packages, monkeypatch):
    monkeypatch.setattr(
        environments.Uv, "_run", lambda *a: (2, "", "error: dns error\n")
    )
    result = upgrade.upgrade(["latest"], limit=6.0)
    assert result.releases[0].error == (
        "could not be installed: the package index cannot be reached; "
        "check the network and try again"
    )
    assert result.exit_status == 2


def test_own_tests(found, packages, tmp_path, monkeypatch):
    """They have their own settings, helpers and requirements."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = ours\n")
    (folder / "helpers.py").write_text("from helpful import HALF\n")
    (folder / "test_mine.py").write_text(
        "import pytest\nfrom flax import nnx\nfrom helpers import HALF\n"
        "@pytest.mark.ours\n"
        "def test_linear():\n    assert nnx.Linear(3).apply(1) == HALF\n"
        "def test_abort():\n    nnx.warm_start()\n"
    )
    arguments = ["check", "0.12.101", "0.12.102", "0.12.107", "--limit", "6"]
    arguments += ["--tests", str(folder), "--with", "helpful"]
    arguments += ["--json", str(tmp_path / "found.json")]
    result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, result.stderr) == (1, "")
    found = json.loads((tmp_path / "found.json").read_text())["releases"]
    mine = [
        (cell["verdict"], cell["reason"])
        for release in found
        for cell in [release["verdicts"]["test_mine.py"]["graph"]]
    ]
    assert mine[0] == ("holds", "")
    assert mine[1][0] == "fails"
    assert "assert 0.75 == 0.5" in mine[1][1]
    assert "exit status -6" in mine[2][1]
    assert found[2]["verdicts"][AFTER]["graph"]["verdict"] == "fails"
    assert sorted(os.listdir(folder)) == ["helpers.py", "pytest.ini", "test_mine.py"]


def test_two_checks_at_the_same_time(packages, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        checks = [
            pool.submit(upgrade.upgrade, ["0.12.101"], cache=tmp_path) for _ in range(2)
        ]
    assert [check.result().exit_status for check in checks] == [0, 0]
    assert not [*tmp_path.glob("*/making-*")]


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from linen2nnx import cli
from linen2nnx.releases import environments
from linen2nnx.suite import catalog
root = Path(sys.argv.pop(1))
catalog.root = lambda: root
environments.NEEDED = ()
environments.Uv.can_count_bytecodes = False
signal.signal(signal.SIGINT, signal.default_int_handler)  # some parents ignore it
cli.main()
"""


def test_an_interruption_ends_the_children_and_the_next_check_goes_on(
    packages, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("LINEN2NNX_CACHE", str(cache))
    command = [sys.executable, "-c", INTERRUPTED, str(catalog.root())]
    command += ["check", "0.12.101", "0.12.105", "--limit", "6"]  # the second one hangs
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    results = cache / "results"
    deadline = time.monotonic() + 40
    while len(list(results.rglob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 2
    assert error.startswith("linen2nnx: interrupted")
    assert not running(str(tmp_path))
    kept = sorted(
        str(path.parent.relative_to(results)) for path in results.rglob("*.json")
    )
    assert kept == [".", ".", AFTER, LINEAR, LINEAR]  # probes, and what had ended

    started = []
    start = upgrade.PytestRun.__init__

    def note(self, paths, *rest, **options):
        started.append([path.stem for path in paths])
        start(self, paths, *rest, **options)

    monkeypatch.setattr(upgrade.PytestRun, "__init__", note)
    found = upgrade.upgrade(["0.12.101", "0.12.105"], limit=6.0, cache=cache)
    assert started == [["test_after"]]
    assert found.exit_status == 1
    assert len([*results.rglob("*.json")]) == 5  # what took too long is not kept


def running(text):
    """Processes whose command line has that text."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if text in line]
