"""Wheel variants (PEPs 817, 825 and 850, drafts): `publish --variants` keeps an index of them below `variants/`.

A variant wheel is the published one under its public version, with `.dist-info/variant.json` and a label in its file
name; `NAME-VERSION-variants.json` tells installers which GPU and driver each label is for. Both are variantlib's.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from packaging.version import Version
from variantlib.api import VariantDescription, VariantProperty, make_variant_dist_info
from variantlib.models.variant_info import ProviderInfo, VariantInfo
from variantlib.variant_dist_info import VariantDistInfo
from variantlib.variants_json import VariantsJson

from scripts.core.console import Console
from scripts.core.errors import PublishError
from scripts.core.files import file_sha256
from scripts.core.models import Model
from scripts.cuda.archs import TABLE, TEGRA
from scripts.formats.sbom import FOLDER as SBOM_FOLDER
from scripts.formats.sbom import NAME as SBOM_NAME
from scripts.formats.sbom import renamed
from scripts.formats.wheel import WheelFile, WheelWriter, one_block, open_wheel, wheel_name
from scripts.index.entry import Entry, Served
from scripts.index.store import Store

ROOT = "variants/"
ENTRIES = f"{ROOT}entries/"
MAX_LABEL = 16  # characters, as PEP 825 has it
ROUNDS = 20
_PROVIDER = {
    "nvidia": ProviderInfo(
        requires=["nvidia-variant-provider>=0.0.1,<1.0.0"],
        plugin_api="nvidia_variant_provider.plugin:NvidiaVariantPlugin",
    )
}


class Record(Model):
    """A variant wheel of the index."""

    published: str
    """File name of the wheel it was made from; once that is taken out of the index, this one goes too."""
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

    @property
    def key(self) -> str:
        """Where the wheel is."""
        return f"{ROOT}files/{self.sha256}/{self.filename}"


@dataclass(frozen=True)
class Variant:
    """What the format says of a wheel."""

    label: str
    dist_info: str
    """Content of variant.json."""


def describe(entry: Entry) -> Variant:
    """Return what the format can say of a published wheel: its GPUs and the driver it needs.

    `sm_arch 90_real` means every GPU of 9.0 and of later minors of that major. Raises PublishError where that would be
    untrue: code for 12.0 alone (`120a`) would be installed on a 12.1, too.
    """
    ours = {item.arch: item for item in entry.serves or () if item.native + item.compatible}
    first = [arch for arch in ours if ours[arch].native and ours[arch].cuda and _pair(arch) not in TEGRA]
    if not first:
        raise PublishError(
            f"{entry.filename} cannot be a wheel variant: its audit names no GPU that has native code in it",
            fix="publish it with its audit, or without --variants",
        )
    for arch in first:
        for other in _later(arch):
            if other not in ours:
                raise PublishError(
                    f"{entry.filename} cannot be a wheel variant",
                    why=f"its code for {arch} does not run on {other}; the format knows no such code, and would "
                    f"install it there (no word for {arch.replace('.', '')}a)",
                    fix="publish it without --variants: label and sub-index say it exactly",
                )
    properties = [VariantProperty("nvidia", "cuda_version_lower_bound", _highest(ours[arch] for arch in first))]
    properties += [VariantProperty("nvidia", "sm_arch", f"{arch.replace('.', '')}_real") for arch in first]
    label = re.sub(r"[^0-9a-z._]", "_", (Version(entry.version).local or "").lower().replace(".", "_"))
    description = VariantDescription(sorted(properties), label=label if len(label) <= MAX_LABEL else "")
    info = VariantInfo(namespace_priorities=["nvidia"], providers=_PROVIDER)
    text = make_variant_dist_info(description, info)
    return Variant(VariantDistInfo(text).variant_label, text)


def _later(arch: str) -> list[str]:
    """Return the GPU generations to which the format gives code for `arch`; Tegra's are not x86-64."""
    major, minor = _pair(arch)
    numbers = [_pair(row.number) for row in TABLE]
    return [f"{a}.{b}" for a, b in numbers if a == major and b > minor and (a, b) not in TEGRA]


def _pair(number: str) -> tuple[int, int]:
    major, minor = number.split(".")
    return int(major), int(minor)


def _highest(served: Iterable[Served]) -> str:
    return max((item.cuda for item in served), key=Version)


class VariantIndex:
    """The index of variants in a store, under the lock of the static index. Methods raise PublishError."""

    def __init__(self, store: Store, console: Console) -> None:
        self._store, self._console = store, console

    def add(self, wheel: Path, entry: Entry, variant: Variant) -> None:
        """Make and send the variant of a published wheel, and its record; nothing when it is there."""
        record_key = f"{ENTRIES}{entry.filename}.json"
        if self._store.read(record_key):
            return
        with tempfile.TemporaryDirectory(prefix="wheelsmith-variant-") as folder:
            made, metadata = make_variant(wheel, variant, Path(folder))
            record = Record(
                published=entry.filename,
                filename=made.name,
                project=entry.name,
                version=Version(entry.version).public,
                sha256=file_sha256(made),
                size=made.stat().st_size,
                metadata_sha256=hashlib.sha256(metadata).hexdigest(),
                requires_python=entry.requires_python,
                variant=variant.dist_info,
            )
            self._refuse_twins(record)
            self._console.note(f"variant {made.name}")
            self._store.add_file(record.key, made, record.sha256)
            self._store.write(f"{record.key}.metadata", metadata, over=self._store.read(f"{record.key}.metadata"))
        self._store.write(record_key, record.model_dump_json(indent=1).encode(), over=None)

    def _refuse_twins(self, record: Record) -> None:
        twins = [other.published for other in self._records() if other.filename == record.filename]
        if twins:
            raise PublishError(
                f"{record.published} and {twins[0]} would be the same variant, {record.filename}",
                fix="give them other labels, or publish one without --variants",
            )

    def _records(self) -> list[Record]:
        stored = [self._store.read(key) for key in self._store.tags(ENTRIES) if key.endswith(".json")]
        return [Record.model_validate_json(item.data) for item in stored if item]

    def refresh(self, published: Iterable[str]) -> None:
        """Make the pages what the records say; take out variants whose wheels the index no longer has."""
        if not self._store.tags(ENTRIES):
            return
        kept_names = set(published)
        for _ in range(ROUNDS):
            records = self._records()
            kept = [record for record in records if record.published in kept_names]
            lost = [key for key, data in pages(kept).items() if not self._replace(key, data)]
            if not lost:
                break
        for record in records:
            if record.published not in kept_names:
                for key in (record.key, f"{record.key}.metadata", f"{ENTRIES}{record.published}.json"):
                    self._store.remove(key)

    def _replace(self, key: str, data: bytes) -> bool:
        there = self._store.read(key)
        return (there is not None and there.data == data) or bool(self._store.write(key, data, over=there))


def make_variant(wheel: Path, variant: Variant, folder: Path) -> tuple[Path, bytes]:
    """Write the variant of a wheel into a folder; return it and its METADATA."""
    name = wheel_name(wheel)
    public = Version(name.version).public
    dist_info = f"{name.name}-{public}.dist-info"
    with open_wheel(wheel) as source:
        path = folder / f"{name.name}-{public}-{name.tags}-{variant.label}.whl"
        writer = WheelWriter(path, dist_info)
        try:
            metadata = _copy(source, writer, public, dist_info)
            like = next(item for item in source.members if item.filename == f"{source.dist_info}/METADATA")
            text = variant.dist_info.encode()
            writer.add(like, f"{dist_info}/variant.json", one_block(text), len(text))
            return writer.finish(), metadata
        except BaseException:
            writer.abandon()
            raise


def _copy(source: WheelFile, writer: WheelWriter, public: str, dist_info: str) -> bytes:
    """Copy all members but RECORD under the public version; return METADATA."""
    metadata = b""
    for member in source.members:
        folder, _, rest = member.filename.partition("/")
        if folder != source.dist_info:
            writer.add(member, member.filename, source.blocks(member), member.file_size)
        elif rest != "RECORD":
            data = _of_version(rest, _read(source, member), public)
            metadata = data if rest == "METADATA" else metadata
            writer.add(member, f"{dist_info}/{rest}", one_block(data), len(data))
    return metadata


def _read(source: WheelFile, member: zipfile.ZipInfo) -> bytes:
    return b"".join(source.blocks(member))


def _of_version(name: str, data: bytes, public: str) -> bytes:
    if name == "METADATA":
        return re.sub(rb"(?m)^Version:[^\r\n]*", f"Version: {public}".encode(), data, count=1)
    return renamed(data, public) if name == f"{SBOM_FOLDER}/{SBOM_NAME}" else data


def pages(records: Sequence[Record]) -> dict[str, bytes]:
    """Return the pages by key: per version the JSON, per project its page, then the list of projects."""
    found: dict[str, bytes] = {}
    projects: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda item: (item.project, Version(item.version), item.filename)):
        projects[record.project].append(record)
    for project, listed in projects.items():
        documents = _documents(listed)
        found.update({f"{ROOT}simple/{project}/{name}": data for name, data in documents.items()})
        found[f"{ROOT}simple/{project}/index.json"] = _json_page(project, listed, documents)
        found[f"{ROOT}simple/{project}/index.html"] = _page(project, listed, documents)
    links = "".join(f'<a href="{escape(project)}/">{escape(project)}</a><br>\n' for project in projects)
    found[f"{ROOT}simple/index.html"] = f"<!DOCTYPE html>\n<title>Wheel variants</title>\n{links}".encode()
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
        core = f' data-core-metadata="sha256={record.metadata_sha256}"'
        lines.append(f'<a href="{where}"{python}{core}>{escape(record.filename)}</a><br>')
    return "\n".join([*lines, "</body></html>", ""]).encode()
