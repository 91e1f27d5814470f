"""Which patterns can be in a block of text: one pass for all of them, by Hyperscan.

Hyperscan reads about a gigabyte a second, whatever the number of patterns; it says which patterns may match, and
Python's `re` then says whether and where. Small texts are not worth compiling its database. Where Hyperscan cannot be
loaded, each pattern is looked for by itself, as in small texts: the answer is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from types import ModuleType

from scripts.failures.catalogue import literal

SMALL = 1 << 18  # bytes below which each pattern is looked for by itself


@cache
def library() -> ModuleType | None:
    """Return Hyperscan; None where it is not installed or not made for this machine."""
    try:
        import hyperscan  # noqa: PLC0415  (only who reads a large log loads it)
    except ImportError:
        return None
    return hyperscan


def expression(pattern: str) -> str:
    """Return an expression that matches a line wherever `pattern` does, prefixes of lines and line ends left out."""
    insensitive = pattern.startswith("(?i)")
    if r"\s+" in pattern or r"[^\n]" in pattern or "$" in pattern:  # may go over a line's end
        return "(?i)" + re.escape(literal(pattern)).replace("\\ ", " ").replace("\\'", "'")
    bare = pattern.removeprefix("(?i)").replace("^", "", 1) if pattern.startswith(("^", "(?i)^")) else pattern
    bare = bare.removeprefix("(?i)")
    return ("(?i)" if insensitive else "") + re.sub(r"\.\{\d*,\d+\}", ".*", bare)


class Prefilter:
    """A compiled set of patterns; with `places` they are taken as they are, for `ends`."""

    def __init__(self, hyperscan: ModuleType, patterns: Sequence[str], *, places: bool = False) -> None:
        self._ended = hyperscan.ScanTerminated
        flags = hyperscan.HS_FLAG_PREFILTER | hyperscan.HS_FLAG_MULTILINE
        flags |= 0 if places else hyperscan.HS_FLAG_SINGLEMATCH
        self._database = hyperscan.Database()
        self._database.compile(
            expressions=[(pattern if places else expression(pattern)).encode() for pattern in patterns],
            ids=list(range(len(patterns))),
            elements=len(patterns),
            flags=[flags] * len(patterns),
        )

    def candidates(self, text: bytes) -> set[int]:
        """Return the places in the list of the patterns that may be in a text."""
        found: set[int] = set()

        def on_match(place: int, *_: object) -> None:
            found.add(place)

        self._database.scan(text, match_event_handler=on_match)
        return found

    def ends(self, text: bytes, limit: int) -> list[int]:
        """Return where in a text the first `limit` matches end; made with `places`."""
        found: list[int] = []

        def on_match(_place: int, _start: int, end: int, *_: object) -> bool:
            found.append(end)
            return len(found) >= limit  # true ends the scan

        with suppress(self._ended):
            self._database.scan(text, match_event_handler=on_match)
        return found
