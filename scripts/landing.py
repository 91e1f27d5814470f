"""The page people read: which wheel for which GPU and driver, with the lines to copy. Works from any web server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.archs import TABLE
from scripts.drivers import RELEASES
from scripts.index_entry import Entry

TEMPLATE = Path(__file__).with_name("landing.html")
_OLDEST_CUDA = (11, 8)  # no torch that vLLM runs on has code for older drivers


def landing_page(entries: Sequence[Entry]) -> bytes:
    """Return the page; the script in it picks, and without script there is a table of all wheels."""
    data = {"gpus": _gpus(), "drivers": _drivers(), "wheels": [_wheel(entry) for entry in entries]}
    # "<" must not end the script element that holds the data.
    text = json.dumps(data, sort_keys=True).replace("<", "\\u003c")
    rows = "\n".join(_row(entry) for entry in reversed(entries))
    return TEMPLATE.read_text().replace("@ROWS@", rows).replace("@DATA@", text).encode()


def _gpus() -> list[dict[str, str]]:
    rows = [{"name": gpu, "arch": row.number} for row in TABLE for gpu in row.gpus]
    return sorted(rows, key=lambda row: row["name"].lower())


def _drivers() -> list[dict[str, str]]:
    found = [release for release in RELEASES if tuple(map(int, release.cuda.split("."))) >= _OLDEST_CUDA]
    return [{"cuda": release.cuda, "driver": release.driver} for release in reversed(found)]


def _wheel(entry: Entry) -> dict[str, Any]:
    return {
        "file": entry.filename,
        "name": entry.name,
        "version": entry.version,
        "url": quote(entry.key),
        "index": quote(entry.roots[-1] if entry.label else entry.roots[1]),
        "cuda": entry.cuda,
        "size": entry.size,
        "sha256": entry.sha256,
        "torch": entry.torch,
        "python": entry.requires_python,
        "notice": entry.notice,
        "extras": list(entry.extras),
        "serves": None if entry.serves is None else {item.arch: _serves(item) for item in entry.serves},
    }


def _serves(item: Any) -> dict[str, Any]:
    values: dict[str, Any] = item.model_dump(mode="json")
    values.pop("arch")
    return values


def _row(entry: Entry) -> str:
    if entry.serves is None:
        archs = "not audited"
    else:
        archs = ", ".join(item.arch for item in entry.serves if item.native + item.compatible) or "no GPU code"
    lowest = sorted(
        {item.cuda for item in entry.serves or () if item.cuda}, key=lambda text: [*map(int, text.split("."))]
    )
    cells = (
        f'<a href="{quote(entry.key)}">{escape(entry.filename)}</a>',
        escape(entry.version),
        escape(archs),
        escape(f"CUDA {lowest[0]}" if lowest else "-"),
        escape(entry.torch.removeprefix("==") or "-"),
        f"{entry.size / 1e6:.1f} MB",
        f"<code>{entry.sha256[:16]}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
