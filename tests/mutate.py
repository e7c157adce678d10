"""Mutation testing: which mistakes in a file does no test find?

    python tests/mutate.py nnx_impl/state/pure_update.py [FILE ...]

Needs the extra `mutation`. The mutants are those of cosmic-ray, and each statement of
each function dropped in turn. Every mutant is written to a copy of the tree and tested
in a process forked from one that has imported jax and flax, so that a file takes
minutes and not hours. The example run under `if __name__ == "__main__"` is left alone.
"""

import ast
import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS_PER_MUTANT = 120
TESTS = {  # where they are not test_<file>.py alone; those of a twin go by its name
    "arguments": ["tests/test_entry_arguments.py", "tests/test_suite.py"],
    "mapping": [
        "tests/test_mapping.py",
        "tests/test_mapping_layers.py",
        "tests/test_mapping_trees.py",
        "tests/test_suite.py",
    ],
    "parity": [
        "tests/test_parity.py",
        "tests/test_parity_inputs.py",
        "tests/test_divergence.py",
        "tests/test_planted_bugs.py",
        "tests/test_suite.py",
    ],
    "suite": ["tests/test_suite.py", "tests/test_cli.py"],
    "report": ["tests/test_check.py"],
    "check": ["tests/test_check.py"],
    "cli": [
        "tests/test_cli.py",
        "tests/test_check.py",
        "tests/test_overhead.py",
        "tests/test_compare.py",
        "tests/test_upgrade.py",
    ],
}


def tests_of(path: Path) -> list[list[str]]:
    """Arguments of pytest, run after run, until one fails."""
    if path.parts[0] == "linen2nnx":
        tests = TESTS.get(path.stem, [f"tests/test_{path.stem}.py"])
        return [[test] for test in tests]
    test = f"parity_tests/{path.parts[1]}/test_{path.stem}.py"
    of_all = ["tests/test_entry_arguments.py", "tests/test_suite.py"]
    return [[test], [*of_all, "-k", path.stem]]


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """What was changed, and the changed source."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    main = source.rfind('if __name__ == "__main__":')
    seen = {source}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():
            continue
        for occurrence in itertools.count():
            try:
                mutant = mutate_code(source, operator(), occurrence)
            except AttributeError:  # it cannot replace an exception with a dotted name
                continue
            if not mutant:
                break
            in_main = main >= 0 and mutant[:main] == source[:main]
            if mutant not in seen and not in_main:
                seen.add(mutant)
                yield name.removeprefix("core/"), mutant
    yield from dropped_statements(source)


def dropped_statements(source: str) -> Iterator[tuple[str, str]]:
    lines = source.splitlines(keepends=True)
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            docstring = isinstance(node, ast.Expr) and isinstance(
                node.value, ast.Constant
            )
            simple = isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Raise)
            if simple and not docstring:
                dropped = [" " * node.col_offset + "pass\n"]
                rest = lines[: node.lineno - 1] + dropped + lines[node.end_lineno :]
                yield "DropStatement", "".join(rest)


def survives(copy: Path, tests: list[list[str]]) -> bool:
    """Whether all tests pass; run in a fork, so that nothing of a mutant is left."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    with contextlib.suppress(BaseException):
        signal.alarm(SECONDS_PER_MUTANT)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        import pytest

        options = ["-x", "-q", "-o", "addopts=", "--import-mode=importlib"]
        options += ["-p", "linen2nnx.suite.plugin", "-p", "no:cacheprovider"]
        options += ["-p", "no:randomly", "--nnx-mode", "graph"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        os._exit(0 if all(pytest.main([*options, *of]) == 0 for of in tests) else 1)
    os._exit(1)


def report_line(source: str, mutant: str) -> str:
    for number, (old, new) in enumerate(
        zip(source.splitlines(), mutant.splitlines()), start=1
    ):
        if old != new:
            return f"line {number}: {old.strip()}  ->  {new.strip()}"
    return "end of file"


def run(path: Path) -> tuple[int, int]:
    source = (ROOT / path).read_text()
    tests = tests_of(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        ignore = shutil.ignore_patterns(".*", "__pycache__", "site", "node_modules")
        shutil.copytree(ROOT, copy, ignore=ignore)
        if not survives(copy, tests):
            sys.exit(f"{path}: its tests fail as it is")
        killed = total = 0
        for name, mutant in mutants(source):
            (copy / path).write_text(mutant)
            total += 1
            if survives(copy, tests):
                print(f"survived: {path}, {name}, {report_line(source, mutant)}")
            else:
                killed += 1
    print(f"{path}: {killed} of {total} mutants killed", flush=True)
    return killed, total


def main(arguments: list[str]) -> None:
    from linen2nnx.suite.check import compilation_cache

    for name in [name for name in sys.modules if name.startswith("linen2nnx")]:
        del sys.modules[name]  # it is imported again, mutated
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path = [entry for entry in sys.path if entry not in ("", str(ROOT))]
    import flax.linen
    import jax
    import jaxtyping
    import optax
    import pytest
    import rich.console
    import typer

    assert all([flax, jax, jaxtyping, optax, pytest, rich, typer])
    with tempfile.TemporaryDirectory() as compiled:
        os.environ.update(compilation_cache(compiled))
        scores = [run(Path(argument)) for argument in arguments]
    killed, total = (sum(column) for column in zip(*scores))
    print(f"in all {killed} of {total} mutants killed, {killed / total:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
