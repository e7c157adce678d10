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
TESTS = {  # by file or package of the library, where they are not test_<file>.py alone
    "arguments": ["test_suite", "test_contributing"],  # and the problems with an entry
    "leaves": ["test_mapping", "test_mapping_layers", "test_mapping_trees"],
    "mapping": ["test_mapping", "test_mapping_layers", "test_mapping_trees"],
    "parity/pair": ["test_pair"],
    "parity": [
        *("test_parity", "test_parity_inputs", "test_pair"),
        *("test_divergence", "test_planted_bugs", "test_suite"),
    ],
    "cost/paired": ["test_paired"],
    "cost/bytecodes": ["test_bytecodes"],
    "cost": ["test_problem", "test_bench"],
    "suite/problem": ["test_problem"],
    "suite/training": ["test_problem"],
    "suite/entry": ["test_problem"],
    "suite/catalog": ["test_suite", "test_cli"],
    "suite": ["test_check", "test_bench", "test_digests"],
    "releases/table": ["test_releases"],
    "releases/extend": ["test_extend_releases"],
    "releases": ["test_upgrade", "test_releases"],
    "cli": ["test_cli", "test_check", "test_bench", "test_named", "test_upgrade"],
}
ENTRY = "parity_tests/state/test_pure_update.py"  # of a problem with an entry function


def tests_of(path: Path) -> list[list[str]]:
    """Arguments of pytest, run after run, until one fails."""
    if path.parts[0] != "linen2nnx":
        test = f"parity_tests/{path.parts[1]}/test_{path.stem}.py"
        return [[test], ["tests/test_suite.py", "-k", path.stem]]
    inside = path.relative_to("linen2nnx").with_suffix("")
    names = next(
        (TESTS[name] for name in (str(inside), inside.parts[0]) if name in TESTS),
        [f"test_{path.stem}"],
    )
    own = f"test_{path.stem}"
    if (ROOT / f"tests/{own}.py").is_file() and own not in names:
        names = [own, *names]
    tests = [[f"tests/{name}.py"] for name in names]
    return [*tests, [ENTRY]] if path.stem in ("arguments", "entry") else tests


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
    from linen2nnx.files import compilation_cache

    for name in [name for name in sys.modules if name.startswith("linen2nnx")]:
        del sys.modules[name]  # it is imported again, mutated
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path = [entry for entry in sys.path if entry not in ("", str(ROOT))]
    import flax.linen
    import jax
    import optax
    import pytest
    import rich.console
    import typer

    assert all([flax, jax, optax, pytest, rich, typer])
    with tempfile.TemporaryDirectory() as compiled:
        os.environ.update(compilation_cache(Path(compiled)))
        scores = [run(Path(argument)) for argument in arguments]
    killed, total = (sum(column) for column in zip(*scores))
    print(f"in all {killed} of {total} mutants killed, {killed / total:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
