"""Pages as plain Markdown, for coding assistants, and `llms.txt` over all of them."""

import re
from collections.abc import Sequence
from pathlib import Path

from pages import DOCS, FRAGMENTS, ROOT
from pages.page import Page, description
from pages.templates import draw

_SNIPPET = re.compile(r'^( *)--8<-- "([^"]+)"$')


def plain(text: str) -> str:
    """A page as plain Markdown: code and fragments included, no layout."""
    text = re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.S)
    lines: list[str] = []
    for line in text.splitlines():
        if snippet := _SNIPPET.match(line):
            indent, path = snippet.groups()
            lines += [(indent + part).rstrip() for part in _included(path).splitlines()]
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
        line = re.sub(r"<br>", " ", re.sub(r"</?small[^>]*>", "", line))
        line = re.sub(r"^(#+ .*?) \{ .*\}$", r"\1", line)
        line = re.sub(r"# \((\d+)\)!$", r"# remark \1", line)
        out.append(line)
    return (
        re.sub(r"\n{3,}(?!\n*(?:def|class|@))", "\n\n", "\n".join(out)).strip() + "\n"
    )


def _included(path: str) -> str:
    fragment = FRAGMENTS / path
    return (fragment if fragment.is_file() else ROOT / path).read_text()


def write(pages: Sequence[Page], site: Path) -> None:
    """Write each page as Markdown beside its HTML, and `llms.txt` over all of them."""
    of_problems = {page.path for page in pages}
    others = {
        path.relative_to(DOCS).as_posix(): path.read_text()
        for path in sorted(DOCS.rglob("*.md"))
        if path not in of_problems
    }
    texts = others | {f"{page.name}.md": page.text for page in pages}
    for name, text in texts.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(plain(text))
    about = {name: description(text) for name, text in others.items()}
    (site / "llms.txt").write_text(draw("llms", pages=pages, about=about) + "\n")
    whole = "\n\n".join(plain(text) for text in texts.values())
    (site / "llms-full.txt").write_text(whole)
