"""What a benchmark's runs took, kept step by step: an interrupted bench goes on where it was."""

from __future__ import annotations

import json
import os
import resource
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.compile.units import UnitRecord
from scripts.core.errors import BenchError
from scripts.core.files import write_json
from scripts.core.process import Command, Finished, run_logged


@dataclass(frozen=True)
class Taken:
    """What a part took, all its runs together."""

    seconds: float = 0.0
    """Wall time."""
    cpu_seconds: float = 0.0
    """Core-seconds, user and system, of the command and all that it started."""
    peak_bytes: int = 0
    """Most memory of all processes together."""
    runs: int = 0
    """More than one when it was interrupted: what was in flight then was done again and counts."""
    load: tuple[float, float] = (0.0, 0.0)
    """The machine's load (1 minute) before and after: above the jobs, wall times say little."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the part measured."""

    def plus(self, done: Finished, cpu_seconds: float, load: tuple[float, float]) -> Taken:
        """Return the sum with one more run."""
        first = self.load if self.runs else load
        return replace(
            self,
            seconds=self.seconds + done.seconds,
            cpu_seconds=self.cpu_seconds + cpu_seconds,
            peak_bytes=max(self.peak_bytes, done.peak_bytes),
            runs=self.runs + 1,
            load=(first[0], load[1]),
        )


class Ledger:
    """The finished parts of a benchmark and what unfinished ones took so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Taken] = {}
        self.begun: dict[str, Taken] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(path.read_text())
            self.done = {name: _taken(row) for name, row in found["done"].items()}
            self.begun = {name: _taken(row) for name, row in found["begun"].items()}

    def add(self, name: str, taken: Taken) -> None:
        """Keep what a part took that is not finished."""
        self.begun[name] = taken
        self._write()

    def finish(self, name: str, taken: Taken) -> None:
        """Keep what a finished part took."""
        self.begun.pop(name, None)
        self.done[name] = taken
        self._write()

    def forget(self, name: str) -> None:
        """Drop a part, finished or not."""
        self.begun.pop(name, None)
        self.done.pop(name, None)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"done": self.done, "begun": self.begun}
        write_json(self.path, {kind: {k: asdict(v) for k, v in rows.items()} for kind, rows in parts.items()})


def _taken(row: Mapping[str, Any]) -> Taken:
    first, last = row["load"]
    return Taken(**{**row, "load": (float(first), float(last))})


def run_part(
    name: str, command: Command, ledger: Ledger, *, log: Path, cwd: Path, environment: Mapping[str, str], fix: str
) -> Taken:
    """Run a part's command and return what it took with what earlier, interrupted runs of it took.

    Raises BenchError when the command fails. What it took until Ctrl-C is kept.
    """
    before, load = _children(), os.getloadavg()[0]
    taken = ledger.begun.get(name, Taken())
    started = os.times().elapsed
    done: Finished | None = None
    try:
        done = run_logged(command, log=log, cwd=cwd, environment=environment)
    finally:
        finished = done or Finished(1, os.times().elapsed - started, log, 0)
        taken = taken.plus(finished, _children() - before, (load, os.getloadavg()[0]))
        ledger.add(name, taken)
    if done.code:
        raise BenchError(
            f"{name} failed with exit code {done.code}",
            why="the end of its output is shown above",
            fix=fix,
            detail=done.tail(),
        )
    return taken


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def unit_facts(units: Sequence[UnitRecord], *, jobs: int) -> dict[str, Any]:
    """Return what a part's ledger keeps of its units, by object file."""
    return {
        "units": {
            item.unit: {"source": item.source, "cpu_seconds": item.cpu_seconds, "seconds": item.seconds,
                        "peak_mb": round(item.peak_mb, 1)}
            for item in units
        },
        "jobs": jobs,
    }  # fmt: skip


def busy(events: Sequence[Mapping[str, Any]], *, jobs: int) -> tuple[float, float]:
    """Return (share of the `jobs` slots in which a unit was, share of the cores that worked) while units were compiled.

    The second counts core-seconds, which other work on the machine takes away; without any the two are nearly the same.
    Pauses in which nothing ran, between interrupted runs, do not count.
    """
    ends = [event for event in events if event.get("event") == "end" and event.get("code") == 0]
    if not ends:
        return 0.0, 0.0
    spans = sorted((event["time"] - event["seconds"], event["time"]) for event in ends)
    wall, until = 0.0, spans[0][0]
    for start, end in spans:
        gap = start - until
        wall += gap if 0 < gap < PAUSE else 0.0
        wall += max(0.0, end - max(start, until))
        until = max(until, end)
    cpu = sum(event["cpu_seconds"] for event in ends)
    whole = jobs * max(wall, 0.001)
    return sum(end - start for start, end in spans) / whole, cpu / whole


PAUSE = 30.0  # seconds


def median(values: Sequence[float]) -> float:
    """Return the median, 0 of nothing."""
    return statistics.median(values) if values else 0.0
