"""Recognise known failures in a log: with line numbers, the likeliest root cause first.

A log of any size is read once, block by block. One pass of Hyperscan says which patterns can be in a block; those are
looked for by their literal part, then tried on the lines around. So a gigabyte takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO

from scripts.core.errors import WheelsmithError
from scripts.failures import error_lines
from scripts.failures.catalogue import Failure, catalogue, literal
from scripts.failures.log_files import Readable, open_logs
from scripts.failures.logs import Block, plain, read_blocks
from scripts.failures.prefilter import SMALL, Prefilter, library

SHOWN = 300  # characters of a line that are shown
END = 65536  # bytes at the end of a log in which success is looked for
NEAR = 2000  # bytes around the literal part that a pattern is tried on: lines can be megabytes long
TRIED = 400  # lines of a block that are looked at in vain for one pattern, or for the first error
_WELL = re.compile(
    rb"fixed-up wheel written to"
    rb"|successfully (?:built|installed|created|tagged|uploaded)|naming to \S+"
    rb"|installed \d+ packages? in|build files have been written to|ninja: no work to do|^(?:\S+Z )?\[(\d+)/\1\] "
    rb"|\[100%\] built target|nothing to be done for|is up to date\.|build succeeded|build successful|finished: success"
    rb"|job succeeded|application startup complete|writing image sha256|cleaning up orphan processes|=+ \d+ passed"
    rb"|uploading artifact.*complete|exporting manifest|requirement already satisfied",
    re.IGNORECASE | re.MULTILINE,
)
_WEAK_END = b"requirement already satisfied"  # says nothing of what came before
_CI_ERROR = b"##[error]"


@dataclass(frozen=True)
class LogFinding:
    """A known failure in a log."""

    id: str
    stage: str
    line: int
    """Number of the first line that shows it, from 1."""
    text: str
    """That line, without timestamps and colours."""
    file: str = ""
    """Which log of an archive; "" for a log by itself."""


@dataclass(frozen=True)
class Diagnosis:
    """What a log shows."""

    findings: tuple[LogFinding, ...]
    """Likeliest root cause first."""
    error: LogFinding | None
    """The line a person would look for, whether known or not; its id is ""."""
    ended_well: bool
    empty: bool = False
    """Whether there was nothing to read."""
    slow: bool = False
    """Whether it was read without Hyperscan, which large logs are many times faster with."""


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
        _Pattern(failure, literal(text).encode(), re.compile(text, re.MULTILINE), r"\s+" in text)
        for failure in catalogue().values()
        for text in failure.patterns
    )


@cache
def _prefilter() -> Prefilter | None:
    hyperscan = library()
    patterns = [text for failure in catalogue().values() for text in failure.patterns]
    return Prefilter(hyperscan, patterns) if hyperscan else None


@dataclass
class _Seen:
    """What was found so far."""

    lines: dict[int, dict[str, str]] = field(default_factory=dict)
    """By line number: failure id and the line's text."""
    found: dict[str, int] = field(default_factory=dict)
    """By failure: on how many lines, 2 at most of those looked for."""
    tried: dict[str, int] = field(default_factory=dict)
    """By failure: how often a pattern's literal part was there and the pattern was not."""
    error: LogFinding | None = None
    weighed: int = 0
    """In how many blocks the error was looked for."""
    loud: bool = False
    """Whether `error` is the tool's own, not a consequence."""
    ci_error: bool = False
    well: int = 0
    """Line of the last sign of success that no error follows; 0 for none."""
    rows: int = 0
    slow: bool = False
    """Whether large parts were read without Hyperscan."""


def diagnose(stream: Readable) -> Diagnosis:
    """Read a log, or an archive of logs, and return what it shows.

    Raises UsageError for what is no text; OSError, EOFError, zlib.error and their kin when it is broken.
    """
    parts = [(name, _one(log)) for name, log in open_logs(stream)]
    first: dict[str, LogFinding] = {}
    for name, part in parts:
        for item in part.findings:
            first.setdefault(item.id, replace(item, file=name))
    errors = [
        (not loud, index, replace(part.error, file=name))
        for index, (name, part) in enumerate(parts)
        if part.error is not None and not part.ended_well
        for loud in [error_lines.weight(part.error.text) == error_lines.LOUD]
    ]
    place = {name: index for index, name in enumerate(catalogue())}
    known = catalogue()
    order = {name: index for index, (name, _) in enumerate(parts)}
    ranked = sorted(first.values(), key=lambda it: (known[it.id].order, order[it.file], it.line, place[it.id]))
    error = min(errors)[2] if errors else next((part.error for _, part in parts if part.error), None)
    well = bool(parts) and not errors and any(part.ended_well for _, part in parts)
    empty, slow = all(part.empty for _, part in parts), any(part.slow for _, part in parts)
    return Diagnosis(tuple(ranked), error, well, empty=empty, slow=slow)


def _one(stream: Readable) -> Diagnosis:
    """Read one log and return what it shows."""
    seen = _Seen()
    ends: list[Block] = []
    for block in read_blocks(stream):
        _match(block, seen)
        if not block.again:
            ends = [*ends[-1:], block]
            seen.rows += len(block.text)
            seen.ci_error = seen.ci_error or _CI_ERROR in block.text
            if not seen.loud:
                _find_error(block, seen)
    seen.well = _ended_well(ends)
    well = bool(seen.well) and not seen.ci_error
    return Diagnosis(_ranked(seen), seen.error, well, empty=not seen.rows, slow=seen.slow)


def diagnose_text(text: str) -> Diagnosis:
    """Return what a piece of a log shows."""
    return diagnose(BytesIO(text.encode("utf-8", "replace")))


def _candidates(block: Block, seen: _Seen) -> Iterator[_Pattern]:
    """Yield the patterns that may be in a block and whose failures are not found twice yet."""
    patterns = _patterns()
    large = len(block.text) > SMALL
    fast = _prefilter() if large else None
    seen.slow = seen.slow or (large and fast is None)
    for place in sorted(fast.candidates(block.text)) if fast else range(len(patterns)):
        if seen.found.get(patterns[place].failure.id, 0) < (1 if block.again else 2):
            yield patterns[place]


def _match(block: Block, seen: _Seen) -> None:
    lower = b""
    for pattern in _candidates(block, seen):
        lower = lower or block.text.lower()
        name = pattern.failure.id
        at = lower.find(pattern.first)
        tries = TRIED if seen.tried.get(name, 0) < TRIED * 10 else TRIED // 20
        while at >= 0 and tries:
            if (hit := _matches(block, at, pattern)) is not None:
                ids = seen.lines.setdefault(block.number(hit[0]), {})
                seen.found[name] = seen.found.get(name, 0) + (name not in ids)
                ids[name] = hit[1]
                if seen.found[name] > 1:  # one later line is enough to see what shares it
                    break
            else:
                tries -= 1
                seen.tried[name] = seen.tried.get(name, 0) + 1
            end = lower.find(b"\n", at)
            at = lower.find(pattern.first, end) if end >= 0 else -1


def _matches(block: Block, at: int, pattern: _Pattern) -> tuple[int, str] | None:
    """Return (row within the block, its text) where the pattern is around `at`; None when it is not."""
    start, end = _rows(block.text, at, before=1 if pattern.wide else 0, after=1 if pattern.wide else 0)
    start, end = max(start, at - NEAR), min(end, at + NEAR)
    raw = block.text[start:end].decode("utf-8", "replace").split("\n")
    lines = [plain(line) for line in raw]
    match = pattern.regex.search("\n".join(lines))
    if match is None:
        return None
    offset = match.string.count("\n", 0, match.start())
    place = start + sum(len(line.encode("utf-8", "replace")) + 1 for line in raw[:offset])
    if _is_quoted(block, min(place, len(block.text))):
        return None
    row_start = sum(len(line) + 1 for line in lines[:offset])
    row = block.text.count(b"\n", 0, start) + offset
    return row, _around(lines[offset], match.start() - row_start)


def _rows(text: bytes, at: int, *, before: int, after: int = 0) -> tuple[int, int]:
    """Return where the line around `at` begins and ends, with some lines before and after it."""
    start = text.rfind(b"\n", 0, at)
    for _ in range(before):
        start = text.rfind(b"\n", 0, max(0, start)) if start > 0 else start
    end = text.find(b"\n", at)
    for _ in range(after):
        end = text.find(b"\n", end + 1) if end >= 0 else end
    return start + 1, end if end >= 0 else len(text)


def _is_quoted(block: Block, at: int) -> bool:
    """Return whether the line around `at` only quotes source code."""
    start, end = _rows(block.text, at, before=2)
    if at - start > 3 * NEAR:  # lines that are too long to look at
        return False
    raw = block.text[start : min(end, at + NEAR)].decode("utf-8", "replace").split("\n")
    return error_lines.is_quoted([plain(line) for line in raw], raw, len(raw) - 1)


def _around(line: str, at: int) -> str:
    begin = max(0, at - SHOWN // 2) if len(line) > SHOWN else 0
    return ("…" if begin else "") + line[begin : begin + SHOWN] + ("…" if len(line) > begin + SHOWN else "")


def _ended_well(blocks: list[Block]) -> int:
    """Return the line in a log's last blocks that says that all went well; 0 when none does or an error follows."""
    for block in reversed(blocks):
        if line := _well_line(block):
            return line
        if len(block.text) >= END or error_lines.follows(block.text, 0):
            break
    return 0


def _well_line(block: Block) -> int:
    """Return the line near a block's end that says that all went well; 0 when none does or an error follows."""
    well = list(_WELL.finditer(block.text, max(0, len(block.text) - END)))
    if not well or error_lines.follows(block.text, well[-1].end()):
        return 0
    if all(match[0].lower() == _WEAK_END for match in well):
        return 1  # nothing that came before is taken back
    return block.number(block.text.count(b"\n", 0, well[-1].start()))


def _find_error(block: Block, seen: _Seen) -> None:
    """Look for the first line that is a tool's own error; a consequence counts until one is found."""
    looked = -1
    seen.weighed += 1
    for at in error_lines.places(block.text, TRIED if seen.weighed < 32 else TRIED // 20):
        if at < looked:
            continue
        looked = _rows(block.text, at, before=0)[1]
        line = plain(_line(block.text, at).decode("utf-8", "replace"))
        weight = error_lines.weight(line)
        if weight <= (error_lines.WEAK if seen.error else 0) or _is_quoted(block, at):
            continue
        if error_lines.is_bare(line):  # `AssertionError`: the code above it says more
            above = _rows(block.text, at, before=0)[0] - 2
            line = f"{line}: {plain(_line(block.text, max(0, above)).decode('utf-8', 'replace'))}"
        seen.error = LogFinding("", "", block.number(block.text.count(b"\n", 0, at)), line[:SHOWN])
        seen.loud = weight == error_lines.LOUD
        if seen.loud:
            return


def _line(text: bytes, at: int) -> bytes:
    """Return the line around `at`, NEAR bytes to each side at most."""
    end = text.find(b"\n", at, at + NEAR)
    return text[max(at - NEAR, text.rfind(b"\n", 0, at) + 1) : end if end >= 0 else at + NEAR]


def _ranked(seen: _Seen) -> tuple[LogFinding, ...]:
    known = catalogue()
    first: dict[str, LogFinding] = {}
    last: dict[str, int] = {}
    for line, ids in sorted(seen.lines.items()):
        hidden = {name for item in ids for name in known[item].over}
        hidden |= {item for item in ids if known[item].order == 3 and any(known[other].order < 3 for other in ids)}
        for item in ids:
            last[item] = line
            if item not in hidden and item not in first:
                first[item] = LogFinding(item, known[item].stage.value, line, ids[item])
    well = 0 if seen.ci_error else seen.well
    kept = [
        item
        for item in first.values()
        if not (well and known[item.id].recoverable) and not (last[item.id] < well and not known[item.id].lasting)
    ]
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
