"""Recognise known failures in a log: with line numbers, the likeliest root cause first.

A log of any size is read once, block by block. For each pattern its literal part is looked for first (a search for
plain bytes), then the pattern itself in the lines around; so a gigabyte takes seconds, not hours.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import IO

from scripts.core.errors import WheelsmithError
from scripts.failures.catalogue import Failure, catalogue, literal
from scripts.failures.logs import Block, plain, read_blocks

SHOWN = 300  # characters of a line that are shown
END = 65536  # bytes at the end of a log in which success is looked for
NEAR = 2000  # bytes around the literal part that a pattern is tried on: lines can be megabytes long
_WORDS = (b"error", b"fatal", b"failed", b"exception: ", b"***", b"not found", b"killed", b"exit", b"panick", b"fault")
_ERROR = re.compile(
    rb"\berror:|\berror\[|\bfatal(?: error)?\s*:|\bfailed:|^\s*failed |\w(?:error|exception): |cmake error"
    rb"|: \*\*\* |command not found|\bkilled\b|exit(?: code|ed with code| status):? [1-9]|panicked at"
    rb"|segmentation fault",
    re.MULTILINE,
)
_WELL = re.compile(
    rb"fixed-up wheel written to"
    rb"|successfully (?:built|installed|created|tagged|uploaded)|requirement already satisfied|naming to \S+"
    rb"|installed \d+ packages? in|build files have been written to|ninja: no work to do|^\[(\d+)/\1\] ",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Finding:
    """A known failure in a log."""

    id: str
    stage: str
    line: int
    """Number of the first line that shows it, from 1."""
    text: str
    """That line, without timestamps and colours."""


@dataclass(frozen=True)
class Diagnosis:
    """What a log shows."""

    findings: tuple[Finding, ...]
    """Likeliest root cause first."""
    error: Finding | None
    """First line that looks like an error, whether known or not; its id is ""."""
    ended_well: bool


@dataclass(frozen=True)
class _Pattern:
    failure: Failure
    first: bytes
    """What every match contains, in lower case."""
    regex: re.Pattern[str]
    wide: bool
    """Whether it may go over a line's end."""


@cache
def _patterns() -> tuple[_Pattern, ...]:
    return tuple(
        _Pattern(failure, literal(text).encode(), re.compile(text), r"\s+" in text)
        for failure in catalogue().values()
        for text in failure.patterns
    )


@dataclass
class _Seen:
    """What was found so far."""

    lines: dict[int, dict[str, str]] = field(default_factory=dict)
    """By line number: failure id and the line's text."""
    found: set[str] = field(default_factory=set)
    error: Finding | None = None
    ended_well: bool = False


def diagnose(stream: IO[bytes]) -> Diagnosis:
    """Read a log and return what it shows. Raises OSError, EOFError or zlib.error when it cannot be read."""
    seen = _Seen()
    for block in read_blocks(stream):
        lower = block.text.lower()
        _match(block, lower, seen)
        _watch(block, lower, seen)
    return Diagnosis(_ranked(seen), seen.error, seen.ended_well)


def diagnose_text(text: str) -> Diagnosis:
    """Return what a piece of a log shows."""
    return diagnose(BytesIO(text.encode("utf-8", "replace")))


def _match(block: Block, lower: bytes, seen: _Seen) -> None:
    breaks: list[int] = []
    for pattern in _patterns():
        at = lower.find(pattern.first)
        if at >= 0 and not breaks:
            breaks = [match.start() for match in re.finditer(rb"\n", block.text)]
        while at >= 0:
            index = bisect.bisect_left(breaks, at)
            if (hit := _matches(block, breaks, at, pattern)) is not None:
                seen.lines.setdefault(block.line + hit[0], {})[pattern.failure.id] = hit[1]
                if pattern.failure.id in seen.found:  # one later line is enough to see what shares it
                    break
                seen.found.add(pattern.failure.id)
            end = breaks[index] if index < len(breaks) else len(lower)
            at = lower.find(pattern.first, end)


def _matches(block: Block, breaks: Sequence[int], at: int, pattern: _Pattern) -> tuple[int, str] | None:
    """Return (line within the block, its text) where the pattern is around `at`; None when it is not."""
    index = bisect.bisect_left(breaks, at)
    first, last = (max(0, index - 1), index + 1) if pattern.wide else (index, index)
    start = breaks[first - 1] + 1 if first else 0
    end = breaks[last] if last < len(breaks) else len(block.text)
    near = block.text[max(start, at - NEAR) : min(end, at + NEAR)]
    first += block.text.count(b"\n", start, max(start, at - NEAR))
    lines = [plain(line) for line in near.decode("utf-8", "replace").split("\n")]
    match = pattern.regex.search("\n".join(lines))
    if match is None:
        return None
    offset = match.string.count("\n", 0, match.start())
    row_start = sum(len(line) + 1 for line in lines[:offset])
    return first + offset, _around(lines[offset], match.start() - row_start)


def _around(line: str, at: int) -> str:
    begin = max(0, at - SHOWN // 2) if len(line) > SHOWN else 0
    return ("…" if begin else "") + line[begin : begin + SHOWN] + ("…" if len(line) > begin + SHOWN else "")


def _watch(block: Block, lower: bytes, seen: _Seen) -> None:
    """Note the first line that looks like an error, and whether the log ends well."""
    if seen.error is None and (at := _first_error(lower)) is not None:
        line = _line(block.text, at).decode("utf-8", "replace")
        seen.error = Finding("", "", block.line + block.text.count(b"\n", 0, at), plain(line)[:SHOWN])
    last = lower[-END:]
    well = [match.end() for match in _WELL.finditer(last)]
    seen.ended_well = bool(well) and _ERROR.search(last, well[-1]) is None


def _first_error(lower: bytes) -> int | None:
    """Return where the first line that looks like an error is; words are looked for first, which is faster."""
    best: int | None = None
    for word in _WORDS:
        at = lower.find(word, 0, best)
        while at >= 0:
            start = lower.rfind(b"\n", 0, at) + 1
            if _ERROR.search(_line(lower, at)):
                best = start
                break
            at = lower.find(word, at + len(word), best)
    return best


def _line(text: bytes, at: int) -> bytes:
    """Return the line around `at`, NEAR bytes to each side at most."""
    end = text.find(b"\n", at, at + NEAR)
    return text[max(at - NEAR, text.rfind(b"\n", 0, at) + 1) : end if end >= 0 else at + NEAR]


def _ranked(seen: _Seen) -> tuple[Finding, ...]:
    known = catalogue()
    first: dict[str, Finding] = {}
    for line, ids in sorted(seen.lines.items()):
        hidden = {name for item in ids for name in known[item].over}
        for item in ids:
            if item not in hidden and item not in first:
                first[item] = Finding(item, known[item].stage.value, line, ids[item])
    kept = [item for item in first.values() if not (seen.ended_well and known[item.id].recoverable)]
    place = {name: index for index, name in enumerate(known)}
    return tuple(sorted(kept, key=lambda item: (known[item.id].order, item.line, place[item.id])))


def recognised(error: WheelsmithError) -> WheelsmithError:
    """Return a failed stage's error with the catalogue's entry for what the tool said, where there is one."""
    said = error.output or error.detail
    findings = diagnose_text(said).findings if said else ()
    if findings and not error.docs.startswith("docs/failures.md"):
        entry = catalogue()[findings[0].id]
        error.why = f"{entry.title} ({entry.id}). {entry.cause}"
        error.fix = [entry.fix, *error.fix]
        error.docs = entry.link
    return error
