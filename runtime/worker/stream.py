"""Server-sent events out of bytes that arrive in any pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_EVENT = 64 << 20  # bytes; an event that grows beyond is no event
DONE = "[DONE]"
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_LAST = {"response.completed", "response.incomplete", "response.failed", "error"}


class EventSplitter:
    """Collects bytes and gives whole events: text is decoded only when its event is complete, no character is cut."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Take bytes as they come; yield each event that is complete, without its blank line.

        Raises ValueError when bytes are no UTF-8, or an event is longer than 64 MiB.
        """
        self._held += chunk
        while end := _BLANK_LINE.search(self._held, self._searched):
            event = bytes(self._held[: end.start()])
            del self._held[: end.end()]
            self._searched = 0
            if event.strip():
                yield event.replace(b"\r\n", b"\n").strip(b"\n").decode("utf-8")
        self._searched = max(0, len(self._held) - 3)  # the blank line may have begun already
        if len(self._held) > MAX_EVENT:
            raise ValueError("the engine sent an event without an end")

    @property
    def rest(self) -> bytes:
        """Bytes of an event that has not ended."""
        return bytes(self._held)


def data_of(event: str) -> str:
    """Return an event's data lines as one text."""
    lines = (line.removeprefix("data:") for line in event.split("\n") if line.startswith("data:"))
    return "\n".join(line.removeprefix(" ") for line in lines)


def parsed(event: str) -> dict[str, Any] | None:
    """Return an event's JSON object; None for comments and [DONE]. Raises ValueError for anything else."""
    data = data_of(event)
    if not data or data == DONE:
        return None
    value = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("an event's data is no object")
    return value


def is_last(event: str) -> bool:
    """Tell whether the engine ends a stream with this event: a stream without it was cut off."""
    if data_of(event) == DONE:
        return True
    return event.startswith("event:") and event.split("\n", 1)[0].removeprefix("event:").strip() in _LAST
