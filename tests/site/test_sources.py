"""What the pages say is what the files say that they are drawn from."""

import ast
import html.parser
import os
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest

from linen2nnx import parity as library
from linen2nnx.cost.paired import REFERENCE
from linen2nnx.suite import catalog, digests, records
from pages import blocks, cost, faults, inventories, parity, pitfalls, reference, tables
from pages import releases as releases_of
from pages.page import Page, read
from pages.results import STALE, holds_on, newest

from .conftest import ROOT, copy_sources, run_build

PROBLEMS = catalog.problems()
NOT_EXACT = {"training/adam_optimizer": "within 2e-07"}  # the page says why
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
    known = inventories.links()
    found = reference.linked(read(problem))
    assert found["The Linen side calls"]
    assert found["The nnx side calls"]
    for names in found.values():
        assert {known[full] for full in names.values()} <= links


def test_apis_are_the_dotted_names_of_what_is_imported():
    problem = catalog.find("pure_update")
    assert {name for name in reference.apis(problem, "nnx") if "." in name} == {
        "jax.random.key",
        "jax.random.normal",
        "jax.random.split",
        "jax.tree.flatten",
        "jax.tree.map",
        "jax.tree.unflatten",
        "jnp.bfloat16",
        "nnx.Module",
        "nnx.Optimizer",
        "nnx.Param",
        "nnx.merge",
        "nnx.split",
        "nnx.state",
        "nnx.update",
        "optax.sgd",
        "optimizer.update",
    }


@every_problem
def test_parity_figures_are_those_of_the_result(problem, parsed):
    rows = [" ".join(row.split()) for row in parsed[f"{problem.name}.html"].rows]
    outcomes = newest(read(problem).results.parity()).modes.values()
    checks = {check for outcome in outcomes for check in outcome.compared}
    explained = {**parity.CHECKS, **parity.STEP_CHECKS}
    assert set(library.CHECKS) - {"edit"} <= checks <= explained.keys()
    for check in checks:
        compared = [outcome.compared[check] for outcome in outcomes]
        leaves = " ".join(str(entry.leaves) for entry in compared)
        largest = max(float(entry.largest_difference) for entry in compared)
        assert f"{check} {explained[check]} {leaves} {largest:.3g}" in rows


@every_problem
def test_cost_figures_are_those_of_the_result(problem, parsed):
    rows = " ".join(" ".join(parsed[f"{problem.name}.html"].rows).split())
    found = read(problem).results.records
    costs = [record for record in found if isinstance(record, records.Cost)]
    for row in [row for record in costs for row in record.measurements]:
        if row.idiom != REFERENCE:
            ratio, low, high = (
                f"{number:.{2 if number < 10 else 1}f}"
                for number in (row.ratio, *row.interval)
            )
            assert f"{ratio} {low} to {high}" in rows


@every_problem
def test_bytecodes_are_those_of_the_result(problem, parsed):
    rows = [row.strip() for row in parsed[f"{problem.name}.html"].rows]
    record = newest(read(problem).results.bytecodes())
    for row in record.counts if record else []:
        if row.what == "jitted" and row.bytecodes is not None:
            count = f"{row.bytecodes:,}"
            assert any(r.startswith(row.idiom) and count in r.split() for r in rows)


def test_checks_are_those_of_the_library():
    assert tuple(parity.CHECKS) == library.CHECKS


# What is drawn of results that are good, missing, old or bad


ENVIRONMENT = dict.fromkeys(("flax", "jax", "jaxlib", "python"), "1") | {
    "device": "cpu: cpu",
    "cpu_model": "a processor",
}
PROBLEM = catalog.find("warm_start")


def made(kind, digest=None, **values):
    common = {"date": "2026-01-01T00:00:00+00:00", "command": "linen2nnx renew"}
    kinds = {records.Parity: "parity", records.Cost: "cost"}
    now = digests.digest_of(PROBLEM, kinds.get(kind, "bytecodes"))
    values = {"environment": ENVIRONMENT, **values}
    return kind(digest=now if digest is None else digest, **common, **values)


def measured(digest=None, plus=0.0):
    rows = [
        ("held pure dict", None, 1, 0.98),
        ("held pure dict", None, 16, 1.04),
        ("nnx.jit", "graph", 1, 9.0),
        ("nnx.jit", "graph", 16, 8.0),
        ("jax.numpy", None, 1, 0.5),
        ("jax.numpy", None, 16, 0.5),
    ]
    measurements = [
        records.Measurement(
            what="jitted",
            idiom=idiom,
            mode=mode,
            layers=layers,
            ratio=ratio + plus,
            interval=(ratio - 0.01, ratio + 0.01),
            rounds=9,
            control=1.0,
            clock="cpu time",
            seconds=1e-5,
            linen_seconds=1.5e-5,
        )
        for idiom, mode, layers, ratio in rows
    ]
    return made(records.Cost, digest, device="cpu", measurements=measurements)


def compared(flax, digest=None, failures=(), checks=("outputs",)):
    found = {check: records.Compared(3, 0.0) for check in checks}
    good = records.Outcome(tests=3, compared=found)
    other = records.Outcome(tests=3, compared=found, failures=list(failures))
    return made(
        records.Parity,
        digest,
        environment=ENVIRONMENT | {"flax": flax},
        modes={"graph": good, "tree": other},
    )


def page(*found):
    results = records.Results(problem=PROBLEM.name, records=list(found))
    return Page(PROBLEM, read(PROBLEM).text, results)


DIFFERS = records.Failure("parity_tests/x.py::test_y", "ParityError: outputs")


def test_cheapest_idiom_is_that_of_the_least_worst_depth_and_not_the_limit():
    text = cost.section(page(measured()))
    assert "**held pure dict** costs 1.04 times Linen's time at its worst, 16 l" in text
    assert "as cheap as Linen" in text
    assert "Older than the code" not in text
    assert "**GPU results are missing.**" in text
    assert "`linen2nnx bench --save`" in text
    assert "a processor" in text


def test_bars_are_in_proportion_and_within_their_cell():
    result = measured()
    for scale in (1, 0.01):  # Linen's mark is within the bar also where all are cheaper
        for row in result.measurements:
            row.ratio *= scale
        text = cost.section(page(result))
        longest = max(1, max(row.ratio for row in result.measurements))
        found = re.findall(r"--v:([\d.]+);--one:([\d.]+)", text)
        assert len(result.measurements) == len(found)
        for row, (length, linen) in zip(result.measurements, found):
            assert float(length) == pytest.approx(100 * row.ratio / longest, abs=0.1)
            assert float(linen) == pytest.approx(100 / longest, abs=0.1)
            assert float(linen) <= 100


def test_page_says_when_no_idiom_is_as_cheap_as_linen():
    text = cost.section(page(measured(plus=0.02)))
    assert "no nnx idiom is within 1.05 times" in text


def test_what_is_older_than_the_code_is_marked_with_what_renews_it():
    stale = page(compared("1.0", digest=""), measured(digest=""))
    for section in (parity.section, cost.section, releases_of.section):
        assert "Older than the code" in section(stale)
        assert "`linen2nnx renew` renews it" in section(stale)
    assert tables.facts(stale).count(STALE) == 3
    assert tables.problems([stale]).count(STALE) == 3
    assert STALE in releases_of.matrix([stale], [])
    fresh = page(compared("1.0"), measured())
    for section in (parity.section, cost.section, releases_of.section):
        assert "Older than the code" not in section(fresh)
    assert STALE not in tables.facts(fresh) + tables.problems([fresh])
    assert STALE not in releases_of.matrix([fresh], [])


def test_page_says_when_nothing_was_measured():
    assert "**CPU results are missing.**" in cost.section(page())
    assert "No parity result" in parity.section(page())
    assert "no release yet" in releases_of.section(page())
    assert tables.facts(page()).count("not measured") == 2
    assert "[none](#releases)" in tables.facts(page())


def test_a_problem_that_does_not_hold_is_not_called_exact():
    one = page(compared("1.0", failures=[DIFFERS]))
    assert "Verdict: **differs**" in parity.section(one)
    assert "[none](#releases)" in tables.facts(one)
    assert '<div class="releases bad"' in releases_of.section(one)
    assert '<div class="releases ok"' in releases_of.section(page(compared("1.0")))


@pytest.mark.parametrize(
    ("holding", "text"),
    [
        ("", "none"),
        ("0.12.10", "0.12.10"),
        ("0.12.8 0.12.10", "0.12.8, 0.12.10"),
        ("0.12.6 0.12.8 0.12.10", "0.12.6 to 0.12.10"),
        ("0.12.6 0.12.10", "0.12.6, 0.12.10"),
    ],
)
def test_releases_are_in_the_order_of_versions(holding, text):
    found = [
        compared(flax, failures=[] if flax in holding.split() else [DIFFERS])
        for flax in ("0.12.10", "0.12.8", "0.12.6", "0.12.0")
    ]
    assert holds_on(page(*found)) == text
    assert newest(found).environment["flax"] == "0.12.10"


def test_a_release_candidate_is_older_than_its_release():
    found = [compared("0.13.0"), compared("0.13.0rc1")]
    assert newest(found).environment["flax"] == "0.13.0"


def test_steps_are_explained_where_they_are_compared():
    steps = ("loss of a step", "optimizer state after a step")
    text = parity.section(page(compared("1.0", checks=steps)))
    assert "each, the loss and every leaf of the optimizer's state are compar" in text
    assert "Several steps" not in parity.section(page(compared("1.0")))


# Blocks and pitfalls


def test_a_remark_is_a_number_at_the_line_below_it():
    found = blocks.block(
        "a = 1\n# nnx: The first,\n# goes on.\nb = 2\n# other\n# nnx: Second.\nc = 3",
        "nnx",
    )
    assert found.marked == "a = 1\nb = 2  # (1)!\n# other\nc = 3  # (2)!"
    assert found.code == "a = 1\nb = 2\n# other\nc = 3"
    assert found.remarks == ["The first, goes on.", "Second."]
    assert found.faults == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("a = 1\n# nnx: End.", "has no code below it"),
        ("# nnx: Blank.\n\na = 1", "has no code below it"),
        ("# nnx: One.\n# nnx: Two.\na = 1", "'One.' has no code below it"),
        (f"# nnx: Long.\n{'a' * 65}", "is at a line of 65 columns; 64 fit"),
        ("# nnx: Full.\na = 1  # one", "is at a line that ends with a comment"),
        ("# Linen: Other.\na = 1", "is of Linen"),
    ],
)
def test_remarks_that_cannot_be_shown(code, fault):
    (found,) = blocks.block(code, "nnx").faults
    assert found.endswith(fault)


@every_problem
def test_pitfalls_are_those_of_the_tests(problem, parsed):
    names = re.findall(
        r"^def test_pitfall_(\w+)", problem.test_path().read_text(), re.M
    )
    found = pitfalls.pitfalls(problem)
    assert sorted(p.anchor for p in found) == sorted(n.replace("_", "-") for n in names)
    assert {p.anchor for p in found} <= parsed[f"{problem.name}.html"].anchors


# The order of the site, and all that is wrong with it


def test_nothing_is_wrong():
    assert faults.find() == []


NEW = {
    "linen_impl/layers/copied.py": "linen_impl/state/zero_by_path.py",
    "nnx_impl/layers/copied.py": "nnx_impl/state/zero_by_path.py",
    "parity_tests/layers/test_copied.py": "parity_tests/state/test_zero_by_path.py",
    "docs/layers/copied.md": "docs/state/zero_by_path.md",
}


def test_a_new_problem_is_four_files(tmp_path):
    """It is in navigation, index, name map and llms.txt, its chapter in its place."""
    copy_sources(tmp_path)
    for new, old in NEW.items():
        text = (
            (tmp_path / old).read_text().replace("state/zero_by_path", "layers/copied")
        )
        text = text.replace("Zero leaves by path", "A new problem")
        (tmp_path / new).parent.mkdir(exist_ok=True)
        (tmp_path / new).write_text(text)
    run = run_build(tmp_path)
    assert run.returncode == 0, run.stderr
    index = (tmp_path / "site/index.html").read_text()
    chapters = re.findall(r"ellipsis\">\s*(\w+)\s*</span>", index)
    places = [chapters.index(c) for c in ("Layers", "Definition", "Surgery", "State")]
    assert places == sorted(places)
    assert "A new problem" in index
    assert 'href="layers/copied.html"' in (tmp_path / "site/names.html").read_text()
    assert "layers/copied.md" in (tmp_path / "site/llms.txt").read_text()
    html = (tmp_path / "site/layers/copied.html").read_text()
    assert "CPU results are missing" in html
    assert "No parity result" in html


def replaced(file, old, new):
    def change(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change


def added(file, text):
    def change(folder):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.is_file() else "") + text)

    return change


def removed(file):
    return lambda folder: (folder / file).unlink()


WARM, ZERO = "surgery/warm_start", "surgery/zero_last_layer"
KERNEL, UPDATE = "surgery/replace_kernel", "state/pure_update"
MLP, SETUP = "definition/compact_mlp", "definition/setup_submodules"
ADAM, JIT, NORM = (
    "training/adam_optimizer",
    "training/jit_train_step",
    "modes/batchnorm_train_step",
)
BELOW = '''
def {name}():
    """Title

    Text.
    """
    with pytest.raises(ValueError, match="gone"):
        pass
'''
FAULTS = {  # what is done, and what is said
    "a region is not on the page": (
        replaced(f"docs/{WARM}.md", f'--8<-- "{WARM}/identity.md"', ""),
        [f"docs/{WARM}.md: does not include {WARM}/identity.md"],
    ),
    "a page includes a region that is not": (
        replaced(f"docs/{ZERO}.md", f"{ZERO}/ablation.md", f"{ZERO}/other.md"),
        [
            f"docs/{ZERO}.md: does not include {ZERO}/ablation.md",
            f"docs/{ZERO}.md: includes {ZERO}/other.md, which nothing gives",
        ],
    ),
    "a page includes a region twice": (
        added(f"docs/{KERNEL}.md", f'\n--8<-- "{KERNEL}/edit.md"\n'),
        [f"docs/{KERNEL}.md: includes {KERNEL}/edit.md twice"],
    ),
    "a page without evidence": (
        replaced(f"docs/{KERNEL}.md", f'--8<-- "{KERNEL}/evidence.md"', ""),
        [f"docs/{KERNEL}.md: does not include {KERNEL}/evidence.md"],
    ),
    "another page includes what is not": (
        replaced("docs/names.md", "names.md", "name.md"),
        ["docs/names.md: includes name.md, which nothing gives"],
    ),
    "there is no page": (
        removed("docs/state/zero_by_path.md"),
        ["docs/state/zero_by_path.md: is missing"],
    ),
    "a twin is missing": (
        removed("linen_impl/randomness/dropout_same_mask.py"),
        ["linen_impl/randomness/dropout_same_mask.py: is missing"],
    ),
    "a page has no title": (
        replaced(f"docs/{UPDATE}.md", "\n# ", "\n"),
        [f"docs/{UPDATE}.md: has no title, a line '# ...'"],
    ),
    "a page has no description": (
        replaced(f"docs/{ADAM}.md", "description:", "summary:"),
        [f"docs/{ADAM}.md: has no description in its front matter"],
    ),
    "a page has no table of names": (
        replaced(f"docs/{JIT}.md", "## Names", "## Other names"),
        [f"docs/{JIT}.md: has no table under the heading Names"],
    ),
    "a name is there twice": (
        replaced(f"docs/{MLP}.md", "| --- | --- |\n", "| --- | --- |\n| a | b |\n" * 2),
        [f"docs/{MLP}.md: names a and b twice"],
    ),
    "a test that a page names is gone": (
        added(f"docs/{MLP}.md", "\n`parity_tests/a/test_b.py::test_c`\n"),
        [f"docs/{MLP}.md: names parity_tests/a/test_b.py::test_c, which does not"],
    ),
    "two pages have one title": (
        replaced(
            f"docs/{SETUP}.md", "# Lists and dicts of submodules", "# Replace a kernel"
        ),
        ["docs: two pages are called 'Replace a kernel'"],
    ),
    "a pitfall has no text": (
        added(
            "parity_tests/surgery/test_warm_start.py", "\ndef test_pitfall_a(): ...\n"
        ),
        [
            "parity_tests/surgery/test_warm_start.py: test_pitfall_a has no docstring "
            "of a title, a blank line, a text"
        ],
    ),
    "a pitfall does not quote its error, and is there twice": (
        added(
            "parity_tests/surgery/test_zero_last_layer.py",
            2 * BELOW.format(name="test_pitfall_b"),
        ),
        2
        * [
            "parity_tests/surgery/test_zero_last_layer.py: the docstring of "
            "test_pitfall_b does not quote ValueError 'gone'"
        ]
        + ["parity_tests/surgery/test_zero_last_layer.py: test_pitfall_b is there"],
    ),
    "a remark has nothing below it": (
        replaced(f"nnx_impl/{WARM}.py", "# region: end", "# nnx: End.\n# region: end"),
        [f"nnx_impl/{WARM}.py: region residual: remark 'End.' has no code below it"],
    ),
    "a remark is at a long line": (
        replaced(
            f"linen_impl/{ZERO}.py",
            "# region: end",
            f"# Linen: Long.\n{'a' * 66} = 1\n# region: end",
        ),
        [
            f"linen_impl/{ZERO}.py: region ablation: remark 'Long.' is at a line of 70 "
            "columns; 64 fit"
        ],
    ),
    "a region is in Linen alone": (
        replaced(
            f"linen_impl/{KERNEL}.py", "# region: end", "# region: b\n# region: end"
        ),
        [f"linen_impl/{KERNEL}.py: region b is not in the nnx twin"],
    ),
    "a region is in nnx alone": (
        replaced(
            f"nnx_impl/{UPDATE}.py", "# region: end", "# region: b\n# region: end"
        ),
        [
            f"nnx_impl/{UPDATE}.py: region b is not in the Linen twin; one of nnx",
            f"docs/{UPDATE}.md: does not include {UPDATE}/b.md",
        ],
    ),
    "an API has no reference": (
        replaced(
            f"nnx_impl/{ADAM}.py", "# region: end", "nnx.NoSuchName()\n# region: end"
        ),
        [
            f"docs/{ADAM}.md: flax.nnx.NoSuchName has no link in "
            "pages/inventories.json; `python -m pages.inventories` renews that"
        ],
    ),
    "a region has no end": (
        replaced("nnx_impl/transforms/scan_over_layers.py", "# region: end", ""),
        [
            "nnx_impl/transforms/scan_over_layers.py: region training has no end, "
            "'# region: end'"
        ],
    ),
    "a file is no Python": (
        added("parity_tests/checkpoints/test_orbax_linen_to_nnx.py", "\nfor\n"),
        ["parity_tests/checkpoints/test_orbax_linen_to_nnx.py: line "],
    ),
    "results are no records": (
        lambda folder: (folder / f"docs/results/{NORM}.json").write_text("{}"),
        [f"docs/results/{NORM}.json: holds no linen2nnx results of version 1"],
    ),
    "results are of another problem": (
        replaced(f"docs/results/{JIT}.json", JIT, ADAM),
        [f"docs/results/{JIT}.json: is of {ADAM}"],
    ),
    "results are of no problem": (
        added("docs/results/state/nothing.json", "{}"),
        ["docs/results/state/nothing.json: is of no problem"],
    ),
    "a page is of no problem": (
        added("docs/state/nothing.md", "# Nothing\n"),
        ["docs/state/nothing.md: is the page of no problem"],
    ),
    "facts of releases are none": (
        lambda folder: (folder / "docs/results/releases.json").write_text("{}"),
        ["docs/results/releases.json: holds no linen2nnx results of version 1"],
    ),
    "the navigation has no place for problems": (
        replaced("mkdocs.yml", "- Problems:", "- All:"),
        ["mkdocs.yml: nav has no part Problems"],
    ),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a build says of a copy with all faults at once."""
    folder = copy_sources(tmp_path_factory.mktemp("faults"))
    for change, _ in FAULTS.values():
        change(folder)
    run = run_build(folder)
    assert run.returncode == 1
    assert not (folder / "site").exists()
    return run.stderr.splitlines()


@pytest.mark.parametrize("what", FAULTS)
def test_every_fault_is_said_in_one_run(what, said):
    for line in FAULTS[what][1]:
        assert sum(found.startswith(line) for found in said) == FAULTS[what][1].count(
            line
        )


def test_nothing_is_said_that_is_no_fault(said):
    lines = [line for _, lines in FAULTS.values() for line in lines]
    assert said[-1] == f"pages: {len(lines)} faults"
    assert [f for f in said[:-1] if not f.startswith(tuple(lines))] == []


def test_an_unknown_chapter_is_a_fault(tmp_path):
    added("nnx_impl/unknown/problem.py", "")(copy_sources(tmp_path))
    run = run_build(tmp_path)
    assert run.returncode == 1
    assert "nnx_impl/unknown is no chapter" in run.stderr


@pytest.mark.parametrize("target", ["name.md", "names.md#nowhere"])
def test_a_link_that_leads_nowhere_fails_the_build(target, tmp_path):
    replaced("docs/index.md", "(names.md)", f"({target})")(copy_sources(tmp_path))
    run = run_build(tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "pages: mkdocs could not build the pages"


# For coding assistants


@every_problem
def test_markdown_has_the_code_and_the_figures(problem, site):
    text = (site / f"{problem.name}.md").read_text()
    assert "--8<--" not in text
    assert not re.search(r"</?(div|span|small|br)\b", text)
    found = re.findall(r"``` python\n(.*?)\n```", text, re.S)
    clean = [re.sub(r" *# remark \d+$", "", block, flags=re.M) for block in found]
    for side in ("linen", "nnx"):
        assert set(blocks.pasted(read(problem), side)) <= set(clean)
    for block in found:
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
