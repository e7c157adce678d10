import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.suite import catalog


def run(*arguments, **keywords):
    command = [
        sys.executable,
        "-c",
        "from linen2nnx.cli import main; main()",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, **keywords)


def test_list():
    result = run("list")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == catalog.problems()[0].chapter
    for problem in catalog.problems():
        (line,) = (line for line in lines if problem.name in line)
        assert line.endswith(problem.description)


@pytest.mark.parametrize("side", ["nnx", "linen"])
def test_show_one_side_is_runnable_code(side, tmp_path):
    result = run("show", "surgery/warm_start", f"--{side}", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout == catalog.find("warm_start").idiom(side)
    exec(compile(result.stdout, "shown", "exec"), {})


def test_show_side_by_side_in_a_pipe():
    result = run("show", "zero_by_path")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 139
    assert any(
        "import flax.linen as nn" in line and "import jax" in line for line in lines
    )
    assert "\x1b" not in result.stdout
    for side in ("linen", "nnx"):
        for line in catalog.find("zero_by_path").idiom(side).splitlines():
            assert line in result.stdout


@pytest.mark.parametrize(("width", "level"), [(80, False), (200, True)])
def test_show_in_a_terminal(width, level, monkeypatch, capsys):
    """Side by side where it fits, and one above the other where it does not."""
    from rich.console import Console

    console = Console(width=width, force_terminal=True)
    cli._print_side_by_side(console, catalog.find("replace_kernel"))
    out = capsys.readouterr().out
    assert "\x1b[" in out
    headings = [line for line in out.splitlines() if "Linen: edit" in line]
    assert ("nnx: edit" in headings[0]) is level


def test_an_unknown_problem_suggests_the_nearest():
    result = run("show", "surgery/replce_kernels")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "linen2nnx: no problem is named 'surgery/replce_kernels'; "
        "the nearest is surgery/replace_kernel\n"
    )


def test_one_side_alone():
    result = CliRunner().invoke(cli.app, ["show", "replace_kernel", "--nnx", "--linen"])
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["show", "replace_kernel"],
        ["check", "--help"],
        ["compare", "--help"],
    ],
)
def test_quick_answers_import_neither_jax_nor_flax(arguments):
    code = (
        "import sys\n"
        "from linen2nnx.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'pytest'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    for _ in range(3):  # other work on the machine may slow one of them
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True
        )
        assert (result.returncode, result.stderr) == (0, "")
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        if seconds < 0.5:
            break
    assert 0 < seconds < 0.5


def test_a_file_that_is_no_python_is_one_line(monkeypatch, capsys):
    def fail(**_):
        raise SyntaxError("invalid syntax", ("nnx_impl/state/p.py", 3, 1, "x ="))

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    expected = "linen2nnx: nnx_impl/state/p.py:3: invalid syntax\n"
    assert capsys.readouterr().err == expected
