"""The digest of the code that a result depends on, without comments and docstrings.

A result is of the code that gave it: the two twins of its problem, the tests, and what
these import in the tree. Layout, comments and docstrings change nothing that runs, so
they are not in the digest; what a kind of result does not run is not either.
"""

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import linen2nnx
from linen2nnx.files import digest
from linen2nnx.suite import catalog
from linen2nnx.suite.records import Kind

# What a result of that kind runs besides the twins and the tests, and what it does not.
RUNS: Mapping[Kind, tuple[str, ...]] = {
    "parity": ("parity_tests.conftest", "linen2nnx.suite.plugin"),
    "cost": (),
    "bytecodes": ("linen2nnx.cost.bytecodes",),
}
LEFT_OUT: Mapping[Kind, tuple[str, ...]] = {
    "parity": ("linen2nnx.cost",),
    "cost": ("linen2nnx.parity", "linen2nnx.mapping"),
    "bytecodes": ("linen2nnx.parity", "linen2nnx.mapping"),
}


def digest_of(problem: catalog.ProblemFiles, kind: Kind) -> str:
    """The digest of all code that one kind of result of a problem depends on.

    Of the cost and the bytecodes, the tests in the problem's file are left out.
    """
    own = [_module(path) for path in problem.paths()]
    return digest_of_modules([*own, *RUNS[kind]], LEFT_OUT[kind], kind == "parity")


def digest_of_modules(
    names: Iterable[str], left_out: tuple[str, ...] = (), with_tests: bool = True
) -> str:
    """The digest of modules of the tree and of all that they import of it.

    Args:
        names: of the modules.
        left_out: how the names of those begin that are not in it.
        with_tests: whether functions that are tests are in it.
    """
    found: dict[str, Path] = {}
    todo = [*names]
    while todo:
        name = todo.pop()
        path = None if left_out and name.startswith(left_out) else _file(name)
        if path is not None and name not in found:
            found[name] = path
            todo += _imported(path, _stamp(path))
    parts = [
        part
        for name, path in sorted(found.items())
        for part in (name.encode(), _code(path, _stamp(path), with_tests))
    ]
    return digest(parts)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(catalog.root()).with_suffix("").parts)


def _file(name: str) -> Path | None:
    """The file of a module of the tree; None of any other module."""
    package, _, rest = name.partition(".")
    if package == "linen2nnx":
        base = Path(linen2nnx.__file__).parent
    elif package in catalog.FOLDERS:
        base = catalog.root() / package
    else:
        return None
    path = base.joinpath(*rest.split(".")) if rest else base
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


@functools.cache
def _parsed(path: Path, stamp: int) -> ast.Module:
    return ast.parse(path.read_text("utf-8-sig"), str(path))


@functools.cache
def _imported(path: Path, stamp: int) -> list[str]:
    """The names that a file imports, anywhere in it, as they may be modules."""
    return [*_names(_parsed(path, stamp))]


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def _code(path: Path, stamp: int, with_tests: bool) -> bytes:
    """A file as its syntax tree in text, without docstrings, or without tests too."""
    tree = ast.parse(path.read_text("utf-8-sig"), str(path))
    tree.body = [
        node
        for node in tree.body
        if not _is_expected(node) and (with_tests or not _is_test(node))
    ]
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and _has_docstring(node.body):
            del node.body[0]
    return repr(_plain(tree)).encode()


def _plain(node: object) -> object:
    """A syntax tree as tuples, the same on every Python: what is empty is left out."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node)]
        return type(node).__name__, *(f for f in fields if f[1] not in (None, ()))
    if isinstance(node, list):
        return tuple(map(_plain, node))
    return repr(node) if node is not None else None


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def _is_expected(node: ast.stmt) -> bool:
    """Whether it is the list that a result is compared with; nothing runs it."""
    return isinstance(node, ast.Assign) and [*map(ast.unparse, node.targets)] == [
        "EXPECTED"
    ]


def _has_docstring(body: list[ast.stmt]) -> bool:
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
