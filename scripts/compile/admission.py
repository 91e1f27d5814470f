"""Let compile units start: as many as there are cores, as far as memory reaches, the longest first.

ninja starts more launchers than there are cores (it knows neither durations nor memory, and orders by manifest); each
asks here for its turn over a socket in the build tree. What is admitted is what fits into the memory that is free now,
less what running units will still take. A connection that closes, however its launcher ended, frees its turn.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import psutil

from scripts.compile.schedule import Task, choose, smallest
from scripts.core import cgroup
from scripts.core.machine import RESERVE, memory_now
from scripts.recipe.costs import CostBook, Unit, short_name

LOOKAHEAD = 64  # launchers that wait for a turn at least; 5 MB each
PER_JOB = 8  # and for each unit that may run: the longest of 365 units are not among the first 96 of the manifest
RETRY_FACTOR = 1.25  # after a kill, all units are taken to need so much more than was measured
_PATIENCE = 0.5  # seconds between looks at memory when nothing fits
_GATHERING = 0.5  # seconds without a new launcher after which the first turns are given
_MESSAGE = 1 << 16  # bytes of a question at most


class _State(Enum):
    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    TO_RETRY = "to be compiled again, alone"
    ALONE = "running alone"


@dataclass
class _Client:
    """One launcher."""

    socket: socket.socket
    pid: int
    state: _State = _State.NEW
    task: Task = field(default_factory=lambda: Task("", 0.0, 0))
    source: str = ""
    kills: int | None = None
    """The kernel's count of kills when it started."""
    heard: bytes = b""


def lookahead(memory_bytes: int, jobs: int) -> int:
    """Return how many launchers may wait for `jobs` that run: few on a small machine."""
    return max(1, min(max(LOOKAHEAD, PER_JOB * jobs), memory_bytes // 125_000_000))


class Admission:
    """The scheduler of one ninja run. Call `tick()` often."""

    def __init__(
        self,
        book: CostBook,
        *,
        jobs: int,
        expected: int = 0,
        keep_going: bool = False,
        say: Callable[[str], None] = lambda _text: None,
        free: Callable[[], int] = memory_now,
        kills: Callable[[], int | None] = cgroup.oom_kills,
    ) -> None:
        self.book, self.jobs, self.keep_going = book, jobs, keep_going
        self.retried: list[str] = []
        """Sources of units that were killed and compiled again."""
        self._say, self._free, self._kills = say, free, kills
        self._clients: list[_Client] = []
        self._listener: socket.socket | None = None
        self._stopped = False
        self._factor = 1.0
        self._next_look = 0.0
        self._expected = expected
        """Launchers that ninja starts at once. Until they have asked, or no more come, none starts; then 0."""
        self._last_came = 0.0
        self._share = 0.0
        """Bytes that were free when the first unit started, by job."""

    @contextmanager
    def listening(self, path: Path) -> Iterator[None]:
        """Listen on a socket at `path` during the block."""
        path.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(f"/proc/self/fd/{folder}/{path.name}")  # an address has 108 bytes, a path may have more
            self._listener.listen(1024)
            self._listener.settimeout(0)
            yield
        finally:
            os.close(folder)
            self._listener.close()
            for client in self._clients:
                client.socket.close()
            self._clients.clear()
            path.unlink(missing_ok=True)

    def tick(self) -> None:
        """Hear what launchers say and let start what may start."""
        self._accept()
        for client in list(self._clients):
            self._hear(client)
        if self._stopped:
            for client in self._in(_State.WAITING, _State.TO_RETRY):
                self._answer(client, "stop")
            return
        self._admit()

    @property
    def running(self) -> int:
        """Units that compile now."""
        return len(self._in(_State.RUNNING, _State.ALONE))

    def _in(self, *states: _State) -> list[_Client]:
        return [client for client in self._clients if client.state in states]

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while self._listener:
                connection, _ = self._listener.accept()
                connection.settimeout(0)
                size = struct.calcsize("3i")
                pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
                self._clients.append(_Client(connection, pid))
                self._last_came = time.monotonic()

    def _hear(self, client: _Client) -> None:
        try:
            heard = client.socket.recv(_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        client.heard += heard
        *messages, client.heard = client.heard.split(b"\n")
        try:
            for message in messages:
                self._understand(client, json.loads(message))
        except (ValueError, KeyError, TypeError, AttributeError):  # no launcher of ours
            heard = b""
        if not heard or len(client.heard) > _MESSAGE:
            self._drop(client)

    def _understand(self, client: _Client, message: dict[str, object]) -> None:
        if message.get("killed"):
            self._killed(client)
        elif "more" in message:
            self._lend(client, str(message["more"]))
        elif "code" in message:
            if message["code"] and not self.keep_going:
                self._stopped = True
            self._drop(client)
        else:
            archs = message.get("archs", 1)
            unit = Unit(str(message["unit"]), str(message["source"]), archs if isinstance(archs, int) else 1)
            estimate = self.book.estimate(unit)
            client.task = Task(unit.object, estimate.cpu_seconds, estimate.peak_bytes)
            client.source, client.state = unit.source, _State.WAITING

    def _lend(self, client: _Client, unit: str) -> None:
        """Give a running unit one more turn, for a device step of another arch, when no unit could use it."""
        owner = next((other for other in self._in(_State.RUNNING) if other.task.name == unit), None)
        wanted = self._stopped or self._in(_State.WAITING, _State.TO_RETRY, _State.ALONE) or self.running >= self.jobs
        if owner is None or wanted or not self._fits(owner.task):
            self._answer(client, "no")
            return
        client.task = Task(f"{unit}: another step", 0.0, owner.task.bytes)
        self._start(client, _State.RUNNING)

    def _fits(self, task: Task) -> bool:
        return self._scaled(task).bytes <= self._free() - int(RESERVE * 1e9) - self._growth()

    def _killed(self, client: _Client) -> None:
        """Have a killed unit compiled again when nothing else is; one that was alone has failed."""
        name = short_name(client.source)
        if client.state is not _State.RUNNING:
            self._answer(client, "stop")
            return
        now = self._kills()
        by_kernel = client.kills is not None and now is not None and now > client.kills
        why = "the kernel killed it because memory ran out" if by_kernel else "its compiler was killed (SIGKILL)"
        self._say(f"{name}: {why}; it is compiled again, alone")
        self.retried.append(client.source)
        self._factor *= RETRY_FACTOR
        client.state = _State.TO_RETRY

    def _drop(self, client: _Client) -> None:
        client.socket.close()
        with suppress(ValueError):
            self._clients.remove(client)
        self._next_look = 0.0

    def _answer(self, client: _Client, word: str) -> None:
        try:
            client.socket.sendall(word.encode() + b"\n")
        except OSError:
            self._drop(client)
        else:
            if word == "stop":
                client.state = _State.NEW

    def _start(self, client: _Client, state: _State) -> None:
        client.kills = self._kills()
        client.state = state
        self._answer(client, "go")

    def _admit(self) -> None:
        retries = self._in(_State.TO_RETRY)
        if retries or self._in(_State.ALONE):
            if retries and not self.running:
                self._start(retries[0], _State.ALONE)
            return
        waiting = {client.task.name: client for client in self._in(_State.WAITING)}
        if self._gathers(len(waiting)):
            return
        if not waiting or self.running >= self.jobs or time.monotonic() < self._next_look:
            return
        free = self._free() - int(RESERVE * 1e9) - self._growth()
        self._share = self._share or max(1.0, free / self.jobs)
        while waiting and self.running < self.jobs:
            tasks = [self._scaled(client.task) for client in waiting.values()]
            task = choose(tasks, free, share=self._share) or (None if self.running else smallest(tasks))
            if task is None:
                self._next_look = time.monotonic() + _PATIENCE
                return
            self._start(waiting.pop(task.name), _State.RUNNING)
            free -= task.bytes

    def _gathers(self, waiting: int) -> bool:
        """Whether the first launchers are still to come: the first ones of the manifest are not the longest."""
        if self._expected and (
            waiting >= self._expected or (waiting and time.monotonic() > self._last_came + _GATHERING)
        ):
            self._expected = 0
        return self._expected > 0

    def _scaled(self, task: Task) -> Task:
        return Task(task.name, task.seconds, int(task.bytes * self._factor))

    def _growth(self) -> int:
        """Return the bytes that running units will still take: what is expected of them, less what they have."""
        running = self._in(_State.RUNNING, _State.ALONE)
        if not running:
            return 0
        used = family_memory([client.pid for client in running])
        return sum(max(0, self._scaled(client.task).bytes - used[client.pid]) for client in running)


def family_memory(pids: list[int]) -> dict[int, int]:
    """Return the resident bytes of each process with its descendants; 0 for one that has ended."""
    seen = {}
    for process in psutil.process_iter(["ppid", "memory_info"]):
        memory = process.info["memory_info"]
        seen[process.pid] = (process.info["ppid"], memory.rss if memory else 0)
    totals = dict.fromkeys(pids, 0)
    for pid, (_, resident) in seen.items():
        ancestor = pid
        for _ in range(64):  # a chain of parents has no loops, but processes come and go while it is read
            if ancestor in totals:
                totals[ancestor] += resident
                break
            if ancestor not in seen:
                break
            ancestor = seen[ancestor][0]
    return totals
