"""Results of compile steps on disk, by key: files, what the step said, what it took. Standard library only.

An entry is one file: a line of form, the sha256 of the rest, and the rest compressed; inside is its key. It is written
beside and renamed, so there are whole entries only; one whose digest or key differs is removed and counts as not there.
What is not there may come from other machines: wheelsmith's process fetches it into the folder (shared_steps.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from contextlib import suppress

_FORM = b"wheelsmith step 1\n"
_LIMIT = 1 << 29  # bytes of an unpacked entry
_LONGEST = 1e7  # seconds of a step

TYPE_CHECKING = False  # typing takes 10 ms to import
if TYPE_CHECKING:
    from scripts.compile.standalone.step_sharing import Sharing


class Store:
    """Entries below a folder, and those of other machines behind it."""

    def __init__(self, folder: str, sharing: Sharing | None = None) -> None:
        self.folder, self._sharing = folder, sharing

    def path(self, key: str) -> str:
        """Return where an entry lies."""
        return os.path.join(self.folder, key[:2], key[2:])  # noqa: PTH118

    def get(self, key: str, targets: list[str]) -> tuple[bytes, float] | None:
        """Write an entry's files to `targets`; return what its step said and the seconds it took, None without one."""
        found = self._read(key, targets)
        if found is None and self._sharing is not None and self._sharing.fetch(key):
            found = self._read(key, targets)
        return found

    def _read(self, key: str, targets: list[str]) -> tuple[bytes, float] | None:
        path = self.path(key)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read()
        except OSError:
            return None
        try:
            said, seconds, files = unpack(data, key)
            if len(files) != len(targets):
                raise ValueError("another entry")  # noqa: TRY301
        except ValueError:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108
            return None
        for target, pieces in zip(targets, files):  # noqa: B905  (Python 3.9 knows no strict)
            with open(target, "wb") as file:  # noqa: PTH123
                file.write(os.fsencode(target).join(pieces))
        with suppress(OSError):
            os.utime(path)  # the oldest go first when there is too much
        return said, seconds

    def put(self, key: str, sources: list[str], said: bytes, seconds: float) -> None:
        """Keep a step's files. What cannot be written is not kept: the step is done again another time."""
        files = []
        try:
            for source in sources:
                with open(source, "rb") as file:  # noqa: PTH123
                    files.append(file.read().split(os.fsencode(source)))  # a stub names itself
        except OSError:
            return
        if self.keep(key, pack(key, files, said, seconds)) and self._sharing is not None:
            self._sharing.offer(key)

    def keep(self, key: str, entry: bytes) -> bool:
        """Write an entry; return whether it could be written."""
        path = self.path(key)
        partial = "%s.%d.%d.partial" % (path, os.getpid(), threading.get_ident())  # noqa: UP031
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(partial, "wb") as file:  # noqa: PTH123
                file.write(entry)
            os.replace(partial, path)  # noqa: PTH105
        except OSError:
            with suppress(OSError):
                os.unlink(partial)  # noqa: PTH108
            return False
        return True


def pack(key: str, files: list[list[bytes]], said: bytes, seconds: float) -> bytes:
    """Return an entry; each file is in pieces, between which stood its own path."""
    sizes = [[len(piece) for piece in pieces] for pieces in files]
    head = {"key": key, "sizes": sizes, "said": len(said), "seconds": round(seconds, 3)}
    body = b"".join([json.dumps(head).encode(), b"\n", said, *(piece for pieces in files for piece in pieces)])
    packed = zlib.compress(body, 1)
    return _FORM + hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed


def unpack(data: bytes, key: str) -> tuple[bytes, float, list[list[bytes]]]:
    """Return (what the step said, seconds, each file's pieces). Raises ValueError unless it is this key's, and whole.

    The bytes may be anybody's: who can write to a shared store can write anything, as long as it has a digest.
    """
    try:
        return _unpack(data, key)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError, zlib.error) as error:
        raise ValueError("damaged") from error


def _unpack(data: bytes, key: str) -> tuple[bytes, float, list[list[bytes]]]:
    form, digest, packed = data[: len(_FORM)], data[len(_FORM) : len(_FORM) + 65], data[len(_FORM) + 65 :]
    if form != _FORM or digest != hashlib.sha256(packed).hexdigest().encode() + b"\n":
        raise ValueError("damaged")
    unpacker = zlib.decompressobj()
    body = unpacker.decompress(packed, _LIMIT)
    first, _, rest = body.partition(b"\n")
    head = json.loads(first)
    lengths = [head["said"], *(size for sizes in head["sizes"] for size in sizes)]
    seconds = float(head["seconds"])
    whole = all(type(size) is int and size >= 0 for size in lengths) and sum(lengths) == len(rest)
    if head["key"] != key or not whole or not unpacker.eof or unpacker.unused_data or not 0 <= seconds <= _LONGEST:
        raise ValueError("another entry")
    at = head["said"]
    files = []
    for sizes in head["sizes"]:
        pieces = []
        for size in sizes:
            pieces.append(rest[at : at + size])
            at += size
        files.append(pieces)
    return rest[: head["said"]], seconds, files
