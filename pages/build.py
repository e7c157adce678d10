"""Build or serve the pages.

    python -m pages.build build
    python -m pages.build serve

Run it from a clone. Before the build it checks the pages against the suite and writes
the fragments that they include, drawn from `docs/results/*.json` and from the sources.
After it, it writes each page as Markdown, and `llms.txt`. It measures nothing.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linen2nnx.suite import bench, bytecodes, catalog
from linen2nnx.suite import results as report
from pages import releases as site_releases

ROOT = catalog.root()
DOCS = ROOT / "docs"
FRAGMENTS = ROOT / "build" / "fragments"
SITE = ROOT / "site"

CHECKS = {  # linen2nnx.parity.CHECKS, and what each compares
    "structure": "the leaves, their shapes and dtypes, and the starting values",
    "edit": "the edited model; leaves that must not change; the untouched original",
    "outputs": "what the model returns",
    "state": "every leaf of the state after the call",
    "gradients": "of a random function of the output, with respect to every leaf",
    "optimizer step": "every leaf after one step of SGD with momentum",
    "round trip": "nnx state to Linen variables and back",
}
STEP_CHECKS = {  # what the tests of training problems compare, after each step
    "loss of a step": "the loss that it returns",
    "state after a step": "every param and every statistic",
    "optimizer state after a step": "every moment and every count",
}
MEASURED = {  # what overhead was measured of, and its title
    "jitted": "Jitted call",
    "eager": "Eager call",
    "edit": "The edit itself",
    "first call: trace": "First call: trace",
    "first call: compile": "First call: compile",
}
DEVICES = {"cpu": "CPU", "gpu": "GPU"}

LINEN_API = "https://flax-linen.readthedocs.io/en/latest/api_reference/"
NNX_API = "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/"
JAX_API = "https://docs.jax.dev/en/latest/_autosummary/"
NNX_TRANSFORMS_GUIDE = "https://flax.readthedocs.io/en/latest/guides/transforms.html"
OPTAX_API = "https://optax.readthedocs.io/en/latest/api/"
ORBAX_API = "https://orbax.readthedocs.io/en/latest/api_reference/"
PYTHON = "https://docs.python.org/3/library/"
REFERENCE = {  # where the official reference of a name is; jax follows one rule
    "collections.abc.Mapping": PYTHON + "collections.abc.html#collections.abc.Mapping",
    "flax.core.freeze": (
        LINEN_API + "flax.core.frozen_dict.html#flax.core.frozen_dict.freeze"
    ),
    "flax.core.FrozenDict": (
        LINEN_API + "flax.core.frozen_dict.html#flax.core.frozen_dict.FrozenDict"
    ),
    "flax.linen.BatchNorm": LINEN_API + "flax.linen/layers.html#flax.linen.BatchNorm",
    "flax.linen.compact": LINEN_API + "flax.linen/decorators.html#flax.linen.compact",
    "flax.linen.Dense": LINEN_API + "flax.linen/layers.html#flax.linen.Dense",
    "flax.linen.Dropout": LINEN_API + "flax.linen/layers.html#flax.linen.Dropout",
    "flax.linen.initializers.ones": (
        LINEN_API + "flax.linen/initializers.html#flax.linen.initializers.ones"
    ),
    "flax.linen.Module": LINEN_API + "flax.linen/module.html#flax.linen.Module",
    "flax.linen.Module.apply": (
        LINEN_API + "flax.linen/module.html#flax.linen.Module.apply"
    ),
    "flax.linen.Module.bind": (
        LINEN_API + "flax.linen/module.html#flax.linen.Module.bind"
    ),
    "flax.linen.Module.init": LINEN_API
    + "flax.linen/module.html#flax.linen.Module.init",
    "flax.linen.Module.make_rng": (
        LINEN_API + "flax.linen/module.html#flax.linen.Module.make_rng"
    ),
    "flax.linen.relu": (
        LINEN_API + "flax.linen/activation_functions.html#flax.linen.activation.relu"
    ),
    "flax.linen.remat": LINEN_API + "flax.linen/transformations.html#flax.linen.remat",
    "flax.linen.scan": LINEN_API + "flax.linen/transformations.html#flax.linen.scan",
    "flax.linen.sigmoid": (
        LINEN_API + "flax.linen/activation_functions.html#flax.linen.activation.sigmoid"
    ),
    "flax.nnx.All": NNX_API + "filterlib.html#flax.nnx.All",
    "flax.nnx.BatchNorm": NNX_API + "nn/normalization.html#flax.nnx.BatchNorm",
    "flax.nnx.BatchStat": NNX_API + "variables.html#flax.nnx.BatchStat",
    "flax.nnx.cached_partial": NNX_API + "graph.html#flax.nnx.cached_partial",
    "flax.nnx.Carry": NNX_API + "transforms.html#flax.nnx.Carry",
    "flax.nnx.clone": NNX_API + "graph.html#flax.nnx.clone",
    "flax.nnx.data": NNX_API + "object.html#flax.nnx.data",
    "flax.nnx.Dict": NNX_API + "helpers.html#flax.nnx.Dict",
    "flax.nnx.Dropout": NNX_API + "nn/stochastic.html#flax.nnx.Dropout",
    "flax.nnx.eval_shape": NNX_API + "transforms.html#flax.nnx.eval_shape",
    "flax.nnx.grad": NNX_API + "transforms.html#flax.nnx.grad",
    "flax.nnx.graphdef": NNX_API + "graph.html#flax.nnx.graphdef",
    "flax.nnx.initializers.lecun_normal": (
        NNX_API + "nn/initializers.html#flax.nnx.initializers.lecun_normal"
    ),
    "flax.nnx.jit_partial": (  # not in the reference; this has its docstring
        "https://flax.readthedocs.io/en/latest/_modules/flax/nnx/transforms/"
        "compilation.html"
    ),
    "flax.nnx.jit": NNX_API + "transforms.html#flax.nnx.jit",
    "flax.nnx.Linear": NNX_API + "nn/linear.html#flax.nnx.Linear",
    "flax.nnx.List": NNX_API + "helpers.html#flax.nnx.List",
    "flax.nnx.merge": NNX_API + "graph.html#flax.nnx.merge",
    "flax.nnx.Module": NNX_API + "module.html#flax.nnx.Module",
    "flax.nnx.Optimizer": (
        NNX_API + "training/optimizer.html#flax.nnx.optimizer.Optimizer"
    ),
    "flax.nnx.Optimizer.update": (
        NNX_API + "training/optimizer.html#flax.nnx.optimizer.Optimizer.update"
    ),
    "flax.nnx.Param": NNX_API + "variables.html#flax.nnx.Param",
    "flax.nnx.PathContains": NNX_API + "filterlib.html#flax.nnx.PathContains",
    "flax.nnx.relu": NNX_API + "nn/activations.html#flax.nnx.relu",
    "flax.nnx.remat": NNX_API + "transforms.html#flax.nnx.remat",
    "flax.nnx.replace_by_pure_dict": (
        NNX_API + "state.html#flax.nnx.replace_by_pure_dict"
    ),
    "flax.nnx.reseed": NNX_API + "rnglib.html#flax.nnx.reseed",
    "flax.nnx.Rngs": NNX_API + "rnglib.html#flax.nnx.Rngs",
    "flax.nnx.RngStream": NNX_API + "rnglib.html#flax.nnx.RngStream",
    "flax.nnx.scan": NNX_API + "transforms.html#flax.nnx.scan",
    "flax.nnx.sigmoid": NNX_API + "nn/activations.html#flax.nnx.sigmoid",
    "flax.nnx.split": NNX_API + "graph.html#flax.nnx.split",
    "flax.nnx.split_rngs": NNX_API + "rnglib.html#flax.nnx.split_rngs",
    "flax.nnx.state": NNX_API + "graph.html#flax.nnx.state",
    "flax.nnx.State": NNX_API + "state.html#flax.nnx.State",
    "flax.nnx.StateAxes": NNX_TRANSFORMS_GUIDE,
    "flax.nnx.to_pure_dict": NNX_API + "state.html#flax.nnx.to_pure_dict",
    "flax.nnx.update": NNX_API + "graph.html#flax.nnx.update",
    "flax.nnx.value_and_grad": NNX_API + "transforms.html#flax.nnx.value_and_grad",
    "flax.nnx.view": NNX_API + "module.html#flax.nnx.view",
    "flax.nnx.vmap": NNX_API + "transforms.html#flax.nnx.vmap",
    "flax.training.train_state.TrainState": (
        LINEN_API + "flax.training.html#flax.training.train_state.TrainState"
    ),
    "flax.training.train_state.TrainState.create": (
        LINEN_API + "flax.training.html#flax.training.train_state.TrainState.create"
    ),
    "flax.traverse_util.flatten_dict": (
        "https://flax.readthedocs.io/en/latest/api_reference/"
        "flax.traverse_util.html#flax.traverse_util.flatten_dict"
    ),
    "flax.traverse_util.path_aware_map": (
        "https://flax.readthedocs.io/en/latest/api_reference/"
        "flax.traverse_util.html#flax.traverse_util.path_aware_map"
    ),
    "flax.traverse_util.unflatten_dict": (
        "https://flax.readthedocs.io/en/latest/api_reference/"
        "flax.traverse_util.html#flax.traverse_util.unflatten_dict"
    ),
    "functools.cache": PYTHON + "functools.html#functools.cache",
    "optax.adam": OPTAX_API + "optimizers.html#optax.adam",
    "optax.apply_updates": OPTAX_API + "apply_updates.html#optax.apply_updates",
    "optax.chain": OPTAX_API + "combining_optimizers.html#optax.chain",
    "optax.clip_by_global_norm": (
        OPTAX_API + "transformations.html#optax.clip_by_global_norm"
    ),
    "optax.GradientTransformation": (
        OPTAX_API + "transformations.html#optax.GradientTransformation"
    ),
    "optax.masked": OPTAX_API + "optimizer_wrappers.html#optax.masked",
    "optax.OptState": OPTAX_API + "transformations.html#optax.OptState",
    "optax.partition": OPTAX_API + "combining_optimizers.html#optax.partition",
    "optax.set_to_zero": OPTAX_API + "transformations.html#optax.set_to_zero",
    "optax.sgd": OPTAX_API + "optimizers.html#optax.sgd",
    "optax.warmup_cosine_decay_schedule": (
        OPTAX_API
        + "optimizer_schedules.html#optax.schedules.warmup_cosine_decay_schedule"
    ),
    "orbax.checkpoint.StandardCheckpointer": (
        ORBAX_API + "checkpoint.checkpointers.html#standardcheckpointer"
    ),
}
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

SNIPPET = re.compile(r'^( *)--8<-- "([^":]+)(?::(\w+))?"$')
TEST = re.compile(r"parity_tests/\w+/test_\w+\.py::test_\w+")
REMARK = re.compile(r"^(.*?)\s*# \((\d+)\)!\s*$")


class SiteError(Exception):
    """The pages and their sources do not agree."""


@dataclass(frozen=True)
class Page:
    """The page of one problem."""

    problem: catalog.ProblemFiles

    @property
    def path(self) -> Path:
        """The page's Markdown."""
        return DOCS / f"{self.problem.name}.md"

    @property
    def text(self) -> str:
        """Its text."""
        if not self.path.is_file():
            raise SiteError(f"{self.problem.name} has no page; write {self.path}")
        return self.path.read_text()

    @property
    def title(self) -> str:
        """Its first heading."""
        match = re.search(r"^# (.+)$", self.text, re.M)
        if match is None:
            raise SiteError(f"{self.path} has no title")
        return match[1]

    def names(self) -> list[tuple[str, str]]:
        """The rows of its table of names, Linen and nnx."""
        table = self.text.partition("\n## Names\n")[2].partition("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        if len(rows) < 3:
            raise SiteError(f"{self.path} has no table under the heading Names")
        cells = [row.strip("|").split(" | ") for row in rows[2:]]
        return [(linen.strip(), nnx.strip()) for linen, nnx in cells]

    def link(self) -> str:
        """A link to it from a page at the top."""
        return f"[{self.title}]({self.problem.name}.md)"


def pages() -> list[Page]:
    """The pages of all problems."""
    return [Page(problem) for problem in catalog.problems()]


# Checks


def check(page: Page) -> None:
    """Compare a page with the files that it speaks of.

    Raises:
        SiteError: if a section of a twin is not on the page; if a test that it names
            does not exist, or a pitfall test is not named; or if a pitfall does not
            quote the error that its test expects.
    """
    problem, text = page.problem, page.text
    for side in ("linen", "nnx"):
        for section in problem.sections(side):
            include = f'"{side}_impl/{problem.name}.py:{section}"'
            if include not in text:
                raise SiteError(f"{page.path} does not include {include}")
    file = problem.test_path().relative_to(ROOT).as_posix()
    functions = {
        f"{file}::{node.name}": node
        for node in ast.parse(problem.test_path().read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    named = set(TEST.findall(text))
    for test in sorted(named - functions.keys()):
        raise SiteError(f"{page.path} names {test}, which does not exist")
    for test in functions:
        if report.is_pitfall(test) and test not in named:
            raise SiteError(f"{page.path} does not state the pitfall of {test}")
    pitfalls = text.partition("\n## Pitfalls\n")[2].partition("\n## ")[0]
    for entry in pitfalls.split("\n### ")[1:]:
        tests = TEST.findall(entry)
        if len(tests) != 1:
            title = entry.splitlines()[0]
            raise SiteError(f"{page.path}: pitfall {title!r} names {len(tests)} tests")
        for error, message in _expected_errors(functions[tests[0]]):
            if error not in entry or not re.search(message, entry):
                raise SiteError(
                    f"{page.path} does not quote the {error} {message!r} that "
                    f"{tests[0]} expects"
                )


def _expected_errors(test: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Type and pattern of each `pytest.raises` and `pytest.warns` of a test."""
    for node in ast.walk(test):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
            error = ast.unparse(node.args[0]).rpartition(".")[2]
            patterns = [k.value for k in node.keywords if k.arg == "match"]
            yield error, ast.literal_eval(patterns[0]) if patterns else ""


# Parity


def parity_results() -> list[report.Results]:
    """The results in `docs/results/parity-<flax version>.json`, newest flax first."""
    results = []
    for path in (DOCS / "results").glob("parity-*.json"):
        try:
            result = report.load(path)
        except ValueError as error:
            raise SiteError(f"{path}: {error}") from error
        if path.name != f"parity-{result.environment['flax']}.json":
            raise SiteError(f"{path} was run on flax {result.environment['flax']}")
        results.append(result)
    return sorted(results, key=_flax_version, reverse=True)


def _flax_version(result: report.Results) -> list[int]:
    return _numbers(result.environment["flax"])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _holds(result: report.Results, name: str) -> bool:
    outcomes = result.problems.get(name, {}).values()
    return bool(outcomes) and all(o.verdict == "holds" for o in outcomes)


def _verdict(result: report.Results, name: str) -> str:
    """`exact`, how far the sides differ, or what is wrong."""
    outcomes = result.problems.get(name, {}).values()
    if not outcomes:
        return "not run"
    for outcome in outcomes:
        if outcome.verdict != "holds":
            return outcome.verdict
    largest = max(outcome.largest_difference for outcome in outcomes)
    return "exact" if largest == 0 else f"within {largest:.1g}"


def parity_fragment(name: str, results: list[report.Results]) -> str:
    """The table of what was compared, on the newest flax."""
    missing = (
        "No parity result is committed for this problem. "
        "`linen2nnx check --json docs/results/parity-<flax version>.json` writes one."
    )
    if not results or name not in results[0].problems:
        return missing
    result = results[0]
    outcomes = result.problems[name]
    compared = {check for o in outcomes.values() for check in o.compared}
    modes = " | ".join(f"leaves, {mode} mode" for mode in outcomes)
    lines = [
        f"| check | {modes} | largest difference |",
        "| --- |" + " ---: |" * (len(outcomes) + 1),
    ]
    for check, meaning in {**CHECKS, **STEP_CHECKS}.items():
        if check in compared:
            found = [o.compared.get(check) for o in outcomes.values()]
            counts = " | ".join(str(c["leaves"]) if c else "0" for c in found)
            largest = max(float(c["largest_difference"]) for c in found if c)
            what = f"**{check}** <small>{meaning}</small>"
            lines.append(f"| {what} | {counts} | {largest:.3g} |")
    tests = " and ".join(
        f"{o.tests} tests in {mode} mode" for mode, o in outcomes.items()
    )
    test_file = f"parity_tests/{name.replace('/', '/test_')}.py"
    summary = f"Verdict: **{_verdict(result, name)}**. `{test_file}` ran {tests}."
    file = f"parity-{result.environment['flax']}.json"
    source = _provenance(result.environment, result.date, result.command, file)
    return "\n".join([summary, "", *lines, "", source, "{ .source }"])


def runs_fragment(results: list[report.Results]) -> str:
    """All parity runs, one per row."""
    if not results:
        return "No parity result is committed."
    lines = [
        "| flax | jax | Python | problems that hold | leaves compared | "
        "largest difference | date | result |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for result in results:
        env = result.environment
        outcomes = [o for modes in result.problems.values() for o in modes.values()]
        leaves = sum(c["leaves"] for o in outcomes for c in o.compared.values())
        holding = sum(_holds(result, name) for name in result.problems)
        largest = max((o.largest_difference for o in outcomes), default=0.0)
        lines.append(
            f"| {env['flax']} | {env['jax']} | {env['python']} "
            f"| {holding} of {len(result.problems)} | {leaves:,} | {largest:.3g} "
            f"| {result.date[:10]} | [JSON](results/parity-{env['flax']}.json) |"
        )
    last = results[0]
    lines += [
        "",
        f"Measured by `{last.command}` on {_device(last.environment)}, "
        f"{last.environment['platform']}.",
        "{ .source }",
    ]
    return "\n".join(lines)


def _device(env: dict[str, str]) -> str:
    """Its model where that is known: `cpu: cpu` says no more than CPU."""
    kind, _, model = env["device"].partition(": ")
    if kind == "cpu":
        return env.get("cpu_model", "CPU")
    return model


def _provenance(env: dict[str, str], date: str, command: str, file: str) -> str:
    return (
        f"flax {env['flax']}, jax {env['jax']}, jaxlib {env['jaxlib']}, "
        f"Python {env['python']}; {_device(env)}; {date[:10]}; "
        f"`{command}`; [the result file](../results/{file})."
    )


# Cost


def overhead_results() -> dict[str, dict[str, Any]]:
    """The results in `docs/results/overhead-<device>.json`, by device."""
    found = {}
    for device in DEVICES:
        path = DOCS / "results" / f"overhead-{device}.json"
        if path.is_file():
            try:
                found[device] = bench.load(path)
            except ValueError as error:
                raise SiteError(str(error)) from error
    return found


def _measurements(result: dict[str, Any], name: str, what: str) -> list[dict[str, Any]]:
    return [
        row
        for row in result["measurements"]
        if row["problem"] == name
        and row["what"] == what
        and row["idiom"] != bench.REFERENCE
    ]


def _idiom(idiom: str, mode: str | None) -> str:
    if idiom == bench.LIMIT:
        return f"{idiom}, no framework"
    return f"{idiom}, {mode} mode" if mode else idiom


def _cheapest(overhead: dict[str, dict[str, Any]], name: str) -> str:
    """What jitted code costs on CPU in the cheapest nnx idiom."""
    best = bench.cheapest(overhead["cpu"], name) if "cpu" in overhead else None
    return f"{best.ratio:.2f} times Linen" if best else "not measured"


def cost_fragment(name: str, results: dict[str, dict[str, Any]]) -> str:
    """What each nnx idiom costs beside Linen's, on each device."""
    parts = []
    for device, title in DEVICES.items():
        result = results.get(device)
        if result is None or not any(
            row["problem"] == name for row in result["measurements"]
        ):
            what = (
                f"**{title} results are missing.** On a machine with a {title}, "
                if result is None
                else f"**No result of this problem on {title}.** "
            )
            parts.append(f"{what}`{bench.COMMAND}` in a clone fills them in.")
            continue
        if device != "cpu":
            parts.append(f"**On {title}**")
        parts += _cost_parts(name, result, f"overhead-{device}.json")
    return "\n\n".join(parts)


def _cost_parts(name: str, result: dict[str, Any], file: str) -> Iterator[str]:
    best = bench.cheapest(result, name)
    if best is not None:
        where = "" if best.layers is None else f" at its worst, {_layers(best.layers)}"
        limit = bench.AS_CHEAP_AS_LINEN
        verdict = (
            f"no nnx idiom is within {limit} times"
            if best.reason
            else "as cheap as Linen"
        )
        yield (
            f"Jitted, **{_idiom(best.idiom, best.mode)}** costs {best.ratio:.2f} times "
            f"Linen's time{where}: {verdict}."
        )
    if _is_stale(name, result):
        yield (
            '!!! note "Older than the code"\n\n'
            "    A file has changed since this was measured. "
            f"`{bench.COMMAND}` renews it."
        )
    tables = [
        _cost_table(title, rows)
        for what, title in MEASURED.items()
        if (rows := _measurements(result, name, what))
    ]
    style = "costs" if _depths(name, result) else "costs single"
    yield f'<div class="{style}" markdown>'
    yield from tables
    yield "</div>"
    env = result["environment"]
    source = _provenance(env, result["date"], result["command"], file)
    controls = [row["control"] for row in result["measurements"]]
    yield (
        f"Time over Linen's: the mean of {bench.PROCESSES} processes, "
        "and their range; [how it is measured, and what the idioms are](../cost.md). "
        f"Control between {min(controls):.2f} and {max(controls):.2f}. {source}\n"
        "{ .source }"
    )


def bytecodes_fragment(name: str) -> str:
    """How many Python bytecodes a jitted call takes, by idiom."""
    path = DOCS / "results" / "bytecodes.json"
    if not path.is_file():
        return ""
    try:
        content = bytecodes.load(path)
    except ValueError as error:
        raise SiteError(str(error)) from error
    newest = max(content["recorded"], key=lambda r: _numbers(r["environment"]["flax"]))
    rows = [
        row
        for row in newest["counts"]
        if row["problem"] == name and row["what"] == "jitted"
    ]
    if not rows:
        return ""
    depths = sorted({row["layers"] for row in rows}, key=lambda n: (n is not None, n))
    heads = ["bytecodes" if d is None else _layers(d) for d in depths]
    counts: dict[str, dict[Any, int]] = {}
    for row in rows:
        idiom = _idiom(row["idiom"], row["mode"])
        counts.setdefault(idiom, {})[row["layers"]] = row["bytecodes"]
    env = newest["environment"]
    lines = [
        "Python bytecodes that one jitted call executes. Unlike a time, the count is "
        "the same on every run; work in C++ is not in it.",
        "",
        f"| Jitted call | {' | '.join(heads)} |",
        "| --- |" + " ---: |" * len(depths),
    ]
    for idiom, cells in counts.items():
        texts = [f"{cells[d]:,}" if d in cells else "" for d in depths]
        lines.append(f"| {idiom} | {' | '.join(texts)} |")
    lines += [
        "",
        f"flax {env['flax']}, jax {env['jax']}, Python {env['python']}; "
        f"{newest['date'][:10]}; `{content['command']}`; "
        "[the result file](../results/bytecodes.json).",
        "{ .source }",
    ]
    return "\n".join(lines)


def _depths(name: str, result: dict[str, Any]) -> list[int]:
    rows = _measurements(result, name, "jitted")
    return sorted({row["layers"] for row in rows if row["layers"] is not None})


def _is_stale(name: str, result: dict[str, Any]) -> bool:
    now = bench.sha256_of_sources([catalog.find(name)])
    return any(result["sources"].get(path) != sha256 for path, sha256 in now.items())


def _cost_table(title: str, rows: list[dict[str, Any]]) -> str:
    """Idioms by depth; each cell has a ratio, its interval and a bar."""
    depths = sorted({row["layers"] for row in rows}, key=lambda n: (n is not None, n))
    linen = {row["layers"]: _seconds(row["linen_seconds"]) for row in rows}
    heads = [
        f"{'ratio' if d is None else _layers(d)}<br><small>Linen {linen[d]}</small>"
        for d in depths
    ]
    longest = max(1.0, *(row["ratio"] for row in rows))  # Linen is 1
    by_idiom: dict[str, dict[Any, dict[str, Any]]] = {}
    for row in rows:
        by_idiom.setdefault(_idiom(row["idiom"], row["mode"]), {})[row["layers"]] = row
    lines = [
        f"| {title} | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(depths),
    ]
    for idiom, cells in by_idiom.items():
        texts = []
        for depth in depths:
            if depth not in cells:
                texts.append("not published")
                continue
            row = cells[depth]
            low, high = row["interval"]
            style = f"--v:{100 * row['ratio'] / longest:.1f};--one:{100 / longest:.1f}"
            texts.append(
                f"**{_ratio(row['ratio'])}** "
                f"<small>{_ratio(low)} to {_ratio(high)}</small> "
                f'<span class="bar" style="{style}" aria-hidden="true"></span>'
            )
        lines.append(f"| {idiom} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _ratio(ratio: float) -> str:
    """Two decimals, or one where they would be noise."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def _seconds(seconds: float) -> str:
    units = {"s": 1.0, "ms": 1e-3, "\u00b5s": 1e-6}
    unit = next((unit for unit, size in units.items() if seconds >= size), "\u00b5s")
    return f"{seconds / units[unit]:.3g} {unit}"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def cost_runs_fragment(results: dict[str, dict[str, Any]]) -> str:
    """All overhead runs, one per row, and what is missing."""
    lines = []
    if results:
        lines = [
            "| device | flax | jax | Python | measurements | control | date | result |",
            "| --- | --- | --- | --- | ---: | --- | --- | --- |",
        ]
    for device, result in results.items():
        env = result["environment"]
        controls = [row["control"] for row in result["measurements"]]
        lines.append(
            f"| {_device(env)} | {env['flax']} | {env['jax']} "
            f"| {env['python']} | {len(controls)} "
            f"| {min(controls):.2f} to {max(controls):.2f} | {result['date'][:10]} "
            f"| [JSON](results/overhead-{device}.json) |"
        )
    lines += ["", *(result["note"] for result in results.values() if "note" in result)]
    for device, title in DEVICES.items():
        if device not in results:
            lines += [
                "",
                f"{title} results are missing. On a machine with a {title}, "
                f"`{bench.COMMAND}` in a clone fills them in.",
            ]
    return "\n".join(lines)


# The other fragments


def facts_fragment(
    name: str, results: list[report.Results], overhead: dict[str, dict[str, Any]]
) -> str:
    """Parity, cost and releases in one row."""
    parity = _verdict(results[0], name) if results else "not measured"
    best = bench.cheapest(overhead["cpu"], name) if "cpu" in overhead else None
    idiom = f", {_idiom(best.idiom, best.mode)}" if best else ""
    cost = f"{_cheapest(overhead, name)}{idiom}"
    holding = [r.environment["flax"] for r in reversed(results) if _holds(r, name)]
    return "\n".join(
        [
            '<div class="facts" markdown>',
            "",
            f"- **Parity** [{parity}](#parity)",
            f"- **Jitted cost** [{cost}](#cost)",
            f"- **Holds on flax** [{', '.join(holding) or 'none'}](#releases)",
            "",
            "</div>",
        ]
    )


def problems_fragment(
    results: list[report.Results], overhead: dict[str, dict[str, Any]]
) -> str:
    """The table of all problems."""
    lines = [
        '<div class="filter" data-filter="Filter problems" data-chips="2" markdown>',
        "",
        "| Problem | Chapter | Parity | Jitted cost | Flax releases |",
        "| --- | --- | --- | --- | --- |",
    ]
    for page in pages():
        name = page.problem.name
        holding = [r.environment["flax"] for r in reversed(results) if _holds(r, name)]
        lines.append(
            f"| **{page.link()}** <small>{page.problem.description}</small> "
            f"| {page.problem.chapter} "
            f"| {_verdict(results[0], name) if results else 'not measured'} "
            f"| {_cheapest(overhead, name)} "
            f"| {f'{len(holding)} of {len(results)}' if results else 'none run'} |"
        )
    return "\n".join([*lines, "", "</div>"])


def names_fragment() -> str:
    """The names of all pages in one table."""
    rows: dict[tuple[str, str], list[str]] = {}
    for page in pages():
        for names in page.names():
            rows.setdefault(names, []).append(page.link())
    lines = [
        '<div class="filter" data-filter="Filter names" markdown>',
        "",
        "| Linen | nnx | Problem |",
        "| --- | --- | --- |",
        *(f"| {a} | {b} | {', '.join(links)} |" for (a, b), links in rows.items()),
    ]
    return "\n".join([*lines, "", "</div>"])


def checks_fragment() -> str:
    """The checks in their order."""
    lines = [
        f"{i}. **{name}**: {what}" for i, (name, what) in enumerate(CHECKS.items(), 1)
    ]
    return "\n".join(lines)


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
    modules = {"flax.linen", "flax.nnx", "jax", "jax.numpy", "optax"}
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
            if full and full not in modules:
                found[node.id] = full
    return {
        written: full
        for written, full in sorted(found.items())
        if not full.startswith(ANNOTATIONS)
    }


def reference_url(full: str) -> str:
    """The page of the official reference on which a name is.

    Raises:
        SiteError: if `REFERENCE` does not say.
    """
    if full.startswith("jax."):
        return f"{JAX_API}{full}.html"
    if full not in REFERENCE:
        raise SiteError(f"REFERENCE in linen2nnx/site.py does not say where {full} is")
    return REFERENCE[full]


def apis_in_text(page: Page) -> dict[str, str]:
    """What the text of a page names beside its code, likewise."""
    found = {}
    for code in re.findall(r"`([^`\n]+)`", page.text):
        for name in re.findall(r"\b(?:nnx?|jnp|jax|optax|flax)(?:\.\w+)+", code):
            first, _, rest = name.partition(".")
            found[name] = f"{ALIASES.get(first, first)}.{rest}"
    return dict(sorted(found.items()))


def reference_fragment(page: Page) -> str:
    """Links to the reference of everything that each side calls."""
    problem = page.problem
    linen, nnx = apis(problem, "linen"), apis(problem, "nnx")
    both = linen | nnx
    text = {k: v for k, v in apis_in_text(page).items() if v not in both.values()}
    lines = []
    for verb, names in (
        ("The Linen side calls", linen),
        ("The nnx side calls", nnx),
        ("The text also names", text),
    ):
        links = [f"[`{name}`]({reference_url(names[name])})" for name in names]
        if links:
            lines += [f"{verb} {', '.join(links)}.", ""]
    lines += [
        f"In a terminal: `linen2nnx show {problem.name}` prints both sides, "
        "with `--nnx` or `--linen` one of them as plain code.",
    ]
    return "\n".join(lines)


def write_fragments() -> None:
    """Check the pages against their sources and write what they include."""
    results, overhead = parity_results(), overhead_results()
    matrix = site_releases.load(DOCS / "results" / "releases.json")
    fragments = {
        "problems.md": problems_fragment(results, overhead),
        "names.md": names_fragment(),
        "checks.md": checks_fragment(),
        "runs.md": runs_fragment(results),
        "cost-runs.md": cost_runs_fragment(overhead),
        "matrix.md": site_releases.matrix_fragment(matrix),
        "release-changes.md": site_releases.changes_fragment(matrix),
        "release-bytecodes.md": site_releases.bytecodes_fragment(matrix),
        "flax-jax.md": site_releases.flax_jax_fragment(),
    }
    for page in pages():
        check(page)
        name = page.problem.name
        fragments |= {
            f"{name}/facts.md": facts_fragment(name, results, overhead),
            f"{name}/parity.md": parity_fragment(name, results),
            f"{name}/cost.md": "\n\n".join(
                part
                for part in (cost_fragment(name, overhead), bytecodes_fragment(name))
                if part
            ),
            f"{name}/releases.md": site_releases.strip_fragment(name, matrix),
            f"{name}/reference.md": reference_fragment(page),
        }
    shutil.rmtree(FRAGMENTS, ignore_errors=True)
    for name, text in fragments.items():
        path = FRAGMENTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


# Pages as Markdown, for coding assistants


def plain(text: str) -> str:
    """A page as plain Markdown: code and fragments included, no layout."""
    text = re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.S)
    lines = []
    for line in text.splitlines():
        if snippet := SNIPPET.match(line):
            indent, path, section = snippet.groups()
            included = _section(path, section) if section else _fragment(path)
            lines += [(indent + part).rstrip() for part in included.splitlines()]
        else:
            lines.append(line)
    out, in_tab = [], False
    for line in lines:
        if tab := re.match(r'===\+? "(.+)"$', line):
            in_tab = True
            line = f"**{tab[1]}**"
        elif in_tab and line.startswith("    "):
            line = line[4:]
        elif line and in_tab:
            in_tab = False
        if note := re.match(r'!!! \w+ "(.+)"$', line):
            in_tab = True
            line = f"**{note[1]}**"
        if re.match(r"</?div|\{ \.\w+ \}$", line):
            continue
        line = re.sub(r"<span class=.bar.*?</span>", "", line)
        line = re.sub(r"<br>", " ", re.sub(r"</?small>", "", line))
        line = re.sub(r"^(#+ .*?) \{ .*\}$", r"\1", line)
        out.append(line)
    return (
        re.sub(r"\n{3,}(?!\n*(?:def|class|@))", "\n\n", "\n".join(out)).strip() + "\n"
    )


def _fragment(path: str) -> str:
    return (FRAGMENTS / path).read_text()


def _section(path: str, section: str) -> str:
    """A named section; a remark's number stays, as a comment that says what it is."""
    source = (ROOT / path).read_text()
    start, end = (f"# --8<-- [{word}:{section}]\n" for word in ("start", "end"))
    code = source.partition(start)[2].partition(end)[0].strip("\n")
    return re.sub(r"# \((\d+)\)!", r"# remark \1", code)


def write_markdown(site: Path) -> None:
    """Write each page as Markdown beside its HTML, and `llms.txt` over all of them."""
    top = {
        "index": "what this is, and the table of all problems",
        "names": "what each Linen name becomes in nnx",
        "parity": "how parity is checked",
        "cost": "how cost is measured",
        "upgrade": "what to run when you upgrade flax",
    }
    texts = {name: plain((DOCS / f"{name}.md").read_text()) for name in top}
    texts |= {page.problem.name: plain(page.text) for page in pages()}
    index = [
        "# linen2nnx",
        "",
        "> Flax Linen code and the nnx code that replaces it, from files that run as",
        "> tests, with parity and cost measured. Every page is Markdown too.",
        "",
        "## Problems",
        "",
        *(
            f"- [{page.title}]({page.problem.name}.md): {page.problem.description}"
            for page in pages()
        ),
        "",
        "## About",
        "",
        *(f"- [{name}]({name}.md): {what}" for name, what in top.items()),
    ]
    for name, text in texts.items():
        (site / f"{name}.md").write_text(text)
    (site / "llms.txt").write_text("\n".join(index) + "\n")
    (site / "llms-full.txt").write_text("\n\n".join(texts.values()))


# The command


def build(builder: str = "mkdocs") -> None:
    """Write the fragments, build the pages strictly, and write them as Markdown.

    Raises:
        SiteError: if a page and its sources do not agree, or the builder fails.
    """
    write_fragments()
    command = [sys.executable, "-m", builder, "build", "--strict"]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SiteError(f"{builder} could not build the pages")
    write_markdown(SITE)


def serve() -> None:
    """Write the fragments and serve the pages, built again when one changes."""
    write_fragments()
    subprocess.run([sys.executable, "-m", "mkdocs", "serve"], cwd=ROOT)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pages.build", description="Build or serve the pages."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="build them into the folder site")
    builder.add_argument("--builder", choices=("mkdocs", "zensical"), default="mkdocs")
    commands.add_parser("serve", help="serve them on this machine")
    arguments = parser.parse_args()
    run: Callable[[], None] = (
        serve if arguments.command == "serve" else lambda: build(arguments.builder)
    )
    try:
        run()
    except SiteError as error:
        sys.exit(f"pages.build: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
