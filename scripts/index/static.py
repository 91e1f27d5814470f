"""The static index: wheels first, their records next, pages last; publishers at once do not lose each other's wheels.

Truth is one record per wheel; pages are made from all records. A record is replaced only when it is still what was
read, and is never deleted: a wheel that was taken out leaves its record. Files go in three steps (taken out, files go,
files gone), each a change of the record, so that who takes a wheel back and who deletes it cannot both win. Wheels lie
under their own sha256 and generation: other bytes, or the same ones put in again, cannot get in each other's way.
A page is replaced only when it is still what was read before the records were listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from scripts.core.console import Console, human_bytes
from scripts.core.errors import PublishError, UsageError, a_few, nearest
from scripts.index.entry import Entry, Event, entry_key, now, read_entry, same_wheel
from scripts.index.pages import emptied, pages
from scripts.index.records import Records
from scripts.index.store import Store, Stored

ROUNDS = 50  # of reading again after another publisher; each lets at least one publisher finish
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
State = Literal["published", "updated", "unchanged"]


@dataclass(frozen=True)
class Item:
    """A wheel to publish."""

    path: Path
    entry: Entry
    metadata: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Small files that lie beside it, by suffix: `.report.json`."""


class StaticIndex:
    """An index in a store; `who` is written down with all that is done. Methods raise PublishError."""

    def __init__(self, store: Store, console: Console, *, who: str = "unknown") -> None:
        self._store, self._console, self._who = store, console, who
        self._records = Records(store)

    def entries(self) -> dict[str, Entry]:
        """Return all wheels of the index by file name."""
        return {entry.filename: entry for entry in self._records.all() if entry.listed}

    def history(self) -> list[Entry]:
        """Return every record, those of wheels that were taken out too. Raises UsageError where there is no index."""
        found = self._records.all()
        if not found:
            raise UsageError(
                f"there is no index in {self._store.location}",
                why="nothing was ever published there",
                fix=f"correct the place, or publish first: nox -s publish -- --to {self._store.location} WHEEL",
            )
        return found

    def find(self, filename: str) -> Entry:
        """Return the record of a wheel. Raises UsageError when the index does not have it, or is none."""
        return self.among(filename, [entry for entry in self.history() if entry.listed])

    def among(self, filename: str, entries: Sequence[Entry]) -> Entry:
        """Return the one of some records that is of a wheel, however it is spelled. Raises UsageError without one."""
        found = next((entry for entry in entries if same_wheel(entry.filename, filename)), None)
        if found is None:
            names = [entry.filename for entry in sorted(entries, key=lambda entry: entry.uploaded, reverse=True)]
            raise UsageError(
                f"{self._store.location} has no {filename}.{nearest(filename, names)}",
                why=f"its wheels are {a_few(names)}" if names else "all of its wheels were taken out",
                fix="name a wheel by its file name, as SHA256SUMS has it",
            )
        return found

    def known(self, filename: str, sha256: str, among: Mapping[str, Entry]) -> Entry | None:
        """Return the record of a wheel that is published already. Raises PublishError when its bytes are others."""
        found = among.get(filename) or next((one for one in among.values() if same_wheel(one.filename, filename)), None)
        if found:
            refuse_other_bytes(found.filename, published=found.sha256, ours=sha256, place=self._store.location)
        return found

    def add(self, item: Item, event: Event) -> State:
        """Send a wheel and what lies beside it, then its record; it is not on a page yet. Say what that changed."""
        for _ in range(ROUNDS):
            stored, there = self._read(item.entry.filename)
            if there and there.listed:
                return self.update(item.entry.filename, item.entry.sha256, item.beside, event)
            entry = _succeeding(item.entry, there)
            if self._store.size(entry.key) != entry.size:  # else a killed publisher had sent it whole
                self._store.add_file(entry.key, item.path, entry.sha256)
            for suffix, data in {".metadata": item.metadata, **item.beside}.items():
                self._put(entry.key + suffix, data)
            kind = event.model_copy(update={"action": "restore"}) if there and event.action == "publish" else event
            if self._store.write(entry.record, entry.with_event(kind).json(), over=stored):
                self._forget(there, entry)
                return "published"
        raise self._busy(item.entry.filename)

    def _forget(self, there: Entry | None, entry: Entry) -> None:
        """Remove what a killed sweeper left of an earlier generation, which nobody can take back any more."""
        if there and there.key != entry.key:
            self._remove_files(there)

    def update(self, filename: str, sha256: str, beside: Mapping[str, bytes], event: Event) -> State:
        """Put what lies beside a published wheel, where it is new or other bytes than there; keep the rest."""
        digests = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in beside.items()}

        def change(entry: Entry) -> Entry | None:
            refuse_other_bytes(entry.filename, published=entry.sha256, ours=sha256, place=self._store.location)
            news = {suffix: digest for suffix, digest in digests.items() if entry.extras.get(suffix) != digest}
            for suffix in news:
                self._put(entry.key + suffix, beside[suffix])
            if not news:
                return None
            note = ", ".join(sorted(news))
            told = event.model_copy(update={"action": "update", "note": f"{note} {event.note}".strip()})
            return entry.with_event(told, extras={**entry.extras, **news})

        return "updated" if self.change(filename, change) else "unchanged"

    def _put(self, key: str, data: bytes) -> None:
        for _ in range(ROUNDS):
            there = self._store.read(key)
            if (there and there.data == data) or self._store.write(key, data, over=there):
                return
        raise self._busy(key)

    def change(self, filename: str, change: Callable[[Entry], Entry | None]) -> Entry | None:
        """Replace the record of a wheel by what `change` makes of it; None, and nothing done, when that is None."""
        for _ in range(ROUNDS):
            stored, entry = self._read(filename)
            if entry is None or not entry.listed:
                raise PublishError(
                    f"{filename} was taken out of {self._store.location} meanwhile", fix="publish it again"
                )
            new = change(entry)
            if new is None:
                return None
            if self._store.write(entry.record, new.json(), over=stored):
                return new
        raise self._busy(filename)

    def _read(self, filename: str) -> tuple[Stored | None, Entry | None]:
        key = entry_key(filename)
        stored = self._store.read(key)
        return stored, read_entry(stored.data, key) if stored else None

    def _busy(self, what: str) -> PublishError:
        return PublishError(
            f"{what} could not be written to {self._store.location}",
            why="other publishers changed it again and again",
            fix="run the same command again",
        )

    def event(self, action: Any, note: str = "") -> Event:
        """Return what is written down about a deed of now."""
        return Event(when=now(), who=self._who, action=action, note=note)

    def refresh(self) -> list[str]:
        """Make every page what the records say; return the keys of the pages that changed."""
        changed: list[str] = []
        for _ in range(ROUNDS):
            made_from = self._refresh_once(changed)
            if made_from is not None and _shown(self._records.all()) == made_from:
                self._records.save()
                return changed
        raise PublishError(
            f"the pages of {self._store.location} could not be written",
            why="other publishers changed them again and again",
            fix="run the same command again: the wheels are there, only pages are missing",
        )

    def _refresh_once(self, changed: list[str]) -> list[Entry] | None:
        """Write what differs; return the records it was made from, None when a page could not be written."""
        # Pages are looked at before records: one that another publisher replaces after that is not overwritten.
        before = self._records.pages()
        before.update(self._records.read_pages(key for key, (_, sha256) in before.items() if not sha256))
        entries = self._records.all()
        wanted = pages(entry for entry in entries if entry.listed)
        empty = emptied((entry for entry in entries if not entry.listed), wanted)
        for key, data in {**wanted, **{key: data for key, data in empty.items() if key in before}}.items():
            stored, sha256 = before.get(key, (None, ""))
            if self._store.locked and key in empty:
                self._store.remove(key)
            elif sha256 != hashlib.sha256(data).hexdigest():
                written = self._store.write(key, data, over=stored)
                if not written:
                    return None
                self._records.wrote(key, written)
                changed.append(key)
        return _shown(entries)

    def remove(self, doomed: Sequence[Entry], note: str = "") -> list[Entry]:
        """Take wheels off the pages; their files stay until `sweep`. What another publisher has changed stays."""
        when, taken = self._store.now().strftime(TIME), []
        for entry in doomed:
            stored, there = self._read(entry.filename)
            if there == entry:
                gone = entry.with_event(self.event("remove", note), removed=when, swept="")
                if self._store.write(entry.record, gone.json(), over=stored):
                    taken.append(entry)
                    continue
            self._console.warn(f"{entry.filename} stays: another publisher changed it meanwhile")
        self.refresh()
        return taken

    def sweep(self, grace: timedelta) -> list[Entry]:
        """Delete the files of wheels that were taken out at least `grace` ago, and what a killed run left of that."""
        gone = [entry for entry in self._records.all() if entry.removed and entry.swept != "done"]
        if not gone:
            return []
        limit = self._store.now() - grace
        return [entry for entry in gone if parsed(entry.removed) <= limit and self._sweep_one(entry)]

    def _sweep_one(self, entry: Entry) -> bool:
        stored, there = self._read(entry.filename)
        if there != entry:
            return False  # taken back meanwhile
        begun = entry.model_copy(update={"swept": "begun"})
        written = self._store.write(entry.record, begun.json(), over=stored)
        if not written:
            return False
        self._remove_files(entry)
        self._console.note(f"deleted {entry.filename} ({human_bytes(entry.size)})")
        done = begun.with_event(self.event("sweep"), swept="done")
        self._store.write(entry.record, done.json(), over=written)  # else taken back: its new files lie elsewhere
        return True

    def _remove_files(self, entry: Entry) -> None:
        for suffix in ("", ".metadata", *entry.extras):
            self._store.remove(entry.key + suffix)

    def ages(self, entries: Iterable[Entry]) -> dict[str, timedelta]:
        """Return how old wheels are at least: by their publisher's clock, or by the store's if that says less."""
        here = self._store.now()
        found = {}
        for entry in entries:
            claimed, seen = parsed(entry.uploaded), self._store.written(entry.key)
            found[entry.filename] = here - max(claimed, seen or claimed)
            if claimed > here + timedelta(days=1):
                self._console.warn(f"{entry.filename} says it was uploaded at {entry.uploaded}, which is in the future")
        return found


def _shown(entries: Iterable[Entry]) -> list[Entry]:
    """Return what pages are made from, without what no page shows."""
    return [entry.model_copy(update={"history": ()}) for entry in entries if entry.listed]


def _succeeding(entry: Entry, there: Entry | None) -> Entry:
    """Return the record of a wheel that is put in again after `there`, with all that was done to it."""
    if there is None:
        return entry
    if there.sha256 == entry.sha256 and not there.swept:  # its files are still there, and nobody may delete them now
        extras = {**there.extras, **entry.extras}
        return entry.model_copy(update={"generation": there.generation, "extras": extras, "history": there.history})
    return entry.model_copy(update={"generation": there.generation + 1, "history": there.history})


def parsed(text: str) -> datetime:
    """Read a time as PEP 700 has it; the end of time for what is none, which is never old."""
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.max.replace(tzinfo=timezone.utc)


def refuse_other_bytes(filename: str, *, published: str, ours: str, place: str) -> None:
    """Raise PublishError when the index has other bytes under a name."""
    if published != ours:
        raise PublishError(
            f"{place} has another {filename}",
            why=f"there sha256 {published}, here {ours}; installers that have seen the old one would fail",
            fix="build it under another version label, or take the published one out first (--prune)",
        )
