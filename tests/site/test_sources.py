"""What the pages say is what the files say that they are drawn from."""

import ast
import html.parser
import json
import os
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest

from linen2nnx import parity
from linen2nnx.suite import bench, catalog
from linen2nnx.suite.results import Outcome, Results
from pages import build as pages_of

from .conftest import ROOT, copy_sources, run_build

PROBLEMS = catalog.problems()
NOT_EXACT = {"training/adam_optimizer": "within 6e-08"}  # the page says why
COMMAND = re.compile(r"(?:`|^)linen2nnx (\w+)((?: (?!-)\S+)?(?: --?\w+)*)", re.M)
REFERENCES = {
    "flax.readthedocs.io",
    "flax-linen.readthedocs.io",
    "docs.jax.dev",
    "docs.python.org",
    "optax.readthedocs.io",
    "orbax.readthedocs.io",
}

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


class Parser(html.parser.HTMLParser):
    """The links, the anchors and the text of each table row of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.rows, self.in_row = [], set(), [], False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values["id"]} if values.get("id") else set()
        self.links += [values[k] for k in ("href", "src") if values.get(k)]
        if tag == "tr":
            self.rows.append("")
            self.in_row = True

    def handle_endtag(self, tag):
        if tag == "tr":
            self.in_row = False

    def handle_data(self, data):
        if self.in_row:
            self.rows[-1] += f" {data.strip()}" if data.strip() else ""


@pytest.fixture(scope="session")
def parsed(site):
    return {
        path.relative_to(site).as_posix(): Parser(path)
        for path in site.rglob("*.html")
        if path.name != "404.html"  # its links start at the root of a host
    }


def test_internal_links_and_anchors_resolve(site, parsed):
    broken = []
    for name, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = os.path.normpath(
                os.path.join(os.path.dirname(name), unquote(parts.path))
            )
            target = path if parts.path else name
            if (
                target == "."
                or not (site / target).is_file()
                or (
                    parts.fragment
                    and not parts.fragment.startswith("__")
                    and parts.fragment not in parsed[target].anchors
                )
            ):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_external_links_go_to_references(parsed):
    for name, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.netloc:
                assert parts.scheme == "https"
                assert parts.netloc in REFERENCES | {"squidfunk.github.io"}, name


@every_problem
def test_every_api_is_linked_to_its_reference(problem, parsed):
    links = set(parsed[f"{problem.name}.html"].links)
    for side in ("linen", "nnx"):
        found = pages_of.apis(problem, side)
        assert found
        assert {pages_of.reference_url(full) for full in found.values()} <= links
    named = pages_of.apis_in_text(pages_of.Page(problem))
    assert {pages_of.reference_url(full) for full in named.values()} <= links


def test_apis_are_the_dotted_names_of_what_is_imported():
    problem = catalog.find("pure_update")
    assert set(pages_of.apis(problem, "nnx")) == {
        "jax.random.key",
        "jax.random.normal",
        "jax.random.split",
        "jax.tree.flatten",
        "jax.tree.map",
        "jax.tree.unflatten",
        "jnp.bfloat16",
        "nnx.Linear",
        "nnx.Module",
        "nnx.Optimizer",
        "nnx.Param",
        "nnx.Rngs",
        "nnx.merge",
        "nnx.split",
        "nnx.state",
        "nnx.update",
        "optax.sgd",
        "optimizer.update",
    }


def newest_parity_result():
    def version(path):
        return [int(part) for part in re.findall(r"\d+", path.stem)]

    return json.loads(
        max(ROOT.glob("docs/results/parity-*.json"), key=version).read_text()
    )


@every_problem
def test_parity_figures_are_those_of_the_result(problem, parsed):
    rows = [" ".join(row.split()) for row in parsed[f"{problem.name}.html"].rows]
    outcomes = newest_parity_result()["problems"][problem.name]
    checks = {check for outcome in outcomes.values() for check in outcome["compared"]}
    explained = {**pages_of.CHECKS, **pages_of.STEP_CHECKS}
    assert set(parity.CHECKS) - {"edit"} <= checks <= explained.keys()
    for check in checks:
        compared = [outcome["compared"][check] for outcome in outcomes.values()]
        leaves = " ".join(str(entry["leaves"]) for entry in compared)
        largest = max(float(entry["largest_difference"]) for entry in compared)
        assert f"{check} {explained[check]} {leaves} {largest:.3g}" in rows


def committed_overhead():
    files = ROOT.glob("docs/results/overhead-*.json")
    return [(file.stem, json.loads(file.read_text())) for file in files]


@every_problem
def test_cost_figures_are_those_of_the_result(problem, parsed):
    rows = " ".join(" ".join(parsed[f"{problem.name}.html"].rows).split())
    for _, result in committed_overhead():
        for row in result["measurements"]:
            if row["problem"] == problem.name and row["idiom"] != bench.REFERENCE:
                ratio, low, high = (
                    f"{number:.{2 if number < 10 else 1}f}"
                    for number in (row["ratio"], *row["interval"])
                )
                assert f"{ratio} {low} to {high}" in rows


@every_problem
def test_bytecodes_are_those_of_the_result(problem, parsed):
    rows = [row.strip() for row in parsed[f"{problem.name}.html"].rows]
    file = ROOT / "docs/results/bytecodes.json"
    recorded = json.loads(file.read_text())["recorded"] if file.is_file() else []
    for row in recorded[-1]["counts"] if recorded else []:
        if row["problem"] == problem.name and row["what"] == "jitted":
            count = f"{row['bytecodes']:,}"
            idiom = row["idiom"]
            assert any(r.startswith(idiom) and count in r.split() for r in rows)


def test_checks_are_those_of_the_library():
    assert tuple(pages_of.CHECKS) == parity.CHECKS


# Results that are missing, old or bad


def measured(**changes):
    rows = [
        ("held pure dict", None, 1, 0.98),
        ("held pure dict", None, 16, 1.04),
        ("nnx.jit", "graph", 1, 9.0),
        ("nnx.jit", "graph", 16, 8.0),
        ("jax.numpy", None, 1, 0.5),
        ("jax.numpy", None, 16, 0.5),
    ]
    name = "surgery/warm_start"
    content = {
        "sources": bench.sha256_of_sources([catalog.find(name)]),
        "command": "linen2nnx bench --save",
        "date": "2026-01-01T00:00:00+00:00",
        "environment": dict.fromkeys(("flax", "jax", "jaxlib", "python"), "1")
        | {"device": "cpu: cpu", "cpu_model": "a processor"},
        "measurements": [
            {
                "problem": name,
                "what": "jitted",
                "idiom": idiom,
                "mode": mode,
                "layers": layers,
                "ratio": ratio,
                "interval": [ratio - 0.01, ratio + 0.01],
                "control": 1.0,
                "linen_seconds": 1.5e-5,
            }
            for idiom, mode, layers, ratio in rows
        ],
    }
    return name, {**content, **changes}


def test_cheapest_idiom_is_that_of_the_least_worst_depth_and_not_the_limit():
    name, result = measured()
    text = pages_of.cost_fragment(name, {"cpu": result})
    assert "**held pure dict** costs 1.04 times Linen's time at its worst, 16 l" in text
    assert "as cheap as Linen" in text
    assert "Older than the code" not in text
    assert "**GPU results are missing.**" in text
    assert "`linen2nnx bench --save`" in text
    assert "a processor" in text


def test_bars_are_in_proportion_and_within_their_cell():
    name, result = measured()
    for scale in (1, 0.01):  # Linen's mark is within the bar also where all are cheaper
        for row in result["measurements"]:
            row["ratio"] *= scale
        text = pages_of.cost_fragment(name, {"cpu": result})
        longest = max(1, max(row["ratio"] for row in result["measurements"]))
        found = re.findall(r"--v:([\d.]+);--one:([\d.]+)", text)
        by_idiom = [
            (row["ratio"], bar) for row, bar in zip(result["measurements"], found)
        ]
        assert len(by_idiom) == len(result["measurements"]) == len(found)
        for ratio, (length, linen) in by_idiom:
            assert float(length) == pytest.approx(100 * ratio / longest, abs=0.1)
            assert float(linen) == pytest.approx(100 / longest, abs=0.1)
            assert float(linen) <= 100


def test_page_says_when_no_idiom_is_as_cheap_as_linen():
    name, result = measured()
    for row in result["measurements"]:
        row["ratio"] += 0.02
    text = pages_of.cost_fragment(name, {"cpu": result})
    assert "no nnx idiom is within 1.05 times" in text


def test_page_says_when_a_cost_is_older_than_the_code():
    name, result = measured(sources={})
    assert "Older than the code" in pages_of.cost_fragment(name, {"cpu": result})


def test_page_says_when_nothing_was_measured():
    text = pages_of.cost_fragment("surgery/warm_start", {})
    assert "**CPU results are missing.**" in text
    _, result = measured()
    text = pages_of.cost_fragment("state/pure_update", {"cpu": result})
    assert "**No result of this problem on CPU.**" in text
    assert "No parity result" in pages_of.parity_fragment("surgery/warm_start", [])


def test_a_problem_that_does_not_hold_is_not_called_exact():
    environment = dict.fromkeys(("flax", "jax", "jaxlib", "python"), "1")
    failure = {"test": "parity_tests/x.py::test_y", "message": "ParityError: outputs"}
    outcomes = {"graph": Outcome(tests=3), "tree": Outcome(3, failures=[failure])}
    results = [
        Results(
            "c", "2026-01-01", environment | {"device": "cpu: cpu"}, {"s/x": outcomes}
        )
    ]
    assert "Verdict: **differs**" in pages_of.parity_fragment("s/x", results)
    assert "[none](#releases)" in pages_of.facts_fragment("s/x", results, {})


# The build fails when a page and its sources do not agree


PAGE = "docs/surgery/warm_start.md"
TESTS = "parity_tests/surgery/test_warm_start.py"
BREAKS = {
    "a test that a page names is gone": (
        (TESTS, "def test_pitfall_identity_layers", "def test_pitfall_other_layers"),
        "names parity_tests/surgery/test_warm_start.py::test_pitfall_identity_layers",
    ),
    "a pitfall is not on the page": (
        (TESTS, "def test_the_", "def test_pitfall_the_"),
        "",
    ),
    "a pitfall does not quote its error": (
        (PAGE, "ValueError: Duplicate Param", "ValueError: Duplicated"),
        "does not quote the ValueError 'Duplicate Param'",
    ),
    "a section is not on the page": (
        (PAGE, "nnx_impl/surgery/warm_start.py:identity", "x"),
        "does not include",
    ),
    "a section that a page includes is gone": (
        ("nnx_impl/surgery/warm_start.py", ":identity]", ":other]"),
        "does not include",
    ),
    "a link leads nowhere": (
        ("docs/index.md", "(names.md)", "(name.md)"),
        "mkdocs could not build the pages",
    ),
    "an anchor leads nowhere": (
        ("docs/index.md", "(names.md)", "(names.md#nowhere)"),
        "mkdocs could not build the pages",
    ),
    "an API has no reference": (
        ("nnx_impl/surgery/warm_start.py", "nnx.Linear(", "nnx.LinearGeneral("),
        "does not say where flax.nnx.LinearGeneral is",
    ),
    "a result is of another release": (
        ("docs/results/parity-0.12.8.json", '"flax": "0.12.8"', '"flax": "0.12.7"'),
        "was run on flax 0.12.7",
    ),
    "a result is of another format": (
        ("docs/results/parity-0.12.8.json", "linen2nnx check", "something"),
        "is no linen2nnx check result",
    ),
    "a page has no table of names": (
        (PAGE, "## Names", "## Other names"),
        "has no table under the heading Names",
    ),
}
BREAKS["a pitfall is not on the page"] = (
    (
        TESTS,
        "def test_residual_model_before_it_is_grown",
        "def test_pitfall_residual_model",
    ),
    "does not state the pitfall",
)


@pytest.mark.parametrize("what", BREAKS)
def test_build_fails_when(what, tmp_path):
    (file, old, new), message = BREAKS[what]
    path = copy_sources(tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    run = run_build(tmp_path)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("pages.build: ")
    assert message in last


def test_build_fails_without_a_page(tmp_path):
    (copy_sources(tmp_path) / PAGE).unlink()
    run = run_build(tmp_path)
    assert run.returncode == 1
    assert "surgery/warm_start has no page" in run.stderr


# For coding assistants


@every_problem
def test_markdown_has_the_code_and_the_figures(problem, site):
    text = (site / f"{problem.name}.md").read_text()
    assert "--8<--" not in text
    assert not re.search(r"</?(div|span|small|br)\b", text)
    blocks = re.findall(r"``` python\n(.*?)\n```", text, re.S)
    clean = [re.sub(r" *# remark \d+$", "", block, flags=re.M) for block in blocks]
    for side in ("linen", "nnx"):
        for section in problem.sections(side).values():
            assert section in clean
    for block in blocks:
        ast.parse(block)
    verdict = NOT_EXACT.get(problem.name, "exact")
    assert f"Verdict: **{verdict}**" in text
    for test in re.findall(
        r"^def (test_pitfall_\w+)", problem.test_path().read_text(), re.M
    ):
        assert test in text


def test_llms_txt_lists_every_page(site):
    text = (site / "llms.txt").read_text()
    targets = re.findall(r"\]\((\S+)\)", text)
    assert {problem.name + ".md" for problem in PROBLEMS} < set(targets)
    for target in targets:
        assert (site / target).is_file()
    assert (site / "llms-full.txt").stat().st_size > 10_000


def test_commands_on_the_pages_exist(site):
    """Each `linen2nnx ...` in the pages is a command, with options that it has."""
    commands = set()
    main = [sys.executable, "-c", "from linen2nnx.cli import main; main()"]
    for path in site.rglob("*.md"):
        commands |= set(COMMAND.findall(path.read_text()))
    assert {"check", "show"} <= {command for command, _ in commands}
    for command in {command for command, _ in commands}:
        help_text = subprocess.run(
            [*main, command, "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert help_text.returncode == 0, command
        for other, options in commands:
            for option in options.split():
                if other == command and option.startswith("-"):
                    assert option in help_text.stdout
