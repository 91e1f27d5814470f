"""Logs as they come: any size, streamed; colours, carriage returns, timestamps, UTF-16, gzip."""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

BLOCK = 1 << 20  # bytes read at once
CONTEXT = 4096  # bytes of the lines before a block that are kept with it, for messages that go over two lines

_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_PREFIXES = re.compile(
    r"^\ufeff?(?:[\w.-]+\s+\|\s+)?"  # docker compose: `web-1  | `
    r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*(?:Z|[+-]\d\d:?\d\d)?\s)?"  # GitHub Actions, kubectl --timestamps
    r"(?:#\d+\s+\d+\.\d+\s)?"  # docker buildkit: `#12 34.56 `
    r"[ \t│|]*"  # what uv and rich draw beside wrapped text
)
_SECRET = re.compile(r"(\w+://)[^/\s@]+@")


class Readable(Protocol):
    """What is read: a file or a pipe."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end."""


@dataclass(frozen=True)
class Block:
    """Whole lines of a log without colours, as bytes in UTF-8, CONTEXT of the lines before them included."""

    text: bytes
    line: int
    """Number of its first line, from 1."""


def read_blocks(stream: IO[bytes], *, size: int = BLOCK) -> Iterator[Block]:
    """Yield a log's blocks. Raises OSError, EOFError or zlib.error when a gzip file is broken."""
    rest, kept, line = b"", b"", 1
    for piece in _decoded(stream, size):
        whole, rest = _cut(rest + piece, size)
        if not whole:
            continue
        text = kept + whole
        yield Block(text, line)
        kept = _tail(text)
        line += text.count(b"\n") - kept.count(b"\n")
    if rest:
        yield Block(kept + _clean(rest), line)


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Split into whole lines, cleaned, and the rest; a line longer than `size` is cut."""
    end = data.rfind(b"\n") + 1 or (len(data) if len(data) > size else 0)
    return _clean(data[:end]), data[end:]


def _clean(data: bytes) -> bytes:
    data = _ANSI.sub(b"", data) if b"\x1b" in data else data
    return data.replace(b"\r\n", b"\n").replace(b"\r", b" ") if b"\r" in data else data


def _tail(text: bytes) -> bytes:
    """Return the last two lines, CONTEXT bytes of them at most."""
    start = text.rfind(b"\n", 0, max(0, text.rfind(b"\n", 0, max(0, len(text) - 1)))) + 1
    return text[max(start, len(text) - CONTEXT) :]


def _decoded(stream: IO[bytes], size: int) -> Iterator[bytes]:
    first = stream.read(4)
    joined = _Joined(first, stream)
    if first[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=joined) as unpacked:  # type: ignore[call-overload]
            yield from iter(lambda: unpacked.read(size), b"")
    elif first[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:  # PowerShell's `> file`
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        for piece in iter(lambda: joined.read(size), b""):
            yield decoder.decode(piece).encode()
    else:
        yield from iter(lambda: joined.read(size), b"")


class _Joined:
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: Readable) -> None:
        self._first, self._stream = first, stream

    def read(self, size: int = BLOCK) -> bytes:
        if self._first:
            taken, self._first = self._first[:size], self._first[size:]
            return taken
        return self._stream.read(size)


def plain(line: str) -> str:
    """Return a line without what a log puts before it, and without passwords in URLs."""
    return _SECRET.sub(r"\1", _PREFIXES.sub("", line).strip())
