"""Watch the processes of a build while it runs: memory over time, and which phase of which unit takes the time.

nvcc's own `--time` is no help: it writes wall times of one call and is an option that compiler caches do not know.
So the processes are looked at twice a second: the kernel tells when each began and how much CPU it has used. What lives
shorter than half a second is missed, and of each process the time after the last look.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from scripts.compile.standalone.launcher import unit_of

WINDOW = 60.0  # seconds over which the units' share of the cores is taken
SAMPLES = "samples.jsonl"  # in the build tree


class Phase(str, Enum):
    """A part of compiling a unit, by the program that does it."""

    PREPROCESS = "preprocess"
    CUDAFE = "cudafe++"
    CICC = "cicc"
    PTXAS = "ptxas"
    HOST = "host compiler"
    FATBINARY = "fatbinary"


_PROGRAMS = {
    "cudafe++": Phase.CUDAFE,
    "cicc": Phase.CICC,
    "ptxas": Phase.PTXAS,
    "nvlink": Phase.PTXAS,
    "fatbinary": Phase.FATBINARY,
    "cc1plus": Phase.HOST,
    "cc1": Phase.HOST,
    "as": Phase.HOST,
    "clang": Phase.HOST,
    "clang++": Phase.HOST,
}


def phase_of(program: str, command: Sequence[str]) -> Phase | None:
    """Return the phase that a process does, None for drivers that only start others."""
    phase = _PROGRAMS.get(program)
    return Phase.PREPROCESS if phase is Phase.HOST and "-E" in command else phase


@dataclass
class _Seen:
    """A process that does a phase."""

    unit: str
    phase: Phase
    start: float
    cpu: float = 0.0
    last: float = 0.0


class Sampler:
    """Writes what it sees to a file of JSON lines; give `look` the processes of the build often."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[int, _Seen | None] = {}
        self._used: deque[tuple[float, float]] = deque()

    def look(self, processes: Sequence[psutil.Process], rss: int) -> None:
        """Note memory (bytes, all processes together) and the CPU time of each phase."""
        lines: list[dict[str, object]] = [{"time": round(time.time(), 2), "rss": rss}]
        alive, used = {process.pid: process for process in processes}, 0.0
        for pid in [pid for pid in self._seen if pid not in alive]:
            lines += self._ended(pid)
        for pid, process in alive.items():
            with suppress(psutil.Error):
                if pid not in self._seen:
                    self._seen[pid] = _describe(process, alive)
                if seen := self._seen[pid]:
                    times = process.cpu_times()
                    used += times.user + times.system - seen.cpu
                    seen.cpu, seen.last = times.user + times.system, time.time()
        self._used.append((time.monotonic(), used))
        self._write(lines)

    def share(self, running: int) -> float:
        """Return the part of a core that each running unit had in the last minute; 1 while that is not known."""
        now = time.monotonic()
        while self._used and self._used[0][0] < now - WINDOW:
            self._used.popleft()
        if not running or not self._used or now - self._used[0][0] < WINDOW / 3:
            return 1.0
        seconds = sum(used for _, used in self._used)
        return min(1.0, max(0.02, seconds / (running * (now - self._used[0][0]))))

    def close(self) -> None:
        """Write what still ran."""
        self._write([line for pid in list(self._seen) for line in self._ended(pid)])

    def _ended(self, pid: int) -> list[dict[str, object]]:
        seen = self._seen.pop(pid)
        if seen is None or not seen.last:
            return []
        times = {"start": round(seen.start, 2), "end": round(seen.last, 2), "cpu": round(seen.cpu, 2)}
        return [{"unit": seen.unit, "phase": seen.phase.value, **times}]

    def _write(self, lines: Sequence[dict[str, object]]) -> None:
        with suppress(OSError), self._path.open("a") as file:  # a full disk is the compilers' to report
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def _describe(process: psutil.Process, family: dict[int, psutil.Process]) -> _Seen | None:
    phase = phase_of(process.name(), process.cmdline())
    unit = _unit(process, family) if phase else ""
    return _Seen(unit, phase, process.create_time()) if phase and unit else None


def _unit(process: psutil.Process, family: dict[int, psutil.Process]) -> str:
    """Return the object file that the nearest launcher above a process makes, "" when there is none."""
    parent = family.get(process.ppid())
    while parent is not None:
        command = parent.cmdline()
        if any(word.endswith("launcher.py") for word in command[:5]):
            return unit_of(command)[0]
        parent = family.get(parent.ppid())
    return ""
