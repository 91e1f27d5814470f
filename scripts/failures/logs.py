"""Logs as they come: any size, streamed; colours, carriage returns, timestamps, the prefixes of servers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.failures.log_files import Readable
from scripts.failures.log_shapes import Shape, reshaped, shape_of, unwrapped

BLOCK = 1 << 20  # bytes read at once
CONTEXT = 4096  # bytes of the lines before a block that are kept with it, for messages that go over two lines
UNWRAPPED = 8 << 20  # bytes of a log that are joined again: what a terminal or a mail wrapped is not longer

_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_ECHO = re.compile(rb"^((?:\d{4}-\S+Z )?)\x1b\[36;1m.*$", re.MULTILINE)  # GitHub prints a step's script so
_ENTITY = re.compile(rb"&(quot|apos|lt|gt|amp|nbsp|#0?3[49]|#x2[27]|#x3[cCeE]|#6[02]);")
_ENTITIES = {
    b"quot": b'"', b"#34": b'"', b"#034": b'"', b"#x22": b'"', b"apos": b"'", b"#39": b"'", b"#039": b"'",
    b"#x27": b"'", b"lt": b"<", b"#60": b"<", b"#x3c": b"<", b"#x3C": b"<", b"gt": b">", b"#62": b">", b"#x3e": b">",
    b"#x3E": b">", b"amp": b"&", b"nbsp": b" ",
}  # fmt: skip
_QUOTES = re.compile(rb"\xe2\x80[\x98\x99\x9c\x9d]")  # gcc's in UTF-8 locales
_PREFIXES = re.compile(
    r"^\ufeff?(?:[\w.-]+\s+\|\s+)?"  # docker compose: `web-1  | `
    r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*(?:Z|[+-]\d\d:?\d\d)?\s)?"  # GitHub Actions, kubectl --timestamps
    r"(?:(?:stdout|stderr) [FP] )?"  # containerd's files
    r"(?:#\d+\s+\d+\.\d+\s)?"  # docker buildkit: `#12 34.56 `
    r"(?:\[rank\d+\]:\s?)?"  # torch.distributed
    r"(?:\([\w ]+ pid=\d+\)\s)*"  # vLLM's processes
    r"(?:[A-Z]{4,8} \d\d-\d\d \d\d:\d\d:\d\d (?:\[\S+:\d+\]|\S+:\d+\])\s?)?"  # vLLM's logger
    r"[ \t│|]*"  # what uv and rich draw beside wrapped text
)
_SECRET = re.compile(r"(\w+://)[^/\s@]+@")


@dataclass(frozen=True)
class Block:
    """Whole lines of a log without colours, as bytes in UTF-8, CONTEXT of the lines before them included."""

    text: bytes
    line: int
    """Number of its first line, from 1."""
    numbers: Sequence[int] | None = None
    """Number of each row in the file, where rows are not its lines."""
    again: bool = False
    """Whether its lines came before in another form (wrapped)."""

    def number(self, row: int) -> int:
        """Return the number in the file of a row, from 0, of this block."""
        return self.numbers[min(row, len(self.numbers) - 1)] if self.numbers else self.line + row


def read_blocks(stream: Readable, *, size: int = BLOCK) -> Iterator[Block]:
    """Yield a log's blocks. Raises what the stream raises when it is broken."""
    shape: tuple[Shape, int] | None = None
    read = 0
    for text, line in _whole_lines(stream, size):
        shape = shape or shape_of(text)
        if shape[0] in {Shape.JSON, Shape.HTML}:
            rows, numbers = reshaped(text, line, shape[0])
            yield Block(_clean(rows), line, numbers)
            continue
        yield Block(text, line)
        read += len(text)
        if shape[0] is Shape.WRAPPED and read < UNWRAPPED:
            for glue in (b"", b" "):
                rows, numbers = unwrapped(text, line, shape[1], glue=glue)
                yield Block(rows, line, numbers, again=True)


def _whole_lines(stream: Readable, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield (whole lines, cleaned, with some of those before; the first one's number)."""
    rest, kept, line = b"", b"", 1
    for piece in iter(lambda: stream.read(size), b""):
        whole, rest = _cut(rest + piece, size)
        if not whole:
            continue
        text = kept + whole
        yield text, line
        kept = _tail(text)
        line += text.count(b"\n") - kept.count(b"\n")
    if rest:
        yield kept + _clean(rest), line


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Split into whole lines, cleaned, and the rest; a line longer than `size` is cut."""
    end = data.rfind(b"\n") + 1 or (len(data) if len(data) > size else 0)
    return _clean(data[:end]), data[end:]


def _clean(data: bytes) -> bytes:
    if b"\x1b" in data:
        data = _ANSI.sub(b"", _ECHO.sub(rb"\1", data) if b"\x1b[36;1m" in data else data)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if b"\0" in data:  # a log that was truncated while it was written
        data = data.replace(b"\0", b"")
    if b"\xe2\x80" in data:
        data = _QUOTES.sub(b"'", data)
    if _ENTITY.search(data):
        data = _ENTITY.sub(lambda match: _ENTITIES[match[1]], data)
    return data


def _tail(text: bytes) -> bytes:
    """Return the last two lines, CONTEXT bytes of them at most."""
    start = text.rfind(b"\n", 0, max(0, text.rfind(b"\n", 0, max(0, len(text) - 1)))) + 1
    return text[max(start, len(text) - CONTEXT) :]


def plain(line: str) -> str:
    """Return a line without what a log puts before it, and without passwords in URLs."""
    return _SECRET.sub(r"\1", _PREFIXES.sub("", line).strip())
