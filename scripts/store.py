"""Where a static index lies: a directory, or an object store. Files are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock, Timeout

from scripts.cache import replacing, write_atomic
from scripts.console import Console
from scripts.errors import PublishError, from_os_error

BLOCK = 1 << 20
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True)
class Stored:
    """A small file as it was read."""

    data: bytes
    tag: str
    """What the store calls this very content, to replace nothing else; "" where a lock does that."""


class Store(Protocol):
    """Files under keys such as `simple/vllm/index.html`. All methods raise PublishError."""

    @property
    def location(self) -> str:
        """Where it is, for people."""

    def lock(self, console: Console) -> AbstractContextManager[None]:
        """Keep other publishers out, where the store can."""

    def keys(self, prefix: str) -> list[str]:
        """Return the keys in a folder (`entries/`)."""

    def read(self, key: str) -> Stored | None:
        """Return a small file, None when it is not there."""

    def write(self, key: str, data: bytes, *, over: Stored | None) -> bool:
        """Write a small file; False, and nothing written, when it is no longer what was read (`over`, None: absent)."""

    def add_file(self, key: str, path: Path, sha256: str) -> None:
        """Copy a file of any size; refuse one that is no longer what `sha256` says."""

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None when it is not there."""

    def remove(self, key: str) -> None:
        """Remove a file; a missing one is fine."""


class Directory:
    """A directory, of this machine or mounted; one publisher at a time (flock)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def location(self) -> str:
        """The path."""
        return str(self.root)

    @contextmanager
    def lock(self, console: Console) -> Iterator[None]:
        """Hold the directory's lock, which the kernel releases when the process dies; clear what killed ones left."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".publish.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                console.note(f"waiting for another publisher of {self.root}")
                lock.acquire()
        except OSError as error:
            raise self._error(error, "locking", self.root) from error
        try:
            self._clear()
            yield
        finally:
            lock.release()

    def _clear(self) -> None:
        try:
            for left in self.root.rglob(".*.partial"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise self._error(error, "clearing left-overs", self.root) from error

    def _error(self, error: OSError, doing: str, path: Path) -> PublishError:
        made = from_os_error(PublishError, error, doing=doing, path=path, variable="--to")
        return PublishError(made.what, why=made.why, fix=made.fix)

    def keys(self, prefix: str) -> list[str]:
        """Return the files directly in a folder."""
        folder = self.root / prefix
        try:
            names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise self._error(error, "listing", folder) from error
        return [prefix + name for name in names if not name.startswith(".")]

    def read(self, key: str) -> Stored | None:
        """Return a file's content."""
        try:
            return Stored((self.root / key).read_bytes(), "")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error, "reading", self.root / key) from error

    def write(self, key: str, data: bytes, *, over: Stored | None) -> bool:
        """Write a file beside its name, then rename. The lock keeps others out."""
        path = self.root / key
        try:
            if over is None and path.exists():
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise self._error(error, "writing", path) from error
        return True

    def add_file(self, key: str, path: Path, sha256: str) -> None:
        """Copy a file beside its name, check it on the way, then rename; holes stay holes."""
        final = self.root / key
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with replacing(final) as target:
                check_unchanged(path, _copy(path, target), sha256)
        except OSError as error:
            raise self._error(error, f"copying {path.name}", final) from error

    def size(self, key: str) -> int | None:
        """Return a file's size."""
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error, "reading", self.root / key) from error

    def remove(self, key: str) -> None:
        """Remove a file, and the folders that are empty then."""
        path = self.root / key
        try:
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()
        except OSError as error:
            raise self._error(error, "removing", path) from error


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
