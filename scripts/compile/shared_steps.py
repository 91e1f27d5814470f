"""Device steps that machines share: this process asks a backend for what a unit has not, and sends what it made.

Units ask over a socket in the build tree, so client libraries and passwords stay here (step_sharing.py). What comes is
taken over only as an entry of the key that was asked for, with the digest that it carries.
"""

from __future__ import annotations

import json
import re
import socketserver
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.compile.exchange import Exchange
from scripts.compile.socket_server import SocketServer, listen
from scripts.compile.standalone.step_store import Store, unpack

PLACE = "steps"  # folder in the backend
_KEY = re.compile(r"[0-9a-f]{64}")
_QUESTION = 4096  # bytes at most


@dataclass
class StepCounts:
    """Entries taken over, asked for in vain, damaged."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0


class SharedSteps:
    """The folder of steps, and a backend behind it, for the units of one build."""

    def __init__(self, exchange: Exchange, store: Path) -> None:
        self.counts = StepCounts()
        self._exchange, self._store = exchange, Store(str(store))
        self._server: SocketServer | None = None

    def open(self, path: Path) -> None:
        """Listen on a socket at `path`. Raises OSError."""
        self._server = listen(path, _Unit, self)

    def fetch(self, key: str) -> bool:
        """Whether an entry that the backend had now lies in the folder."""
        if not _KEY.fullmatch(key):
            return False
        entry = self._exchange.get(_name(key))
        seconds = _seconds(entry, key)
        with self._exchange.lock:
            self.counts.misses += entry is None
            self.counts.damaged += entry is not None and seconds is None
        if entry is None or seconds is None or not self._store.keep(key, entry):
            return False
        self._exchange.saved(seconds)
        with self._exchange.lock:
            self.counts.hits += 1
        return True

    def offer(self, key: str) -> None:
        """Send an entry of the folder to the backend, soon."""
        if _KEY.fullmatch(key):
            self._exchange.send(_name(key), lambda: self._whole(key))

    def _whole(self, key: str) -> bytes | None:
        """Return an entry of the folder unless it is gone, since there was too much, or damaged."""
        with suppress(OSError):
            entry = Path(self._store.path(key)).read_bytes()
            return None if _seconds(entry, key) is None else entry
        return None

    def close(self) -> None:
        """Listen no more, and let units go that wait."""
        if self._server:
            self._server.leave()


class _Unit(socketserver.StreamRequestHandler):
    """A unit's questions, one after the other."""

    server: SocketServer

    def handle(self) -> None:
        """Answer until the unit has gone, or asks what no unit of ours would."""
        steps = self.server.owner
        assert isinstance(steps, SharedSteps)  # noqa: S101
        while line := self.rfile.readline(_QUESTION):
            question = None
            with suppress(ValueError, RecursionError):
                question = json.loads(line)
            if not isinstance(question, dict):
                return
            if isinstance(question.get("get"), str):
                self.wfile.write(b"have\n" if steps.fetch(question["get"]) else b"no\n")
            elif isinstance(question.get("put"), str):
                steps.offer(question["put"])


def _name(key: str) -> str:
    return f"{PLACE}/{key[:2]}/{key[2:]}"


def _seconds(entry: bytes | None, key: str) -> float | None:
    """Return what a whole entry of this key took, None for anything else."""
    if entry is None:
        return None
    try:
        return unpack(entry, key)[1]
    except ValueError:
        return None
