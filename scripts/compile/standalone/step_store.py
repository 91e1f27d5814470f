"""Results of compile steps on disk, by key: files, what the step said, what it took. Standard library only.

An entry is one file: a line of form, the sha256 of the rest, and the rest compressed. It is written beside and renamed,
so there are whole entries only; one whose digest differs is removed and counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress

_FORM = b"wheelsmith step 1\n"
_LIMIT = 1 << 31  # bytes of an unpacked entry


class Store:
    """Entries below a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, key[:2], key[2:])  # noqa: PTH118

    def get(self, key: str, targets: list[str]) -> tuple[bytes, float] | None:
        """Write an entry's files to `targets`; return what its step said and the seconds it took, None without one."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read()
        except OSError:
            return None
        try:
            said, seconds, files = _unpack(data, key, len(targets))
        except (ValueError, KeyError, TypeError, zlib.error):
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
        path = self._path(key)
        partial = f"{path}.{os.getpid()}.partial"
        try:
            files = []
            for source in sources:
                with open(source, "rb") as file:  # noqa: PTH123
                    files.append(file.read().split(os.fsencode(source)))  # a stub names itself
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(partial, "wb") as file:  # noqa: PTH123
                file.write(_pack(key, files, said, seconds))
            os.replace(partial, path)  # noqa: PTH105
        except OSError:
            with suppress(OSError):
                os.unlink(partial)  # noqa: PTH108


def _pack(key: str, files: list[list[bytes]], said: bytes, seconds: float) -> bytes:
    sizes = [[len(piece) for piece in pieces] for pieces in files]
    head = {"key": key, "sizes": sizes, "said": len(said), "seconds": round(seconds, 3)}
    body = b"".join([json.dumps(head).encode(), b"\n", said, *(piece for pieces in files for piece in pieces)])
    packed = zlib.compress(body, 1)
    return _FORM + hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed


def _unpack(data: bytes, key: str, count: int) -> tuple[bytes, float, list[list[bytes]]]:
    """Return (what the step said, seconds, each file's pieces). Raises ValueError, KeyError, TypeError, zlib.error."""
    form, digest, packed = data[: len(_FORM)], data[len(_FORM) : len(_FORM) + 65], data[len(_FORM) + 65 :]
    if form != _FORM or digest != hashlib.sha256(packed).hexdigest().encode() + b"\n":
        raise ValueError("damaged")
    unpacker = zlib.decompressobj()
    body = unpacker.decompress(packed, _LIMIT)
    first, _, rest = body.partition(b"\n")
    head = json.loads(first)
    said, at = rest[: head["said"]], head["said"]
    files = []
    for sizes in head["sizes"]:
        pieces = []
        for size in sizes:
            pieces.append(rest[at : at + size])
            at += size
        files.append(pieces)
    if head["key"] != key or len(files) != count or at != len(rest) or not unpacker.eof:
        raise ValueError("another entry")
    return said, float(head["seconds"]), files
