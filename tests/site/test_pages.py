"""What a reader sees and does, in a real browser."""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from linen2nnx.suite import catalog
from pages import blocks
from pages.page import read

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md"))
PROBLEMS = catalog.problems()
WINDOWS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]

every_page = pytest.mark.parametrize("page", [p.as_posix() for p in PAGES])
every_window = pytest.mark.parametrize(("width", "scheme"), WINDOWS)
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
every_side = pytest.mark.parametrize("side", ["linen", "nnx"])


def visible(page, selector):
    return [element.is_visible() for element in page.query_selector_all(selector)]


@every_page
@every_window
def test_page(page, width, scheme, readers, address):
    """No sideways scroll, no error, no other host; two columns or working tabs."""
    reader = readers(width, scheme)
    window = reader.open(f"{address}/{page}.html")
    window.evaluate("document.fonts.ready.then(() => true)")
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    scheme_shown = window.evaluate("document.body.dataset.mdColorScheme")
    assert scheme_shown == {"light": "default", "dark": "slate"}[scheme]
    pairs = window.query_selector_all(".cmp")
    if width == 1440:
        assert all(visible(window, ".cmp .tabbed-block"))
        for pair in pairs:
            left, right = (
                block.bounding_box()
                for block in pair.query_selector_all(".tabbed-block")
            )
            assert left["y"] == right["y"]
            assert left["x"] + left["width"] < right["x"]
    elif pairs:
        assert visible(window, ".cmp .tabbed-block") == [False, True] * len(pairs)
        window.click(".cmp .tabbed-labels label:nth-child(1)")
        assert visible(window, ".cmp .tabbed-block") == [True, False] * len(pairs)
    assert reader.errors == []
    assert [url for url in reader.requests if not url.startswith(address)] == []


@every_page
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_accessible(page, width, scheme, readers, address):
    window = readers(width, scheme).open(f"{address}/{page}.html")
    faults = [
        f"{fault['impact']}: {fault['help']}: {fault['nodes'][0]['html']}"
        for fault in Axe().run(window).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert faults == []


@every_problem
@pytest.mark.parametrize("width", [1440, 390])
def test_answer_is_on_the_first_screen(problem, width, readers, address):
    """The nnx idiom, or where it is long its beginning, is in view at once."""
    window = readers(width).open(f"{address}/{problem.name}.html")
    edit = window.query_selector_all(".cmp .tabbed-block:nth-child(2) .highlight")[1]
    box = edit.bounding_box()
    shown = min(box["height"], {1440: 200, 390: 48}[width])
    assert box["y"] + shown < window.viewport_size["height"]


@every_problem
def test_lines_are_not_cut_on_a_laptop(problem, readers, address):
    window = readers(1440).open(f"{address}/{problem.name}.html")
    assert window.evaluate(
        "[...document.querySelectorAll('.cmp code')]"
        ".every(code => code.scrollWidth <= code.clientWidth)"
    )


@every_problem
@every_side
def test_copied_code_runs(problem, side, readers, address):
    """Each block as copied is a region of the tested file; in page order all run."""
    window = readers(1440).open(f"{address}/{problem.name}.html")
    child = {"linen": 1, "nnx": 2}[side]
    buttons = window.query_selector_all(
        f".cmp .tabbed-block:nth-child({child}) :is(.md-clipboard, .md-code__button)"
    )
    copied = []
    for button in buttons:
        window.evaluate("navigator.clipboard.writeText('')")
        button.click()
        window.wait_for_function("navigator.clipboard.readText()")
        copied.append(window.evaluate("navigator.clipboard.readText()").strip("\n"))
    assert set(copied) == set(blocks.pasted(read(problem), side))
    names = {}
    for code in copied:
        exec(compile(code, f"{problem.name}, {side}", "exec"), names)


def test_selected_code_is_clean(readers, address):
    """Code that is selected by hand and copied has no marks of remarks either."""
    window = readers(1440).open(f"{address}/surgery/replace_kernel.html")
    code = window.evaluate(
        "() => { getSelection().selectAllChildren(document.querySelectorAll("
        "'.cmp code')[1]); return getSelection().toString(); }"
    )
    page = read(catalog.find("replace_kernel"))
    assert code.strip() == blocks.pasted(page, "linen")[1]


@every_problem
def test_remarks_are_numbered_alike_and_light_up(problem, readers, address):
    window = readers(1440).open(f"{address}/{problem.name}.html")
    for pair in window.query_selector_all(".cmp"):
        left, right = (
            (
                [mark.get_attribute("data-number") for mark in marks],
                [item.get_attribute("data-remark") for item in items],
            )
            for block in pair.query_selector_all(".tabbed-block")
            for marks, items in [
                (
                    block.query_selector_all(".remark"),
                    block.query_selector_all("ol > li"),
                )
            ]
        )
        assert left[0] == left[1]
        assert right[0] == right[1]
        for mark in pair.query_selector_all(".remark"):
            number = mark.get_attribute("data-number")
            sides = sum(number in side[0] for side in (left, right))
            mark.hover()
            wait_for_lit(window, 2 * sides)  # a line and a remark on each
            window.mouse.move(0, 0)
            wait_for_lit(window, 0)
            mark.focus()
            wait_for_lit(window, 2 * sides)
            mark.evaluate("mark => mark.blur()")
            wait_for_lit(window, 0)


def wait_for_lit(window, number):
    window.wait_for_function(
        f"document.querySelectorAll('.lit').length === {number}", timeout=2000
    )


def shown_rows(window):
    return [
        row.query_selector("td").inner_text().splitlines()[0]
        for row in window.query_selector_all(".filter tbody tr")
        if row.is_visible()
    ]


@pytest.mark.parametrize("width", [1440, 390])
def test_problems_can_be_filtered(width, readers, address):
    window = readers(width).open(f"{address}/index.html")
    everything = shown_rows(window)
    assert len(everything) == len(PROBLEMS)
    window.fill(".filter input", "kernel layer")
    assert shown_rows(window) == ["Replace a kernel", "Zero the last layer"]
    window.fill(".filter input", "nothing of that name")
    assert shown_rows(window) == []
    assert "No row matches" in window.inner_text(".filter-status")
    window.fill(".filter input", "")
    window.click(".filter-bar button:text('state')")
    chapter = [problem for problem in PROBLEMS if problem.chapter == "state"]
    assert len(shown_rows(window)) == len(chapter)
    window.click(".filter-bar button:text('state')")
    assert shown_rows(window) == everything


def in_order(text):
    """A key that sorts numbers in a text as numbers."""
    parts = re.split(r"(\d+)", text.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


@pytest.mark.parametrize("column", range(5))
def test_problems_can_be_sorted(column, readers, address):
    window = readers(1440).open(f"{address}/index.html")

    def cells():
        selector = f".filter tbody tr td:nth-child({column + 1})"
        return [cell.inner_text() for cell in window.query_selector_all(selector)]

    head = window.query_selector_all(".filter thead button")[column]
    head.click()
    ascending = cells()
    head.click()
    assert ascending == sorted(ascending, key=in_order)
    assert cells() == sorted(ascending, key=in_order, reverse=True)


def test_name_map_finds_a_linen_name(readers, address):
    window = readers(390).open(f"{address}/names.html")
    window.fill(".filter input", "nn.compact")
    assert set(shown_rows(window)) == {"@nn.compact"}
    window.click(".filter tbody tr:visible a")
    assert window.inner_text("h1").startswith("Automatic names and attributes")


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("FrozenDict", "training/jit_train_step"),
        ("nn.Dense", "definition/compact_mlp"),
        ("apply_updates", "state/pure_update"),
        ("nnx.List", "definition/setup_submodules"),
        ("nnx.merge", "state/zero_by_path"),
        ("merge", "state/zero_by_path"),
        ("set_value", "surgery/replace_kernel"),
        ("key<fry>", "state/pure_update"),
        ("tree_map_with_path", "state/zero_by_path"),
        ("Duplicate Param", "surgery/warm_start"),
    ],
)
def test_search(query, name, from_file, readers, site, address):
    reader = readers(1440)
    start = site.as_uri() if from_file else address
    window = reader.open(f"{start}/index.html")
    window.click(".md-search__input")
    window.fill(".md-search__input", query)
    window.keyboard.press("End")  # the search listens to keys
    window.wait_for_selector(".md-search-result__item a")
    found = [
        link.get_attribute("href")
        for link in window.query_selector_all(".md-search-result__item a")
    ]
    first = next(link for link in found if "/names.html" not in link)
    assert f"{name}.html" in first
    assert reader.errors == []
    assert [url for url in reader.requests if not url.startswith(start)] == []


def printed_titles(window):
    return window.evaluate(
        "[...document.querySelectorAll('.cmp .tabbed-block')].slice(0, 2)"
        ".map(block => getComputedStyle(block, '::before').content)"
    )


def test_print_shows_both_sides(readers, address):
    window = readers(390).open(f"{address}/surgery/replace_kernel.html")
    window.emulate_media(media="print")
    try:
        assert all(visible(window, ".cmp .tabbed-block"))
        assert printed_titles(window) == ['"Linen"', '"nnx"']
        assert not any(visible(window, ".md-header"))
    finally:
        window.emulate_media(media="screen")


def test_keyboard_reaches_tabs_and_table(readers, address):
    window = readers(390).open(f"{address}/surgery/replace_kernel.html")
    window.focus(".cmp input:nth-of-type(2)")
    window.keyboard.press("ArrowLeft")
    assert visible(window, ".cmp .tabbed-block")[:2] == [True, False]
    window = readers(1440).open(f"{address}/index.html")
    window.focus(".filter thead button")
    window.keyboard.press("Enter")
    assert window.get_attribute(".filter thead th", "aria-sort") == "ascending"


def test_zensical_pages_look_alike(readers, zensical_site, serve):
    reader = readers(1440)
    start = serve(zensical_site)
    window = reader.open(f"{start}/surgery/replace_kernel.html")
    window.wait_for_load_state("networkidle")
    assert all(visible(window, ".cmp .tabbed-block"))
    problem = catalog.find("replace_kernel")
    codes = [(r.code, side) for side in blocks.TITLES for r in problem.regions(side)]
    remarks = [remark for code in codes for remark in blocks.block(*code).remarks]
    assert len(window.query_selector_all(".remark")) == len(remarks) > 0
    assert reader.errors == []
    assert [url for url in reader.requests if not url.startswith(start)] == []
