"""Logs in other shapes than lines of text: JSON lines, HTML pages, text that was wrapped at a column.

Each is turned into plain lines with the number of the line in the file that they come from.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache

WRAPPED = range(60, 161)  # columns at which terminals and CI systems wrap
COMMON = {*range(76, 81), *range(98, 101), *range(118, 121), 132}  # one full line is enough for these
_TAGS = re.compile(
    rb"</?(?:html|head|body|div|pre|span|a|b|i|p|em|strong|font|table|tbody|tr|td|th|ul|li|code|samp|time|title"
    rb"|meta|link)\b[^<>]*>",
    re.IGNORECASE,
)
_BREAK = re.compile(rb"<(?:br|hr)\b[^<>]*>", re.IGNORECASE)
_STAMP = re.compile(rb"^(?:\d{4}-\d\d-\d\d[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)? )")
_VALUE = re.compile(r'^\s*(?:"[^"]*"\s*:\s*)?("(?:[^"\\]|\\.)*"),?\s*$')
_TOP = ("log", "message", "msg", "text", "line", "error", "exc_info", "stack", "stack_trace", "traceback", "exception")


class Shape(str, Enum):
    """How a log's lines are to be read."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    WRAPPED = "wrapped"


def shape_of(text: bytes) -> tuple[Shape, int]:
    """Return the shape that a log's beginning shows, and for WRAPPED the column."""
    start = text.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"{" or re.match(rb"\[\s*\{", start):
        return Shape.JSON, 0
    if re.search(rb"<(?:!doctype html|html|pre|span)\b", text[:4096], re.IGNORECASE):
        return Shape.HTML, 0
    width = _width(text[:65536])
    return (Shape.WRAPPED, width) if width else (Shape.TEXT, 0)


def _width(text: bytes) -> int:
    """Return the column at which text seems to be wrapped, 0 when it does not."""
    lengths = [_length(line) for line in text.split(b"\n")]
    longest = max(lengths, default=0)
    if longest not in WRAPPED:
        return 0
    full = sum(1 for length in lengths if length == longest)
    return longest if full >= 2 or longest in COMMON else 0


def _length(line: bytes) -> int:
    return len(_STAMP.sub(b"", line.rstrip(b"\r\n")).decode("utf-8", "replace"))


def reshaped(text: bytes, line: int, shape: Shape) -> tuple[bytes, list[int]]:
    """Return whole lines of a JSON or HTML log, the first of them numbered `line`, as text and each row's number."""
    rows: list[bytes] = []
    numbers: list[int] = []
    for offset, raw in enumerate(text.split(b"\n")):
        pieces = _json_lines(raw) if shape is Shape.JSON else _html_lines(raw)
        rows += pieces
        numbers += [line + offset] * len(pieces)
    return b"\n".join(rows), numbers


def _html_lines(raw: bytes) -> list[bytes]:
    bare = _TAGS.sub(b"", _BREAK.sub(b"\n", raw)).decode("utf-8", "replace")
    return html.unescape(bare).encode().split(b"\n")


def _json_lines(raw: bytes) -> list[bytes]:
    text = raw.decode("utf-8", "replace")
    try:
        value = (
            json.loads(text)
            if text[:1] == "{" and text[-1:] == "}"
            else json.loads(text.strip().rstrip(",").lstrip("[") if text.lstrip()[:2] in {"[{", "{"} else text)
        )
    except (ValueError, RecursionError):
        match = _VALUE.match(text)
        value = json.loads(match[1], strict=False) if match and "\\u" not in match[1] else text
    found = "\n".join(_strings(value)) if not isinstance(value, str) else value
    return found.encode("utf-8", "replace").rstrip(b"\n").split(b"\n")


@lru_cache(maxsize=256)
def _ordered(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys of an object, those of a log's message first: most lines of a log have the same."""
    return tuple(sorted(keys, key=lambda name: _TOP.index(name) if name in _TOP else len(_TOP)))


def _strings(value: object) -> Iterator[str]:
    """Yield the texts in a JSON value, those that hold a log's message first."""
    if isinstance(value, str):
        yield value.rstrip("\n")
    elif isinstance(value, dict):
        for key in _ordered(tuple(value)):
            item = value[key]
            if isinstance(item, str):
                yield item.rstrip("\n")
            else:
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def unwrapped(text: bytes, line: int, width: int, *, glue: bytes) -> tuple[bytes, list[int]]:
    """Return lines that were wrapped at `width` characters joined again, and the number of each one's first line.

    `glue` is put behind a line that is full: whether a word or a space was cut there cannot be seen.
    """
    rows: list[bytes] = []
    numbers: list[int] = []
    last = b""
    for offset, raw in enumerate(text.split(b"\n")):
        bare = _STAMP.sub(b"", raw)
        body = bare.strip()
        if rows and body and (between := _between(last, body, width, glue)) is not None:
            rows[-1] = rows[-1].rstrip() + between + body
        else:
            rows.append(bare)
            numbers.append(line + offset)
        last = bare
    return b"\n".join(rows), numbers


def _between(last: bytes, body: bytes, width: int, glue: bytes) -> bytes | None:
    """Return what goes between a line and the one it was cut from; None when they are two."""
    shown = last.rstrip()
    if _length(last) >= width:
        return glue if len(shown) >= len(last) else b" "
    word = body.split(b" ", 1)[0]
    return b" " if len(shown) > width // 2 and _length(shown) + 1 + _length(word) > width else None
