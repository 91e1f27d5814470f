"""Logs as files: plain, compressed, archives of many (a zip of GitHub's logs), in any encoding of Unicode."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast

from scripts.core.errors import UsageError

PIECE = 1 << 20  # bytes read at once
HEAD = 4096  # bytes by which a file's kind is known
DEPTH = 3  # archives within archives that are opened
MEMBERS = 20_000  # files of an archive that are read
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\x0b\x0c\x1b\x08\x07\x00"))
_FOREIGN = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program or a library"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError)


class Readable(Protocol):
    """What is read: a file or a pipe."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end."""


class _Joined:
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: Readable) -> None:
        self._first, self._stream = first, stream

    def read(self, size: int = PIECE) -> bytes:
        if self._first:
            taken, self._first = self._first[:size], self._first[size:]
            return taken
        return self._stream.read(size)


def open_logs(stream: Readable, name: str = "", *, depth: int = 0) -> Iterator[tuple[str, Readable]]:
    """Yield the logs in a file: (name within it, "" for the file itself; its text as UTF-8, to be read at once).

    Raises UsageError for what is no text; OSError, EOFError, zlib.error and their kin when it is broken.
    """
    first = _head(stream)
    joined = _Joined(first, stream)
    for magic, opened in _COMPRESSED:
        if first.startswith(magic):
            with opened(joined) as unpacked:
                yield from open_logs(unpacked, name, depth=depth)
            return
    if first[:4] in {b"PK\x03\x04", b"PK\x05\x06"}:
        yield from _archive(_zip_members, joined, name, depth)
    elif first[257:262] == b"ustar":
        yield from _archive(_tar_members, joined, name, depth)
    else:
        _refuse_foreign(first, name)
        yield name, _Decoded(joined, first)


def _head(stream: Readable) -> bytes:
    first = b""
    while len(first) < HEAD and (more := stream.read(HEAD - len(first))):
        first += more
    return first


def _refuse_foreign(first: bytes, name: str) -> None:
    """Raise UsageError when the bytes are no text."""
    kind = next((words for magic, words in _FOREIGN if first.startswith(magic)), None)
    control = len(first) - len(first.translate(None, _CONTROL))
    if kind is None and _encoding(first) == "utf-8" and control > max(3, len(first) // 32):
        kind = "not text"
    if kind:
        raise UsageError(
            f"{name or 'the log'} cannot be read: it is {kind}",
            why="a log is text, or text packed as .gz, .xz, .bz2, .zst, .zip or .tar",
            fix="unpack it, and give the log itself",
        )


def _archive(
    members: Callable[[IO[bytes]], Iterator[tuple[str, Readable]]], stream: Readable, name: str, depth: int
) -> Iterator[tuple[str, Readable]]:
    if depth >= DEPTH:
        raise UsageError(f"{name} cannot be read: it is an archive in an archive in an archive", fix="unpack it")
    with tempfile.TemporaryFile() as file:  # both kinds are read from their end; a pipe has none
        for piece in iter(lambda: stream.read(PIECE), b""):
            file.write(piece)
        file.seek(0)
        for member, opened in members(cast("IO[bytes]", file)):
            try:
                yield from open_logs(opened, f"{name}/{member}" if name else member, depth=depth + 1)
            except UsageError:  # a picture among the logs
                continue


def _natural(name: str) -> tuple[object, ...]:
    """Return what sorts step 10 after step 2, and a step's own log before that of its whole job."""
    parts = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    return ("/" not in name, *parts)


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, Readable]]:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        for info in sorted(infos[:MEMBERS], key=lambda item: _natural(item.filename)):
            if info.flag_bits & 1:
                raise UsageError(f"{info.filename} cannot be read: it is encrypted", fix="unpack it with its password")
            with archive.open(info) as opened:
                yield info.filename, opened


def _tar_members(file: IO[bytes]) -> Iterator[tuple[str, Readable]]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in sorted(archive.getmembers()[:MEMBERS], key=lambda item: _natural(item.name)):
            if info.isreg() and (opened := archive.extractfile(info)) is not None:
                yield info.name, opened


@contextmanager
def _gzip(stream: _Joined) -> Iterator[Readable]:
    with gzip.GzipFile(fileobj=cast("IO[bytes]", stream)) as opened:
        yield opened


class _Pumped:
    """What a decompressor makes of a stream: many streams one after another, too."""

    def __init__(
        self, stream: Readable, make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor | _Zstd]
    ) -> None:
        self._stream, self._make, self._inner, self._rest = stream, make, make(), b""

    def read(self, size: int = PIECE) -> bytes:
        while True:
            if self._inner.eof:
                self._rest = self._inner.unused_data.lstrip(b"\0") or self._stream.read(PIECE)
                if not self._rest:
                    return b""
                self._inner = self._make()
            elif not self._rest and self._inner.needs_input:
                self._rest = self._stream.read(PIECE)
                if not self._rest:
                    raise EOFError("it ends before its end: the download or the copy was cut")
            data, self._rest = self._inner.decompress(self._rest, size), b""
            if data:
                return data


@contextmanager
def _bz2(stream: _Joined) -> Iterator[Readable]:
    yield _Pumped(stream, bz2.BZ2Decompressor)


@contextmanager
def _xz(stream: _Joined) -> Iterator[Readable]:
    yield _Pumped(stream, lzma.LZMADecompressor)


class _Zstd:
    """zstandard's decompressor with the face of lzma's: bounded output, an end that is known."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415  (only who reads such a file loads it)

        self._error = zstandard.ZstdError
        self._inner = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        self._left = b""

    @property
    def eof(self) -> bool:
        """Whether a frame has ended."""
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        """Whether all that was given is used."""
        return not self._left

    @property
    def unused_data(self) -> bytes:
        """What follows the frame."""
        return self._inner.unused_data + self._left

    def decompress(self, data: bytes, _size: int, /) -> bytes:
        """Return what a little of the input gives: a kilobyte can be 32 MB."""
        data = self._left + data
        self._left = data[1024:]
        try:
            return self._inner.decompress(data[:1024])
        except self._error as error:
            raise EOFError(str(error)) from error


@contextmanager
def _zstd(stream: _Joined) -> Iterator[Readable]:
    yield _Pumped(stream, _Zstd)


_COMPRESSED = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _bz2),
    (b"\xfd7zXZ\x00", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


def _encoding(first: bytes) -> str:
    """Return a text's encoding by its mark, else by where its zero bytes are."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if first.startswith(mark):
            return name
    even, odd = first[::2].count(0), first[1::2].count(0)
    half = max(1, len(first) // 2)
    if len(first) >= 4 and even + odd > 1.2 * half:
        return "utf-32-le" if first[0] else "utf-32-be"
    if len(first) >= 4 and odd > 0.5 * half > 4 * even:
        return "utf-16-le"
    return "utf-16-be" if len(first) >= 4 and even > 0.5 * half > 4 * odd else "utf-8"


class _Decoded:
    """A stream as UTF-8; what is UTF-8 or of one byte a character already passes as it is."""

    def __init__(self, stream: Readable, first: bytes) -> None:
        self._stream = stream
        name = _encoding(first)
        self._decoder = None if name == "utf-8" else codecs.getincrementaldecoder(name)("replace")

    def read(self, size: int = PIECE) -> bytes:
        data = self._stream.read(size)
        while self._decoder is not None and data:
            if text := self._decoder.decode(data):
                return text.encode("utf-8", "replace")
            data = self._stream.read(size)
        return data
