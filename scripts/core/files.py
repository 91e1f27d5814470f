"""Files and trees: written beside and renamed, hashed, deleted whole, installed by hard link."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from scripts.core import interrupt
from scripts.core.errors import WheelsmithError, from_os_error


def remove_tree(path: Path) -> None:
    """Delete a directory tree; a missing one is fine, read-only parts are made writable."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        _make_writable(path)
        shutil.rmtree(path)


def _make_writable(folder: Path) -> None:
    folder.chmod(0o700)
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            _make_writable(child)


def digest(value: Any) -> str:
    """Return a 20-hex-digit key for JSON-able data: the same data gives the same key on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits, read in 1 MiB blocks."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            interrupt.check()
            sha.update(block)
    return sha.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a device or pipe: nothing to put a file over
        path.write_bytes(data)
        return
    path = path.resolve() if path.is_symlink() else path
    with replacing(path) as file:
        file.write(data)


def write_changed(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file as write_atomic does, unless it holds `data` already: what was built from it stays up to date."""
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)
    path.chmod(mode)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline."""
    write_atomic(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def install_file(source: Path, final: Path, *, kind: type[WheelsmithError], variable: str) -> None:
    """Copy a file to its final name: beside, fsync, rename. Raises an error of `kind` when it cannot."""
    partial = final.with_name(f".{final.name}.partial")
    try:
        with source.open("rb") as reader, partial.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        partial.replace(final)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise from_os_error(kind, error, doing="writing", path=final, variable=variable) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside `path` that takes its place at the end, whole and on disk; a failed block leaves nothing."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
