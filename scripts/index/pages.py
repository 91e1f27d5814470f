"""Pages of a static index: PEP 503 HTML, PEP 691 JSON, sub-indexes per CUDA, version and variant. Pure functions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

from packaging.version import Version

from scripts.index.entry import Entry
from scripts.index.landing import landing_page

_HEAD = '<!DOCTYPE html>\n<html><head><meta charset="utf-8"><meta name="pypi:repository-version" content="1.3">'
_META = {"api-version": "1.3"}  # PEP 700 sizes and times, PEP 740 provenance
PROVENANCE = ".provenance"


def pages(entries: Iterable[Entry]) -> dict[str, bytes]:
    """Return every page of the index by key. The narrowest come first and the landing page last.

    In that order they are written: what a page links to is there before it.
    """
    ordered = sorted(entries, key=lambda entry: (entry.name, Version(entry.version), entry.filename))
    roots: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in ordered:
        for root in entry.roots:
            roots[root][entry.name].append(entry)
    found: dict[str, bytes] = {}
    for root in sorted(roots, key=lambda item: (-item.count("/"), item)):
        for name, listed in roots[root].items():
            up = "../" * (root.count("/") + 1)
            found[f"{root}{name}/index.json"] = project_json(name, listed, up)
            found[f"{root}{name}/index.html"] = project_html(name, listed, up)
        found[f"{root}index.json"] = _json({"meta": _META, "projects": [{"name": name} for name in roots[root]]})
        found[f"{root}index.html"] = _root_html(roots[root])
    found["SHA256SUMS"] = "".join(f"{entry.sha256}  {entry.key}\n" for entry in ordered).encode()
    found["index.html"] = landing_page(ordered)
    return found


def emptied(gone: Iterable[Entry], kept: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the pages that only wheels which were taken out are on, without them: what a bucket shows from then on."""
    found: dict[str, bytes] = {}
    for entry in gone:
        for root in entry.roots:
            up = f"{root}{entry.name}/"
            found[f"{up}index.json"] = project_json(entry.name, [], "")
            found[f"{up}index.html"] = project_html(entry.name, [], "")
            found[f"{root}index.json"] = _json({"meta": _META, "projects": []})
            found[f"{root}index.html"] = _root_html([])
    return {key: data for key, data in found.items() if key not in kept}


def href(entry: Entry, up: str) -> str:
    """Return the relative URL of a wheel. `+` is escaped: uv sends it verbatim and S3 reads it as a blank."""
    return up + quote(entry.key)


def project_html(name: str, entries: Sequence[Entry], up: str) -> bytes:
    """Return a project's page as PEP 503 has it; `up` leads to the index's root: `../../`."""
    lines = [f"{_HEAD}<title>Links for {escape(name)}</title></head><body><h1>Links for {escape(name)}</h1>"]
    for entry in entries:
        more = f' data-requires-python="{escape(entry.requires_python)}"' if entry.requires_python else ""
        metadata = f"sha256={entry.metadata_sha256}"
        more += "" if entry.yanked is None else f' data-yanked="{escape(entry.yanked)}"'
        if PROVENANCE in entry.extras:
            more += f' data-provenance="{href(entry, up)}{PROVENANCE}"'
        lines.append(
            f'<a href="{href(entry, up)}#sha256={entry.sha256}"{more} data-core-metadata="{metadata}"'
            f' data-dist-info-metadata="{metadata}">{escape(entry.filename)}</a><br>'
        )
    return "\n".join([*lines, "</body></html>", ""]).encode()


def project_json(name: str, entries: Sequence[Entry], up: str) -> bytes:
    """Return a project's page as PEP 691 and PEP 700 have it."""
    versions = list(dict.fromkeys(entry.version for entry in entries))
    return _json({"meta": _META, "name": name, "versions": versions, "files": [_file(entry, up) for entry in entries]})


def _file(entry: Entry, up: str) -> dict[str, object]:
    metadata = {"sha256": entry.metadata_sha256}
    row: dict[str, object] = {
        "filename": entry.filename,
        "url": href(entry, up),
        "hashes": {"sha256": entry.sha256},
        "size": entry.size,
        "upload-time": entry.uploaded,
        "core-metadata": metadata,
        "dist-info-metadata": metadata,
        "yanked": False if entry.yanked is None else entry.yanked or True,
        "provenance": href(entry, up) + PROVENANCE if PROVENANCE in entry.extras else None,
    }
    return {**row, "requires-python": entry.requires_python} if entry.requires_python else row


def _root_html(names: Iterable[str]) -> bytes:
    links = "\n".join(f'<a href="{escape(name)}/">{escape(name)}</a><br>' for name in names)
    return f"{_HEAD}<title>Simple index</title></head><body>\n{links}\n</body></html>\n".encode()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
