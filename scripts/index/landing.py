"""The page people read: which wheel for which GPU and driver, with the lines to copy. Works from any web server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.cuda.archs import TABLE
from scripts.cuda.drivers import RELEASES
from scripts.index.entry import Entry

TEMPLATE = Path(__file__).with_name("landing.html")
_OLDEST_CUDA = (11, 8)  # no torch that vLLM runs on has code for older drivers


def landing_page(entries: Sequence[Entry]) -> bytes:
    """Return the page; the script in it picks, and without script there is a table of all wheels."""
    data = {"gpus": _gpus(), "archs": _archs(), "drivers": _drivers(), "wheels": [_wheel(entry) for entry in entries]}
    # "<" must not end the script element that holds the data.
    text = json.dumps(data, sort_keys=True).replace("<", "\\u003c")
    rows = "\n".join(_row(number, entry) for number, entry in reversed(list(enumerate(entries))))
    return TEMPLATE.read_text().replace("@ROWS@", rows).replace("@DATA@", text).encode()


def _gpus() -> list[dict[str, str]]:
    rows = [{"name": gpu, "arch": row.number} for row in TABLE for gpu in row.gpus]
    return sorted(rows, key=lambda row: row["name"].lower())


def _archs() -> list[dict[str, str]]:
    return [{"arch": row.number, "family": row.family} for row in TABLE]


def _drivers() -> list[dict[str, str]]:
    found = [release for release in RELEASES if tuple(map(int, release.cuda.split("."))) >= _OLDEST_CUDA]
    return [{"cuda": release.cuda, "driver": release.driver} for release in reversed(found)]


def _wheel(entry: Entry) -> dict[str, Any]:
    return {
        "file": entry.filename,
        "name": entry.name,
        "version": entry.version,
        "url": quote(entry.key),
        "index": quote(entry.roots[-1]),
        "cuda": entry.cuda,
        "size": entry.size,
        "sha256": entry.sha256,
        "torch": entry.torch,
        "python": entry.requires_python,
        "notice": entry.notice,
        "uploaded": entry.uploaded,
        "yanked": entry.yanked,
        "origin": entry.origin.index if entry.origin else "",
        "extras": list(entry.extras),
        "serves": None if entry.serves is None else {item.arch: _serves(item) for item in entry.serves},
    }


def _serves(item: Any) -> dict[str, Any]:
    values: dict[str, Any] = item.model_dump(mode="json")
    values.pop("arch")
    return values


def _row(number: int, entry: Entry) -> str:
    lowest = sorted(
        {item.cuda for item in entry.serves or () if item.cuda}, key=lambda text: [*map(int, text.split("."))]
    )
    extras = " ".join(f'<a href="{quote(entry.key + suffix)}">{escape(suffix[1:])}</a>' for suffix in entry.extras)
    cells = (
        ("", f'<a href="{quote(entry.key)}">{escape(entry.filename)}</a>{_marks(entry)}<br><small>{extras}</small>'),
        ("version", escape(entry.version)),
        ("archs with code", _served_archs(entry)),
        ("driver from", escape(f"CUDA {lowest[0]}" if lowest else "-")),
        ("torch", escape(entry.torch.removeprefix("==") or "-")),
        ("published", escape(entry.uploaded[:16].replace("T", " "))),
        ("size", f"{entry.size / 1e6:.1f} MB"),
        ("sha256", f"<code>{entry.sha256[:16]}</code>"),
    )
    label = [f' data-label="{name}"' if name else "" for name, _ in cells]
    text = "".join(f"<td{name}>{cell}</td>" for name, (_, cell) in zip(label, cells, strict=True))
    kind = ' class="yanked"' if entry.yanked is not None else ""
    return f'<tr data-wheel="{number}"{kind}>{text}</tr>'


def _marks(entry: Entry) -> str:
    if entry.yanked is None:
        return ""
    return f'<br><span class="warn">yanked{escape(": " + entry.yanked if entry.yanked else "")}</span>'


def _served_archs(entry: Entry) -> str:
    if entry.serves is None:
        return '<span class="warn">not audited</span>'
    return escape(", ".join(item.arch for item in entry.serves if item.native + item.compatible)) or "no GPU code"
