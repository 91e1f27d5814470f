"""The page people read: which wheel for which GPU and driver, with the lines to copy. Works from any web server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from scripts.core.html import render
from scripts.cuda.archs import TABLE
from scripts.cuda.drivers import RELEASES
from scripts.index.entry import Entry

TEMPLATE = "index/landing.html"
USUAL = "x86_64"
"""The processor that is picked until another one is, in an index with wheels for several."""
_LINUX = re.compile(r"(manylinux\d*(_\d+_\d+)?|musllinux_\d+_\d+|linux)_")
_OLDEST_CUDA = (11, 8)  # no torch that vLLM runs on has code for older drivers


def landing_page(entries: Sequence[Entry]) -> bytes:
    """Return the page; the script in it picks, and without script there is a table of all wheels."""
    wheels = [_wheel(entry) for entry in entries]
    machines = sorted({name for wheel in wheels for name in wheel["machines"]}, key=lambda name: (name != USUAL, name))
    data = {"gpus": _gpus(), "archs": _archs(), "drivers": _drivers(), "machines": machines, "wheels": wheels}
    rows = [_row(number, entry) for number, entry in reversed(list(enumerate(entries)))]
    return render(TEMPLATE, data=data, rows=rows).encode()


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
        "machines": _machines(entry.filename),
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


def _machines(filename: str) -> list[str]:
    """Return the processors that a wheel is for, as Linux names them: `x86_64`; nothing for one that runs on any."""
    platforms = filename.removesuffix(".whl").rpartition("-")[2].split(".")
    return sorted({_LINUX.sub("", platform) for platform in platforms if platform != "any"})


def _serves(item: Any) -> dict[str, Any]:
    values: dict[str, Any] = item.model_dump(mode="json")
    values.pop("arch")
    return values


def _row(number: int, entry: Entry) -> dict[str, Any]:
    """Return what the table without script shows of a wheel; `number` is its place in the script's data."""
    served = entry.serves or ()
    drivers = sorted({item.cuda for item in served if item.cuda}, key=lambda text: [*map(int, text.split("."))])
    return {
        "number": number,
        "url": quote(entry.key),
        "file": entry.filename,
        "yanked": entry.yanked,
        "extras": list(entry.extras),
        "archs": None if entry.serves is None else [item.arch for item in served if item.native + item.compatible],
        "cuda": drivers[0] if drivers else "",
        "torch": entry.torch.removeprefix("=="),
        "uploaded": entry.uploaded[:16].replace("T", " "),
        "size": f"{entry.size / 1e6:.1f} MB",
        "sha256": entry.sha256,
    }
