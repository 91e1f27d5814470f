"""wheelsmith's HTML pages out of Jinja2 templates: one file each, nothing loaded from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from scripts.core.console import human_bytes, human_seconds
from scripts.core.paths import ROOT

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """Return a page made from a template: its path below scripts/, beside the package that uses it.

    Values are text and are escaped, whatever they hold; a name that the template needs and does not get is an error.
    page.html and tables.html of this package are the frame and the tables of the reports. Filters: `bytes`, `seconds`.
    """
    return environment().get_template(template).render(values)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return what reads and escapes the templates."""
    import jinja2  # noqa: PLC0415  (0.2 s that only who writes a page needs)

    loader = jinja2.FileSystemLoader(ROOT / "scripts")
    found = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    found.filters.update(bytes=human_bytes, seconds=human_seconds)
    return found
