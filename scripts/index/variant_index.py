"""The index of variant wheels that `publish --variants` keeps below `variants/`: its records and its pages.

Records and files go by the rules of the static index (`static.py`): a record is replaced only when it is still what
was read and is never deleted, a variant that was taken off the pages keeps its files for a grace period, and one that
comes back after they went lies in a new folder. A variant is on the pages while the static index has its wheel.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from packaging.version import Version
from pydantic import ValidationError

from scripts.core.console import Console, human_bytes
from scripts.core.errors import PublishError
from scripts.core.files import file_sha256
from scripts.index.entry import Entry
from scripts.index.static import TIME, parsed
from scripts.index.store import Store, Stored
from scripts.index.variant_pages import ENTRIES, SIMPLE, Record, emptied, pages
from scripts.index.variants import Variant, make_variant

ROUNDS = 20  # of reading again after another publisher
THREADS = 16
Published = Callable[[], Mapping[str, Entry]]
"""Gives the wheels that the static index has now, by file name."""


class VariantIndex:
    """The index of variants in a store, under the lock of the static index. Methods raise PublishError."""

    def __init__(self, store: Store, console: Console) -> None:
        self._store, self._console = store, console

    def add(self, wheel: Path, entry: Entry, variant: Variant) -> None:
        """Make and send the variant of a published wheel, and its record; nothing when it is there."""
        with tempfile.TemporaryDirectory(prefix="wheelsmith-variant-") as folder:
            made: tuple[Record, Path, bytes] | None = None
            for _ in range(ROUNDS):
                stored, there = self._read(f"{ENTRIES}{entry.filename}.json")
                if there and there.made_from(entry) and not there.removed:
                    return
                if there and there.made_from(entry) and not there.swept:  # its files are still there
                    new = there.with_changes(removed="", yanked=entry.yanked)
                    self._refuse_twins(new)
                else:
                    made = made or _make(wheel, entry, variant, Path(folder))
                    new = made[0].with_changes(generation=there.generation + 1 if there else 0)
                    self._refuse_twins(new)
                    self._send(new, made[1], made[2])
                if self._store.write(new.record, new.json(), over=stored):
                    if there and there.key != new.key:
                        self._remove_files(there)  # what a killed sweeper left
                    return
        raise self._busy(f"the variant of {entry.filename}")

    def _send(self, record: Record, path: Path, metadata: bytes) -> None:
        self._console.note(f"variant {record.filename}")
        if self._store.size(record.key) != record.size:
            self._store.add_file(record.key, path, record.sha256)
        key = f"{record.key}.metadata"
        self._store.write(key, metadata, over=self._store.read(key))

    def _refuse_twins(self, record: Record) -> None:
        others = [other for other, _ in self._records().values() if other.published != record.published]
        twin = next((one for one in others if one.filename == record.filename and not one.removed), None)
        if twin:
            raise PublishError(
                f"{record.published} and {twin.published} would be the same variant, {record.filename}",
                fix="give them other labels, or publish one without --variants",
            )

    def refresh(self, published: Published) -> None:
        """Make the pages what the records say, without variants whose wheels the index no longer has."""
        if not self._store.tags(ENTRIES):
            return
        for _ in range(ROUNDS):
            # First pages, then records, then wheels: what another publisher adds or writes meanwhile is not undone.
            before = self._read_all(self._store.tags(SIMPLE))
            records = self._settled(published)
            listed = [record for record in records if not record.removed]
            wanted = {**pages(listed), **emptied(before, listed)}
            written = all(self._replace(key, data, before.get(key)) for key, data in wanted.items())
            if written and [record for record, _ in self._records().values()] == records:
                self._clear(set(before) - set(wanted))
                return
        raise self._busy("the pages of variants")

    def _settled(self, published: Published) -> list[Record]:
        """Write down what became of the published wheels; return all records."""
        records, entries = self._records(), published()
        for key, (record, stored) in records.items():
            entry = entries.get(record.published)
            changes: dict[str, Any] = {}
            if not record.made_from(entry):
                changes = {} if record.removed else {"removed": self._store.now().strftime(TIME)}
            elif entry and entry.yanked != record.yanked:
                changes = {"yanked": entry.yanked}
            new = record.with_changes(**changes)
            if changes and self._store.write(key, new.json(), over=stored):
                records[key] = (new, stored)
        return [record for record, _ in records.values()]

    def _clear(self, stale: set[str]) -> None:
        """Remove lists of versions that no page names any more, where nobody can be writing them."""
        for key in stale if self._store.locked else ():
            self._store.remove(key)

    def sweep(self, grace: timedelta) -> None:
        """Delete the files of variants that were taken off the pages at least `grace` ago."""
        limit = self._store.now() - grace
        for record, stored in self._records().values():
            if not record.removed or record.swept == "done" or parsed(record.removed) > limit:
                continue
            begun = record.with_changes(swept="begun")
            written = self._store.write(record.record, begun.json(), over=stored)
            if written:
                self._remove_files(record)
                self._console.note(f"deleted {record.filename} ({human_bytes(record.size)})")
                self._store.write(record.record, begun.with_changes(swept="done").json(), over=written)

    def _remove_files(self, record: Record) -> None:
        for key in (record.key, f"{record.key}.metadata"):
            self._store.remove(key)

    def _records(self) -> dict[str, tuple[Record, Stored]]:
        stored = self._read_all(key for key in self._store.tags(ENTRIES) if key.endswith(".json"))
        return {key: (_parse(item.data, key), item) for key, item in sorted(stored.items())}

    def _read(self, key: str) -> tuple[Stored | None, Record | None]:
        stored = self._store.read(key)
        return stored, _parse(stored.data, key) if stored else None

    def _read_all(self, keys: Iterable[str]) -> dict[str, Stored]:
        wanted = list(keys)
        with ThreadPoolExecutor(THREADS) as pool:
            return {key: item for key, item in zip(wanted, pool.map(self._store.read, wanted), strict=True) if item}

    def _replace(self, key: str, data: bytes, there: Stored | None) -> bool:
        return (there is not None and there.data == data) or bool(self._store.write(key, data, over=there))

    def _busy(self, what: str) -> PublishError:
        return PublishError(
            f"{what} could not be written to {self._store.location}",
            why="other publishers changed it again and again",
            fix="run the same command again",
        )


def _parse(data: bytes, place: str) -> Record:
    try:
        record = Record.model_validate_json(data)
        Version(record.version)
    except (ValidationError, ValueError) as error:
        raise PublishError(
            f"{place} is not a record of this index",
            why=str(error).splitlines()[0],
            fix="delete it and publish its wheel again with --variants; nothing was changed",
        ) from error
    return record


def _make(wheel: Path, entry: Entry, variant: Variant, folder: Path) -> tuple[Record, Path, bytes]:
    path, metadata = make_variant(wheel, variant, folder)
    record = Record(
        published=entry.filename,
        published_sha256=entry.sha256,
        filename=path.name,
        project=entry.name,
        version=Version(entry.version).public,
        sha256=file_sha256(path),
        size=path.stat().st_size,
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
        requires_python=entry.requires_python,
        variant=variant.dist_info,
        yanked=entry.yanked,
    )
    return record, path, metadata
