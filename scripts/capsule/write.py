"""Writing a capsule: one archive in parts of a size, an index with their digests, and the script that opens it.

The same members give the same bytes: sorted, without times, owners and this machine's modes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from scripts.capsule.contents import Entry
from scripts.core.errors import FetchError, UsageError, from_os_error
from scripts.core.files import remove_tree

OPENER = Path(__file__).parent / "standalone" / "opener.py"
SCRIPT, INDEX = "wheelsmith-capsule.sh", "capsule.json"
FORMAT = 1
HEAD = """#!/bin/sh
''':'
exec "${PYTHON:-python3}" "$0" "$@"
'''
# wheelsmith, with all that is needed to build without a network. Start: sh wheelsmith-capsule.sh doctor
"""
SMALLEST = 1 << 16  # bytes of a part; smaller ones are a typing error
_SIZES = {"": 1, "K": 1000, "M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """Read `60M` as bytes. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)B?", text, re.IGNORECASE)
    size = int(match[1]) * _SIZES[match[2].upper()] if match else 0
    if size < SMALLEST:
        raise UsageError(f"--split is {text!r}", why="it is the size of a part: at least 64K", fix="--split 60M")
    return size


class PartWriter:
    """A file to write to that becomes parts of at most `limit` bytes (0: one part), each with its digest."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self.parts: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._sha, self._size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            file = self._file
            if file is None or (self._limit and self._size == self._limit):
                file = self._next()
            room = self._limit - self._size if self._limit else len(view)
            block = view[:room]
            file.write(block)
            self._sha.update(block)
            self._size += len(block)
            view = view[room:]
        return len(data)

    def _next(self) -> IO[bytes]:
        self.close()
        path = self._folder / f"capsule.{len(self.parts) + 1:03d}"
        self._file, self._sha, self._size = path.open("xb"), hashlib.sha256(), 0
        return self._file

    def close(self) -> None:
        """End the part that is being written."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = Path(self._file.name).name
        self.parts.append({"name": name, "size": self._size, "sha256": self._sha.hexdigest()})
        self._file = None

    def __enter__(self) -> PartWriter:
        """Return itself."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Close the last part."""
        self.close()


def write_capsule(target: Path, members: Sequence[Entry], about: dict[str, Any], *, limit: int = 0) -> dict[str, Any]:
    """Write members, index and script into the folder `target`, whole or not at all; return the index.

    An earlier capsule there is replaced. Raises UsageError for a folder with anything else, FetchError for a full disk.
    """
    if target.exists() and not (target / INDEX).is_file():
        raise UsageError(f"{target} is there already and is no capsule", fix="name a new folder")
    try:
        with ExitStack() as stack:
            target.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
            stack.callback(remove_tree, work)
            new = work / "new"
            new.mkdir()
            with (
                PartWriter(new, limit) as parts,
                tarfile.open(fileobj=cast("IO[bytes]", parts), mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                for name, path in members:
                    _add(tar, name, path)
            index = {"format": FORMAT, **about, "parts": parts.parts}
            data = json.dumps(index, indent=1).encode()
            (new / INDEX).write_bytes(data)
            (new / SCRIPT).write_text(script(hashlib.sha256(data).hexdigest()), encoding="utf-8")
            (new / SCRIPT).chmod(0o755)
            if target.exists():
                target.rename(work / "old")
            try:
                new.rename(target)
            except OSError:
                if (work / "old").exists():
                    (work / "old").rename(target)
                raise
    except OSError as error:
        raise from_os_error(FetchError, error, doing="writing the capsule", path=target, variable="OUT") from error
    return index


def script(index: str) -> str:
    """Return the script that opens the capsule with an index of this sha256: sh and Python both read it.

    sh runs the first lines, which are a text for Python, where the opener's own has been.
    """
    text = OPENER.read_text(encoding="utf-8")
    first = ast.parse(text).body[0]
    return HEAD + "\n".join(text.split("\n")[first.end_lineno :]).replace("@INDEX@", index)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = path.stat().st_size
    entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
    with path.open("rb") as content:
        tar.addfile(entry, content)
