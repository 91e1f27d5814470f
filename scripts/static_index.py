"""The static index: wheels first, their records next, pages last; publishers at once do not lose each other's wheels.

Truth is one record per wheel, written once and never changed; pages are made from all records. Wheels lie under
their own sha256, so other bytes under the same name cannot get in each other's way. A page is replaced only when it
is still what was read before the records were listed; whoever loses that race reads again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from scripts.console import Console, human_bytes
from scripts.errors import PublishError
from scripts.index_entry import ENTRIES, Entry, entry_key, read_entry
from scripts.index_pages import pages
from scripts.store import Store, Stored

ROUNDS = 50  # of reading again after another publisher; each lets at least one publisher finish
THREADS = 16


@dataclass(frozen=True)
class Item:
    """A wheel to publish."""

    path: Path
    entry: Entry
    metadata: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Small files that lie beside it, by suffix: `.report.json`."""


class StaticIndex:
    """An index in a store. Methods raise PublishError."""

    def __init__(self, store: Store, console: Console) -> None:
        self._store, self._console = store, console

    def entries(self) -> dict[str, Entry]:
        """Return all wheels of the index by file name."""
        return {entry.filename: entry for entry in self._records() if not entry.removed}

    def _records(self) -> list[Entry]:
        keys = [key for key in self._store.keys(ENTRIES) if key.endswith(".json")]
        with ThreadPoolExecutor(THREADS) as pool:
            stored = list(pool.map(self._store.read, keys))
        return [read_entry(item.data, key) for key, item in zip(keys, stored, strict=True) if item]

    def known(self, filename: str, sha256: str) -> Entry | None:
        """Return the record of a wheel that is published already. Raises PublishError when its bytes are others."""
        stored = self._store.read(entry_key(filename))
        if stored is None:
            return None
        entry = read_entry(stored.data, entry_key(filename))
        if entry.removed:
            return None
        refuse_other_bytes(filename, published=entry.sha256, ours=sha256, place=self._store.location)
        return entry

    def add(self, item: Item) -> None:
        """Send a wheel and what lies beside it, then its record. It is not on a page yet."""
        entry = item.entry
        if self._store.size(entry.key) != entry.size:  # else a killed publisher had sent it whole
            self._store.add_file(entry.key, item.path, entry.sha256)
        for suffix, data in {".metadata": item.metadata, **item.beside}.items():
            self._store.write(entry.key + suffix, data, over=self._store.read(entry.key + suffix))
        there = self._store.read(entry.record)
        if there and not read_entry(there.data, entry.record).removed:
            self.known(entry.filename, entry.sha256)  # another publisher was first
        elif not self._store.write(entry.record, entry.json(), over=there):
            self.known(entry.filename, entry.sha256)

    def refresh(self) -> list[str]:
        """Make every page what the records say; return the keys of the pages that changed."""
        changed: list[str] = []
        for _ in range(ROUNDS):
            wanted, done = self._refresh_once(changed)
            if done and set(self.entries()) == wanted:
                return changed
        raise PublishError(
            f"the pages of {self._store.location} could not be written",
            why="other publishers changed them again and again",
            fix="run the same command again: the wheels are there, only pages are missing",
        )

    def _refresh_once(self, changed: list[str]) -> tuple[set[str], bool]:
        """Write what differs; return the wheels it was made from, and whether all could be written."""
        # Pages are read before records: a page that another publisher replaces after that is not overwritten.
        guess = pages(self.entries().values())
        before = self._read_all(guess)
        entries = self.entries()
        wanted = pages(entries.values())
        if set(wanted) - set(before):
            return set(), False
        for key, data in wanted.items():
            stored = before[key]
            if stored is None or stored.data != data:
                if not self._store.write(key, data, over=stored):
                    return set(), False
                changed.append(key)
        return set(entries), True

    def _read_all(self, keys: Mapping[str, bytes]) -> dict[str, Stored | None]:
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(keys, pool.map(self._store.read, keys), strict=True))

    def remove(self, doomed: Sequence[Entry]) -> None:
        """Take wheels out: off the pages first, then the files; what a killed run left of that is finished too."""
        for entry in doomed:
            gone = entry.model_copy(update={"removed": True})
            self._store.write(entry.record, gone.json(), over=self._store.read(entry.record))
        self.refresh()
        self._sweep()

    def _sweep(self) -> None:
        gone = [entry for entry in self._records() if entry.removed]
        kept = self.entries().values()
        stale = set(pages([*kept, *gone])) - set(pages(kept))
        for key in sorted(stale):
            self._store.remove(key)
        for entry in gone:
            if all(other.sha256 != entry.sha256 for other in kept):
                for suffix in ("", ".metadata", *entry.extras):
                    self._store.remove(entry.key + suffix)
            self._store.remove(entry.record)
            self._console.note(f"removed {entry.filename} ({human_bytes(entry.size)})")


def refuse_other_bytes(filename: str, *, published: str, ours: str, place: str) -> None:
    """Raise PublishError when the index has other bytes under a name."""
    if published != ours:
        raise PublishError(
            f"{place} has another {filename}",
            why=f"there sha256 {published}, here {ours}; installers that saw the old one would fail",
            fix="build it under another version label, or take the published one out first (--prune)",
        )
