"""The templates of the fragments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # Markdown, in which a page may hold HTML
)


def _series(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


_ENVIRONMENT.filters["series"] = _series


def draw(template: str, **values: Any) -> str:
    """The text of a template, such as `facts`, with these values."""
    return _ENVIRONMENT.get_template(f"{template}.md.jinja").render(values).strip()
