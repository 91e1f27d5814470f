"""What is written of variant wheels below `variants/`: a record for each, and the pages that are made of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Literal
from urllib.parse import quote

from packaging.version import Version
from pydantic import Field
from variantlib.variant_dist_info import VariantDistInfo
from variantlib.variants_json import VariantsJson

from scripts.core.models import Model
from scripts.index.entry import Entry

ROOT = "variants/"
ENTRIES = f"{ROOT}entries/"
SIMPLE = f"{ROOT}simple/"


class Record(Model):
    """A variant wheel of the index."""

    published: str
    """File name of the wheel it was made from; once that is taken out of the index, this one goes too."""
    published_sha256: str = ""
    """The bytes it was made from; "" in records of wheelsmith 0.1, which had one wheel per name."""
    filename: str
    project: str
    version: str
    """Public version."""
    sha256: str
    size: int
    metadata_sha256: str
    requires_python: str
    variant: str
    """Its variant.json."""
    yanked: str | None = None
    """As the published wheel's (PEP 592)."""
    generation: int = Field(default=0, ge=0)
    """How often a variant of this name was made; each time it lies in another folder."""
    removed: str = ""
    """When it was taken off the pages, by the store's clock; "" while it is on them."""
    swept: Literal["", "begun", "done"] = ""
    """Whether its files go, or are gone."""

    @property
    def key(self) -> str:
        """Where the wheel is."""
        again = f"-{self.generation}" if self.generation else ""
        return f"{ROOT}files/{self.sha256}{again}/{self.filename}"

    @property
    def record(self) -> str:
        """Where this record is."""
        return f"{ENTRIES}{self.published}.json"

    def made_from(self, entry: Entry | None) -> bool:
        """Whether it is the variant of a published wheel."""
        return entry is not None and self.published_sha256 in {"", entry.sha256}

    def with_changes(self, **changes: Any) -> Record:
        """Return the record after a change."""
        return self.model_copy(update=changes)

    def json(self) -> bytes:  # type: ignore[override]
        """Return the record's bytes."""
        return self.model_dump_json(indent=1).encode()


def pages(records: Sequence[Record]) -> dict[str, bytes]:
    """Return the pages by key: per version the JSON, per project its page, then the list of projects."""
    found: dict[str, bytes] = {}
    projects: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda item: (item.project, Version(item.version), item.filename)):
        projects[record.project].append(record)
    for project, listed in projects.items():
        documents = _documents(listed)
        found.update({f"{SIMPLE}{project}/{name}": data for name, data in documents.items()})
        found[f"{SIMPLE}{project}/index.json"] = _json_page(project, listed, documents)
        found[f"{SIMPLE}{project}/index.html"] = _page(project, listed, documents)
    links = "".join(f'<a href="{escape(project)}/">{escape(project)}</a><br>\n' for project in projects)
    found[f"{SIMPLE}index.html"] = f"<!DOCTYPE html>\n<title>Wheel variants</title>\n{links}".encode()
    return found


def emptied(before: Iterable[str], listed: Sequence[Record]) -> dict[str, bytes]:
    """Return the pages of projects that have no variant any more."""
    there = {key.removeprefix(SIMPLE).partition("/")[0] for key in before if key.count("/") > SIMPLE.count("/")}
    found = {}
    for project in there - {record.project for record in listed}:
        found[f"{SIMPLE}{project}/index.json"] = _json_page(project, [], {})
        found[f"{SIMPLE}{project}/index.html"] = _page(project, [], {})
    return found


def _documents(records: Sequence[Record]) -> dict[str, bytes]:
    """Return `NAME-VERSION-variants.json` for each version."""
    merged: dict[str, VariantsJson] = {}
    for record in records:
        name = "-".join(record.filename.split("-")[:2]) + "-variants.json"
        info = VariantDistInfo(record.variant)
        if name in merged:
            merged[name].merge(info)
        else:
            merged[name] = info
    return {name: document.to_str().encode() for name, document in merged.items()}


def _json_page(project: str, records: Sequence[Record], documents: dict[str, bytes]) -> bytes:
    files: list[dict[str, object]] = [
        {"filename": name, "url": quote(name), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
        for name, data in documents.items()
    ]
    for record in records:
        row: dict[str, object] = {
            "filename": record.filename,
            "url": _href(record),
            "hashes": {"sha256": record.sha256},
            "size": record.size,
            "core-metadata": {"sha256": record.metadata_sha256},
            "yanked": False if record.yanked is None else record.yanked or True,
        }
        files.append({**row, "requires-python": record.requires_python} if record.requires_python else row)
    return (json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": files}, indent=1) + "\n").encode()


def _href(record: Record) -> str:
    return f"../../{quote(record.key.removeprefix(ROOT))}"


def _page(project: str, records: Sequence[Record], documents: dict[str, bytes]) -> bytes:
    lines = [f"<!DOCTYPE html>\n<html><head><title>Links for {escape(project)}</title></head><body>"]
    for name, data in documents.items():
        lines.append(f'<a href="{quote(name)}#sha256={hashlib.sha256(data).hexdigest()}">{escape(name)}</a><br>')
    for record in records:
        python = f' data-requires-python="{escape(record.requires_python)}"' if record.requires_python else ""
        where = f"{_href(record)}#sha256={record.sha256}"
        more = f'{python} data-core-metadata="sha256={record.metadata_sha256}"'
        more += "" if record.yanked is None else f' data-yanked="{escape(record.yanked)}"'
        lines.append(f'<a href="{where}"{more}>{escape(record.filename)}</a><br>')
    return "\n".join([*lines, "</body></html>", ""]).encode()
