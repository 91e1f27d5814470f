"""The frame of wheelsmith's HTML pages: one file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING

from scripts.core.paths import ROOT

if TYPE_CHECKING:
    from jinja2 import Environment

_STYLE = """\
:root{color-scheme:light dark;--ok:#1a7f37;--jit:#9a6700;--no:#cf222e;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
th,td{border:1px solid var(--line);padding:.35rem .6rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{display:flex;height:.6rem;min-width:8rem;background:var(--line)}
.native{background:#1a7f37}.compatible{background:#57ab5a}.jit{background:#d4a72c}
.ok{color:var(--ok)}.error{color:var(--no)}.warning{color:var(--jit)}
code{font-size:.9em}details{margin:.3rem 0}
svg{width:100%;height:auto;font:11px system-ui,sans-serif}svg text{fill:currentColor}
.grid{stroke:var(--line)}.memory{fill:#0969da55;stroke:#0969da}
.preprocess{fill:#8250df;background:#8250df}.cudafe{fill:#bf3989;background:#bf3989}
.cicc{fill:#0969da;background:#0969da}.ptxas{fill:#1b7c83;background:#1b7c83}
.host{fill:#bc4c00;background:#bc4c00}.fatbinary{fill:#7d8590;background:#7d8590}
.other{fill:#57606a;background:#57606a}.hit{fill:#2da44e;background:#2da44e}.failed{fill:#cf222e;background:#cf222e}
.key i{display:inline-block;width:.8rem;height:.8rem;margin:0 .3rem 0 .9rem}"""


def render(template: str, **values: object) -> str:
    """Return a page made from a template: its path below scripts/, beside the package that uses it.

    Values are text and are escaped, whatever they hold; a name that the template needs and does not get is an error.
    """
    return _environment().get_template(template).render(values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    import jinja2  # noqa: PLC0415  (0.2 s that only who writes a page needs)

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "scripts"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def page(title: str, body: str) -> str:
    """Return a page; `title` is text, `body` is HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def table(columns: list[str], rows: list[list[str]], *, name: str) -> str:
    """Return a table with the id `name`; cells are HTML, those of figures carry `class=n` by starting with a digit."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def facts(rows: list[list[str]], *, name: str) -> str:
    """Return a table of names and values with the id `name`; values are HTML."""
    body = "".join(f"<tr><th>{escape(what)}</th><td>{value}</td></tr>" for what, value in rows)
    return f'<table id="{name}"><tbody>{body}</tbody></table>'


def _cell(text: str) -> str:
    return f'<td class="n">{text}</td>' if text[:1].isdigit() else f"<td>{text}</td>"
