"""How a build went, from what the launcher and the sampler wrote into the build tree: units, phases, memory over time.

A build that was interrupted has several runs; the pauses between them are left out of the time axis.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.compile.sampling import SAMPLES
from scripts.core.models import Model
from scripts.recipe.costs import short_name

PAUSE = 30.0  # seconds without any sign of life that are a pause between runs
MEMORY_POINTS = 600  # of the curve in the report


class PhaseSpan(Model):
    """One program's work for a unit; times in seconds from the start of the build."""

    phase: str
    start: float
    end: float
    cpu_seconds: float


class Span(Model):
    """One compiler call that ended; times in seconds from the start of the build."""

    unit: str
    source: str
    lane: int
    """Which of the units that ran side by side it was: rows of the Gantt."""
    start: float
    end: float
    cpu_seconds: float
    peak_mb: float
    code: int
    cache: str
    """`hit`, `miss`, `failed` or `off`; "" when the launcher did not say."""
    phases: tuple[PhaseSpan, ...] = ()

    @property
    def costs(self) -> dict[str, float]:
        """CPU seconds by phase, the largest first, as far as the sampler saw them."""
        sums: dict[str, float] = defaultdict(float)
        for item in self.phases:
            sums[item.phase] += item.cpu_seconds
        return dict(sorted(sums.items(), key=lambda row: -row[1]))


class Timeline(Model):
    """All compiler calls of a build tree."""

    started: float = 0.0
    """When the first one started, seconds since 1970."""
    seconds: float = 0.0
    """Length of the time axis."""
    units: tuple[Span, ...] = ()
    memory: tuple[tuple[float, int], ...] = ()
    """[seconds, bytes of all processes together], at most 600 points."""

    @property
    def lanes(self) -> int:
        """How many units ran side by side at most."""
        return max([span.lane + 1 for span in self.units], default=0)


@dataclass
class _Axis:
    """Turns clock times into seconds of the build, pauses left out."""

    times: list[float]
    starts: list[float] = field(default_factory=list)
    shifts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        shift = self.times[0]
        self.starts, self.shifts = [self.times[0]], [shift]
        for before, after in pairwise(self.times):
            if after - before > PAUSE:
                shift += after - before
                self.starts.append(after)
                self.shifts.append(shift)

    def place(self, time: float) -> float:
        index = max(0, bisect_right(self.starts, time) - 1)
        return round(max(0.0, time - self.shifts[index]), 2)


def read_timeline(events: Path, samples: Path | None = None) -> Timeline:
    """Return how the build of a tree went so far. Lines that were torn by a kill are left out."""
    samples = samples or events.with_name(SAMPLES)
    ends = [row for row in _rows(events) if row.get("event") == "end" and "seconds" in row]
    rows = list(_rows(samples))
    if not ends:
        return Timeline()
    memory = [(row["time"], row["rss"]) for row in rows if "rss" in row]
    marks = [time for row in ends for time in _alive(row)] + [time for time, _ in memory]
    axis = _Axis(sorted(marks))
    first = min(row["time"] - row["seconds"] for row in ends)
    spans = tuple(_spans(sorted(ends, key=lambda row: float(row["time"] - row["seconds"])), _phases(rows), axis))
    return Timeline(
        started=first,
        seconds=max(span.end for span in spans),
        units=spans,
        memory=thinned([(axis.place(time), int(rss)) for time, rss in memory]),
    )


def _alive(row: dict[str, Any]) -> Iterator[float]:
    """Yield times at which a unit was certainly being compiled, close enough to bridge what is no pause."""
    start = row["time"] - row["seconds"]
    yield from (start + PAUSE * step for step in range(int(row["seconds"] / PAUSE) + 1))
    yield row["time"]


def _spans(ends: list[dict[str, Any]], phases: dict[str, list[dict[str, Any]]], axis: _Axis) -> Iterator[Span]:
    free: list[float] = []  # per lane: until when it is taken
    for row in ends:
        start, end = row["time"] - row["seconds"], row["time"]
        lane = next((index for index, until in enumerate(free) if until <= start + 0.005), len(free))
        free[lane : lane + 1] = [end]
        own = [item for item in phases.get(row["unit"], []) if start - 1 <= item["start"] and item["end"] <= end + 1]
        yield Span(
            unit=row["unit"],
            source=short_name(row["source"]),
            lane=lane,
            start=axis.place(start),
            end=axis.place(end),
            cpu_seconds=row["cpu_seconds"],
            peak_mb=round(row["peak_kb"] * 1024 / 1e6, 1),
            code=row["code"],
            cache=row.get("cache", ""),
            phases=tuple(
                PhaseSpan(
                    phase=item["phase"],
                    start=axis.place(item["start"]),
                    end=axis.place(item["end"]),
                    cpu_seconds=item["cpu"],
                )
                for item in sorted(own, key=lambda item: float(item["start"]))
            ),
        )


def _phases(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "phase" in row:
            found[row["unit"]].append(row)
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def thinned(memory: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Return at most MEMORY_POINTS points; of those that are put together the highest stays."""
    step = -(-len(memory) // MEMORY_POINTS) or 1
    return tuple(max(memory[index : index + step], key=lambda point: point[1]) for index in range(0, len(memory), step))
