"""What each side of a page calls, with links to the official reference."""

import ast
import re

from linen2nnx.suite import catalog
from pages import inventories
from pages.page import Page
from pages.templates import draw

# By side, of which class a method is: by receiver and name, or by its name alone.
METHODS: dict[catalog.Side, dict[str, str]] = {
    "linen": {
        "apply": "flax.linen.Module.apply",
        "bind": "flax.linen.Module.bind",
        "init": "flax.linen.Module.init",
        "optimizer.init": "optax.GradientTransformation",
        "update": "optax.GradientTransformation",
    },
    "nnx": {
        "bind": "flax.linen.Module.bind",
        "make_rng": "flax.linen.Module.make_rng",
        "update": "flax.nnx.Optimizer.update",
    },
}
ALIASES = {"nn": "flax.linen", "nnx": "flax.nnx", "jnp": "jax.numpy"}
# Types and shapes in signatures are no part of an idiom.
ANNOTATIONS = ("collections.abc.", "jaxtyping.", "pathlib.")
_MODULES = {"flax.linen", "flax.nnx", "jax", "jax.numpy", "numpy", "optax"}


def apis(problem: catalog.ProblemFiles, side: catalog.Side) -> dict[str, str]:
    """What the idiom of one side calls: the name as written, and its full name."""
    tree = ast.parse(problem.idiom(side))
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {
                a.asname or a.name: f"{node.module}.{a.name}" for a in node.names
            }
    found: dict[str, str] = {}
    attributes: set[ast.AST] = set()
    for node in ast.walk(tree):  # breadth first: the longest dotted name comes first
        if isinstance(node, ast.Attribute) and node not in attributes:
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                attributes.add(inner)
                inner = inner.value
            attributes.add(inner)
            if isinstance(inner, ast.Name) and inner.id in imported:
                rest = ast.unparse(node).removeprefix(inner.id)
                found[ast.unparse(node)] = imported[inner.id] + rest
            else:
                written, methods = ast.unparse(node), METHODS[side]
                full = methods.get(written) or methods.get(node.attr)
                if full:
                    found[written] = full
        elif isinstance(node, ast.Name) and node not in attributes:
            full = imported.get(node.id)
            if full and full not in _MODULES:
                found[node.id] = full
    return {
        written: full
        for written, full in sorted(found.items())
        if not full.startswith(ANNOTATIONS)
    }


def apis_in_text(page: Page) -> dict[str, str]:
    """What the text of a page names, likewise: a person's, and that of its pitfalls."""
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.parse(page.problem.test_path().read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_pitfall_")
    ]
    remarks = [
        line.strip().removeprefix("# ")
        for side in ("linen", "nnx")
        for region in page.problem.regions(side)
        for line in region.code.splitlines()
        if line.strip().startswith("# ")
    ]
    found = {}
    for text in (page.text, *docstrings, "\n".join(remarks)):
        for code in re.findall(r"`([^`\n]+)`", text):
            for name in re.findall(r"\b(?:nnx?|jnp|jax|optax|flax)(?:\.\w+)+", code):
                first, _, rest = name.partition(".")
                found[name] = f"{ALIASES.get(first, first)}.{rest}"
    return dict(sorted(found.items()))


def linked(page: Page) -> dict[str, dict[str, str]]:
    """The names that a page links, and their full names, by what stands before them."""
    linen, nnx = apis(page.problem, "linen"), apis(page.problem, "nnx")
    both = linen | nnx
    text = {k: v for k, v in apis_in_text(page).items() if v not in both.values()}
    return {
        "The Linen side calls": linen,
        "The nnx side calls": nnx,
        "The text also names": text,
    }


def section(page: Page) -> str:
    """The section of a page that links all that it calls or names."""
    known = inventories.links()
    lines = {
        verb: [f"[`{name}`]({known[full]})" for name, full in names.items()]
        for verb, names in linked(page).items()
        if names
    }
    return draw("reference", lines=lines, name=page.name)
