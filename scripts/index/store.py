"""Where a static index lies: a directory, or an object store. Files are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, Protocol

from scripts.core.console import Console, human_bytes
from scripts.core.errors import PublishError, from_os_error
from scripts.core.files import replacing, write_atomic
from scripts.index.lock import Held, publish_lock

BLOCK = 1 << 20
WAIT = 600.0
"""Seconds that a publisher waits for another one."""
SPARE = 64 << 20  # bytes that stay free for pages and records
_ZEROS = bytes(BLOCK)
_CLOCK = ".clock"


@dataclass(frozen=True)
class Stored:
    """A small file as it was read."""

    data: bytes
    tag: str
    """What the store calls this very content: an ETag, or a file's times and inode. Nothing else is replaced."""


class Store(Protocol):
    """Files under keys such as `simple/vllm/index.html`. All methods raise PublishError."""

    locked: bool
    """One publisher at a time: what is removed cannot be written by another one meanwhile."""

    @property
    def location(self) -> str:
        """Where it is, for people."""

    def lock(self, console: Console) -> AbstractContextManager[None]:
        """Keep other publishers out, where the store can."""

    def top(self) -> tuple[list[str], dict[str, str]]:
        """Return the folders (`simple/`) and the files with their tags that lie at the root; hidden ones left out."""

    def tags(self, folder: str) -> dict[str, str]:
        """Return all files below a folder (`entries/`) with their tags."""

    def read(self, key: str) -> Stored | None:
        """Return a small file, None when it is not there."""

    def write(self, key: str, data: bytes, *, over: Stored | None) -> Stored | None:
        """Write a small file and return it; None, and nothing written, when it is no longer `over` (None: absent)."""

    def add_file(self, key: str, path: Path, sha256: str) -> None:
        """Copy a file of any size; refuse one that is no longer what `sha256` says."""

    def fetch(self, key: str, path: Path) -> str:
        """Copy a file of any size to this machine; return its sha256."""

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None when it is not there."""

    def written(self, key: str) -> datetime | None:
        """Return when the store says a file was written, None when it is not there."""

    def now(self) -> datetime:
        """Return the time by the store's own clock; this machine's may be wrong."""

    def check_space(self, size: int) -> None:
        """Refuse, before anything is copied, what does not fit."""

    def remove(self, key: str) -> None:
        """Remove a file; a missing one is fine."""


class Directory:
    """A directory, of this machine or mounted; one publisher at a time (flock). Folders in it may be symlinks."""

    locked = True

    def __init__(self, root: Path, *, wait: float = WAIT) -> None:
        self.root, self._wait = root, wait
        self._held: Held | None = None

    @property
    def location(self) -> str:
        """The path."""
        return str(self.root)

    @contextmanager
    def lock(self, console: Console) -> Iterator[None]:
        """Hold the directory's lock, and clear what killed publishers left."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = publish_lock(self.root, console, wait=self._wait)
            self._held = lock.__enter__()
        except OSError as error:
            raise self._error(error, "locking", self.root) from error
        try:
            self._clear()
            yield
        finally:
            self._held = None
            lock.__exit__(None, None, None)

    def _clear(self) -> None:
        for path in self._walk(self.root, hidden=True):
            if path.name.startswith(".") and path.name.endswith(".partial"):
                path.unlink(missing_ok=True)

    def _walk(self, folder: Path, *, hidden: bool = False) -> Iterator[Path]:
        """Yield the files below a folder, through symlinks to folders, each folder once."""
        seen: set[tuple[int, int]] = set()
        waiting = [folder]
        try:
            while waiting:
                here = waiting.pop()
                stat = here.stat()
                if (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                for entry in sorted(os.scandir(here), key=lambda item: item.name):
                    if entry.is_dir():
                        waiting.append(Path(entry.path))
                    elif hidden or not entry.name.startswith("."):
                        yield Path(entry.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(error, "listing", folder) from error

    def _error(self, error: OSError, doing: str, path: Path) -> PublishError:
        made = from_os_error(PublishError, error, doing=doing, path=path, variable="--to")
        return PublishError(made.what, why=made.why, fix=made.fix)

    def top(self) -> tuple[list[str], dict[str, str]]:
        """Return the root's folders and files."""
        try:
            found = sorted(self.root.iterdir()) if self.root.is_dir() else []
            shown = [path for path in found if not path.name.startswith(".")]
            files = {path.name: _tag(path.stat()) for path in shown if path.is_file()}
            return [f"{path.name}/" for path in shown if path.is_dir()], files
        except OSError as error:
            raise self._error(error, "listing", self.root) from error

    def tags(self, folder: str) -> dict[str, str]:
        """Return the files below a folder."""
        found = {}
        for path in self._walk(self.root / folder):
            try:
                found[str(path.relative_to(self.root))] = _tag(path.stat())
            except FileNotFoundError:
                continue  # another publisher replaced it just now
            except OSError as error:
                raise self._error(error, "listing", path) from error
        return found

    def read(self, key: str) -> Stored | None:
        """Return a file's content."""
        try:
            with (self.root / key).open("rb") as file:
                return Stored(file.read(), _tag(os.fstat(file.fileno())))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error, "reading", self.root / key) from error

    def write(self, key: str, data: bytes, *, over: Stored | None) -> Stored | None:
        """Write a file beside its name, then rename. The lock keeps others out, which is checked again each time."""
        path = self.root / key
        self._check_lock()
        try:
            found = _tag(path.stat()) if path.exists() else None
            if found != (over.tag if over else None):
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
            return Stored(data, _tag(path.stat()))
        except OSError as error:
            raise self._error(error, "writing", path) from error

    def _check_lock(self) -> None:
        if self._held:
            self._held.check()

    def add_file(self, key: str, path: Path, sha256: str) -> None:
        """Copy a file beside its name, check it on the way, then rename; holes stay holes."""
        final = self.root / key
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with replacing(final) as target:
                check_unchanged(path, _copy(path, target), sha256)
        except OSError as error:
            raise self._error(error, f"copying {path.name}", final) from error

    def fetch(self, key: str, path: Path) -> str:
        """Copy a file to another place."""
        try:
            with path.open("wb") as target:
                return _copy(self.root / key, target)
        except OSError as error:
            raise self._error(error, "reading", self.root / key) from error

    def size(self, key: str) -> int | None:
        """Return a file's size."""
        found = self._stat(key)
        return found.st_size if found else None

    def written(self, key: str) -> datetime | None:
        """Return a file's time, which the machine that has the disk gave it."""
        found = self._stat(key)
        return datetime.fromtimestamp(found.st_mtime, timezone.utc) if found else None

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            return (self.root / key).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error, "reading", self.root / key) from error

    def now(self) -> datetime:
        """Return the time of a file that is written now."""
        path = self.root / _CLOCK
        try:
            path.touch()
            return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        except OSError as error:
            raise self._error(error, "reading the clock of", path) from error
        finally:
            path.unlink(missing_ok=True)

    def check_space(self, size: int) -> None:
        """Compare with what is free where wheels are put, which may be another disk."""
        places = [self.root / "files", self.root, *self.root.parents]
        free = shutil.disk_usage(next(path for path in places if path.is_dir())).free
        if size and size + SPARE > free:
            raise PublishError(
                f"{self.root} has too little space: nothing was copied",
                why=f"the new wheels have {human_bytes(size)}, free are {human_bytes(free)}",
                fix=["take old wheels out: --prune keep=3", "or make `files` a symlink to a larger disk"],
            )

    def remove(self, key: str) -> None:
        """Remove a file, and the folders that are empty then."""
        path = self.root / key
        self._check_lock()
        try:
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root or folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()
        except OSError as error:
            raise self._error(error, "removing", path) from error


def _tag(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"


def check_unchanged(path: Path, found: str, sha256: str) -> None:
    """Raise PublishError when a wheel was other bytes at its second reading."""
    if found != sha256:
        raise PublishError(
            f"{path.name} changed while it was published", fix="publish it again when nothing writes to it"
        )


def _copy(path: Path, target: BinaryIO) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(BLOCK):
            sha.update(block)
            if block == _ZEROS:
                target.seek(BLOCK, os.SEEK_CUR)
            else:
                target.write(block)
    target.truncate()
    return sha.hexdigest()
