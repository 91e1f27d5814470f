"""Device steps that machines share: this process asks a backend for what a unit has not, and sends what it made.

Units ask over a socket in the build tree, so client libraries and passwords stay here (step_sharing.py). What comes is
taken over only as an entry of the key that was asked for, with the digest that it carries. A backend may be dead,
frozen, slow, full or read-only: lookups end in time, and after repeated faults units ask no more.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.compile.standalone.step_store import Store, unpack
from scripts.compile.step_backends import LARGEST, Backend, BackendError, RefusedError, open_backend
from scripts.compile.step_server import StepServer, listen, start_thread
from scripts.core import interrupt
from scripts.core.errors import FetchError
from scripts.downloads.access import Access

TRIAL_LIMIT = 20.0  # seconds for a backend to take and give back a word
STALL_LIMIT = 20.0  # seconds that one lookup may take
LOST_LIMIT = 60.0  # seconds that lookups may take in all, beyond the first GRACE of each and what hits saved
DRAIN_LIMIT = 10.0  # seconds without an entry sent, at the end
GRACE = 3.0  # seconds of a lookup that are not counted
LEAVE_LIMIT = 0.5  # seconds that closing waits for one that sends
FAULTS = 3  # in a row
SENDERS = 2  # threads
_KEY = re.compile(r"[0-9a-f]{64}")
_TRIAL = "trial"


@dataclass
class StepCounts:
    """What sharing did: entries taken over, asked for in vain, sent, not taken by the backend, damaged; faults."""

    hits: int = 0
    misses: int = 0
    sent: int = 0
    refused: int = 0
    damaged: int = 0
    errors: int = 0

    def data(self) -> dict[str, float]:
        """Return what the report says of it."""
        wrong = self.errors + self.refused + self.damaged
        return {"shared_hits": self.hits, "shared_sent": self.sent, "shared_errors": wrong}


@dataclass
class _State:
    """What threads change together."""

    counts: StepCounts = field(default_factory=StepCounts)
    lookups: dict[int, float] = field(default_factory=dict)
    """When each lookup that runs began, by thread."""
    in_a_row: int = 0
    last: str = ""
    """What the last fault said."""
    lost: float = 0.0
    saved: float = 0.0
    unsent: int = 0
    over: str = ""
    """Why no more is asked or sent."""


class SharedSteps:
    """A backend behind the folder of steps, for the units of one build."""

    def __init__(self, backend: Backend, store: Path) -> None:
        self._backend, self._store = backend, Store(str(store))
        self._state, self._lock = _State(), threading.Lock()
        self._to_send: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._senders: list[threading.Thread] = []
        self._writable = True
        self._server: StepServer | None = None

    def open(self, path: Path) -> str:
        """Try the backend out and listen on a socket at `path`; return what is wrong, "" when nothing."""
        why = self._try_out()
        if why:
            return why
        try:
            self._server = listen(path, self)
        except OSError as error:
            return f"no socket can be made in {path.parent}: {error.strerror}"
        start_thread(self._server.serve)
        self._senders = [start_thread(self._send_all) for _ in range(SENDERS)]
        return ""

    def _try_out(self) -> str:
        answer: list[str] = []
        start_thread(lambda: answer.append(self._try_now()))
        deadline = time.monotonic() + TRIAL_LIMIT
        while not answer and time.monotonic() < deadline:
            interrupt.pause(0.02)
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

    def fetch(self, key: str) -> bool:
        """Whether an entry that the backend had now lies in the folder."""
        if self._state.over or not _KEY.fullmatch(key):
            return False
        try:
            with self._lookup():
                entry = self._backend.get(_name(key))
        except BackendError as error:
            self._fault(error)
            return False
        seconds = _seconds(entry, key)
        with self._lock:
            counts, self._state.in_a_row = self._state.counts, 0
            counts.misses += entry is None
            counts.damaged += entry is not None and seconds is None
        if entry is None or seconds is None or not self._store.keep(key, entry):
            return False
        with self._lock:
            counts.hits += 1
            self._state.saved += seconds
        return True

    @contextmanager
    def _lookup(self) -> Iterator[None]:
        """Keep the time of a lookup."""
        me, begin = threading.get_ident(), time.monotonic()
        with self._lock:
            self._state.lookups[me] = begin
        try:
            yield
        finally:
            with self._lock:
                self._state.lookups.pop(me, None)
                self._state.lost += max(0.0, time.monotonic() - begin - GRACE)

    def offer(self, key: str) -> None:
        """Send an entry of the folder to the backend, soon."""
        if self._writable and not self._state.over and _KEY.fullmatch(key):
            with self._lock:
                self._state.unsent += 1
            self._to_send.put(key)

    def _send_all(self) -> None:
        while key := self._to_send.get():
            if not self._state.over:
                self._send(key)
            with self._lock:
                self._state.unsent -= 1

    def _send(self, key: str) -> None:
        try:
            entry = Path(self._store.path(key)).read_bytes()
        except OSError:  # there was too much in the folder
            return
        if _seconds(entry, key) is None or len(entry) > LARGEST:
            return
        try:
            self._backend.put(_name(key), entry)
        except RefusedError:
            with self._lock:
                self._state.counts.refused += 1
        except BackendError as error:
            self._fault(error)
        else:
            with self._lock:
                self._state.counts.sent += 1
                self._state.in_a_row = 0

    def _fault(self, error: BackendError) -> None:
        with self._lock:
            state = self._state
            state.counts.errors += 1
            state.in_a_row += 1
            state.last = str(error)
            if state.in_a_row >= FAULTS:
                state.over = state.over or f"{FAULTS} faults in a row, the last one: {state.last}"

    def trouble(self) -> str:
        """Return why the backend is used no longer, "" while all is well."""
        with self._lock:
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
            with self._lock:
                unsent = self._state.unsent
            if not unsent or self._state.over:
                return
            if unsent != before:
                deadline, before = time.monotonic() + DRAIN_LIMIT, unsent
            time.sleep(0.02)

    def counts(self) -> StepCounts:
        """Return what was done so far."""
        return self._state.counts

    def close(self) -> None:
        """Listen no more, and let units go that wait. What still waits for the backend ends with this process."""
        self._state.over = self._state.over or "the build has ended"
        if self._server:
            self._server.leave()
        for _ in self._senders:
            self._to_send.put("")
        for sender in self._senders:
            sender.join(LEAVE_LIMIT)
        if not self._state.lookups and not any(sender.is_alive() for sender in self._senders):
            self._backend.close()


def share_steps(
    variables: Mapping[str, str], access: Access, *, store: Path, path: Path
) -> tuple[SharedSteps | None, str]:
    """Share the steps in the folder `store` through the backend that SCCACHE_* variables name, over a socket at `path`.

    Returns (steps, ""), (None, why not), or (None, "") for a backend that only sccache speaks.
    """
    try:
        backend = open_backend(variables, access)
    except (BackendError, FetchError) as error:
        return None, str(error)
    if backend is None:
        return None, ""
    steps = SharedSteps(backend, store)
    why = steps.open(path)
    return (None, why) if why else (steps, "")


def _name(key: str) -> str:
    return f"{key[:2]}/{key[2:]}"


def _seconds(entry: bytes | None, key: str) -> float | None:
    """Return what a whole entry of this key took, None for anything else."""
    if entry is None:
        return None
    try:
        return unpack(entry, key)[1]
    except ValueError:
        return None
