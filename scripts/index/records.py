"""What an index holds, read with as few requests as its store allows.

A store lists what it has with a tag per file. What was read under a tag is kept in one small file (`.state.json`), so
that the next publisher reads that file, the lists, and only what is new. It is a memory, not the truth: without it
everything is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.index.entry import ENTRIES, Entry, read_entry
from scripts.index.store import Store, Stored

STATE = ".state.json"
NO_PAGES = {ENTRIES, "files/", "variants/"}
THREADS = 16


class Records:
    """The records and pages of a store. Methods raise PublishError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[str, tuple[str, Entry]] = {}
        self._pages: dict[str, tuple[str, str]] = {}
        self._state: Stored | None = None
        self._loaded = False

    def all(self) -> list[Entry]:
        """Return every record as it is now, those of wheels that were taken out too."""
        self._load()
        tags = {key: tag for key, tag in self._store.tags(ENTRIES).items() if key.endswith(".json")}
        news = [key for key, tag in tags.items() if not tag or self._entries.get(key, ("",))[0] != tag]
        for key, stored in self._read(news).items():
            if stored:
                self._entries[key] = (stored.tag, read_entry(stored.data, key))
        self._entries = {key: self._entries[key] for key in tags if key in self._entries}
        return [entry for _, entry in self._entries.values()]

    def pages(self) -> dict[str, tuple[Stored, str]]:
        """Return what stands where pages are: a tag without content, and the content's sha256 ("" when not known)."""
        self._load()
        folders, found = self._store.top()
        for folder in folders:
            if folder not in NO_PAGES:
                found.update(self._store.tags(folder))
        return {key: (Stored(b"", tag), self._known(key, tag)) for key, tag in found.items()}

    def _known(self, key: str, tag: str) -> str:
        seen, sha256 = self._pages.get(key, ("", ""))
        return sha256 if tag and seen == tag else ""

    def read_pages(self, keys: Iterable[str]) -> dict[str, tuple[Stored, str]]:
        """Read pages whose content is not known."""
        found = {}
        for key, stored in self._read(list(keys)).items():
            if stored:
                found[key] = (stored, hashlib.sha256(stored.data).hexdigest())
                self.wrote(key, stored)
        return found

    def wrote(self, key: str, stored: Stored) -> None:
        """Remember a page that was written or read."""
        self._pages[key] = (stored.tag, hashlib.sha256(stored.data).hexdigest())

    def _read(self, keys: list[str]) -> dict[str, Stored | None]:
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(keys, pool.map(self._store.read, keys), strict=True))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        self._state = self._store.read(STATE)
        try:
            state = json.loads(self._state.data) if self._state else {}
            self._pages = {str(key): (str(tag), str(sha)) for key, (tag, sha) in state.get("pages", {}).items()}
            self._entries = {
                str(key): (str(tag), Entry.model_validate(row)) for key, (tag, row) in state.get("entries", {}).items()
            }
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._pages, self._entries = {}, {}  # damaged, or of another version: everything is read again

    def save(self) -> None:
        """Write down what is known, if that is news; who loses a race here loses nothing but time."""
        rows: Mapping[str, Any] = {
            "entries": {key: [tag, entry.model_dump(mode="json")] for key, (tag, entry) in self._entries.items()},
            "pages": {key: list(seen) for key, seen in self._pages.items()},
        }
        data = json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()
        if self._state is None or self._state.data != data:
            self._state = self._store.write(STATE, data, over=self._state) or self._state
