"""Lookups in a backend that others share, and what is sent to it, as one build uses it: in time, or not at all.

A backend may be dead, frozen, slow, full or read-only. Lookups are timed and faults counted; after repeated ones no
more is asked or sent. Threads may use an exchange at the same time.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts.compile.backends import LARGEST, Backend, BackendError, RefusedError
from scripts.compile.socket_server import start_thread
from scripts.core import interrupt

TRIAL_LIMIT = 20.0  # seconds for a backend to take and give back a word
STALL_LIMIT = 20.0  # seconds that one lookup may take
LOST_LIMIT = 60.0  # seconds that lookups may take in all, beyond the first GRACE of each and what hits saved
DRAIN_LIMIT = 10.0  # seconds without an entry sent, at the end
GRACE = 3.0  # seconds of a lookup that are not counted
LEAVE_LIMIT = 0.5  # seconds that closing waits for one that sends
FAULTS = 3  # in a row
SENDERS = 2  # threads
HELD_LIMIT = 256 << 20  # bytes of entries that wait in memory to be sent
_TRIAL = "trial"
Made = Callable[[], bytes | None]


@dataclass
class Counts:
    """What was sent, what the backend did not take, and faults."""

    sent: dict[str, int] = field(default_factory=dict)
    """By the folder of the entry."""
    refused: int = 0
    errors: int = 0


@dataclass
class _State:
    """What threads change together."""

    counts: Counts = field(default_factory=Counts)
    lookups: dict[int, float] = field(default_factory=dict)
    """When each lookup that runs began, by thread."""
    in_a_row: int = 0
    last: str = ""
    """What the last fault said."""
    lost: float = 0.0
    saved: float = 0.0
    unsent: int = 0
    held: int = 0
    over: str = ""
    """Why no more is asked or sent."""


class Exchange:
    """A backend in one build's use."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._state, self.lock = _State(), threading.Lock()
        self._to_send: queue.SimpleQueue[tuple[str, Made, int] | None] = queue.SimpleQueue()
        self._senders: list[threading.Thread] = []
        self._writable = True
        self._trying = False

    def open(self) -> str:
        """Try the backend out; return what is wrong, "" when nothing."""
        answer: list[str] = []
        self._trying = True
        start_thread(lambda: answer.append(self._try_now()))
        deadline = time.monotonic() + TRIAL_LIMIT
        while not answer and time.monotonic() < deadline:
            interrupt.pause(0.02)
        self._trying = not answer
        if answer == [""]:
            self._senders = [start_thread(self._send_all) for _ in range(SENDERS)]
        return answer[0] if answer else f"no answer within {TRIAL_LIMIT:.0f} s"

    def _try_now(self) -> str:
        word = os.urandom(16)
        try:
            self._backend.get(_TRIAL)
            self._backend.put(_TRIAL, word)
            found = self._backend.get(_TRIAL)
        except RefusedError:  # it may be read
            self._writable = False
            return ""
        except BackendError as error:
            return str(error)
        return "" if found and len(found) == len(word) else "it does not give back what it was given"

    def get(self, name: str) -> bytes | None:
        """Return what the backend has under a name; None when it has nothing, does not answer or is given up."""
        if self._state.over:
            return None
        try:
            with self._lookup():
                entry = self._backend.get(name)
        except BackendError as error:
            self._fault(error)
            return None
        with self.lock:
            self._state.in_a_row = 0
        return entry

    @contextmanager
    def _lookup(self) -> Iterator[None]:
        """Keep the time of a lookup."""
        me, begin = threading.get_ident(), time.monotonic()
        with self.lock:
            self._state.lookups[me] = begin
        try:
            yield
        finally:
            with self.lock:
                self._state.lookups.pop(me, None)
                self._state.lost += max(0.0, time.monotonic() - begin - GRACE)

    def saved(self, seconds: float) -> None:
        """Hear what a lookup has saved."""
        with self.lock:
            self._state.saved += seconds

    def send(self, name: str, made: Made, *, held: int = 0) -> None:
        """Send what `made` returns, soon; None is not sent.

        `held`: bytes that it holds in memory until then. What would be too much is not sent.
        """
        with self.lock:
            if not self._writable or self._state.over or self._state.held + held > HELD_LIMIT:
                return
            self._state.unsent += 1
            self._state.held += held
        self._to_send.put((name, made, held))

    def _send_all(self) -> None:
        while item := self._to_send.get():
            name, made, held = item
            if not self._state.over:
                self._send(name, made)
            with self.lock:
                self._state.unsent -= 1
                self._state.held -= held

    def _send(self, name: str, made: Made) -> None:
        entry = made()
        if entry is None or len(entry) > LARGEST:
            return
        counts = self._state.counts
        try:
            self._backend.put(name, entry)
        except RefusedError:
            with self.lock:
                counts.refused += 1
        except BackendError as error:
            self._fault(error)
        else:
            folder = name.partition("/")[0]
            with self.lock:
                counts.sent[folder] = counts.sent.get(folder, 0) + 1
                self._state.in_a_row = 0

    def _fault(self, error: BackendError) -> None:
        with self.lock:
            state = self._state
            state.counts.errors += 1
            state.in_a_row += 1
            state.last = str(error)
            if state.in_a_row >= FAULTS:
                state.over = state.over or f"{FAULTS} faults in a row, the last one: {state.last}"

    def trouble(self) -> str:
        """Return why the backend is used no longer, "" while all is well."""
        with self.lock:
            state, now = self._state, time.monotonic()
            if not state.over and any(now - begin > STALL_LIMIT for begin in state.lookups.values()):
                state.over = f"a lookup has taken {STALL_LIMIT:.0f} s"
            if not state.over and state.lost > LOST_LIMIT + state.saved:
                state.over = f"lookups have taken {state.lost:.0f} s more than they should, and saved {state.saved:.0f}"
            return state.over

    def drain(self) -> None:
        """Wait until all entries are sent, as long as some are."""
        deadline, before = time.monotonic() + DRAIN_LIMIT, -1
        while time.monotonic() < deadline and not interrupt.told():
            with self.lock:
                unsent = self._state.unsent
            if not unsent or self._state.over:
                return
            if unsent != before:
                deadline, before = time.monotonic() + DRAIN_LIMIT, unsent
            time.sleep(0.02)

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return self._state.counts

    def close(self) -> None:
        """Ask and send no more. What still waits for the backend ends with this process."""
        self._state.over = self._state.over or "the build has ended"
        for _ in self._senders:
            self._to_send.put(None)
        for sender in self._senders:
            sender.join(LEAVE_LIMIT)
        busy = self._trying or self._state.lookups or any(sender.is_alive() for sender in self._senders)
        if not busy:
            self._backend.close()
