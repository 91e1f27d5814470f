"""Compile units as ninja and the launcher report them: which there are, which run, which failed."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType

from scripts.compile.forecast import Forecast
from scripts.core.console import human_seconds, lines
from scripts.recipe.costs import short_name


@dataclass(frozen=True)
class UnitRecord:
    """One finished compiler call."""

    unit: str
    source: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    """Peak resident memory of the largest process of the call, MB."""
    code: int
    archs: int | None = None
    """How many archs it was compiled for; None in records of old trees."""
    cache: str | None = None
    """`hit`, `miss`, `failed` (the cache did; compiled plainly) or `off`; None in records of old trees."""
    headers: str | None = None
    """`stock` when it did not compile with the lean headers and did with torch's own; None otherwise."""


@dataclass(frozen=True)
class UnitFailure:
    """A failed unit: what to run to repeat it and what it said."""

    unit: str
    command: str
    output: str
    killed: bool


@dataclass
class UnitWatch:
    """Follows the launcher's event file during one ninja run."""

    events: Path
    total: int
    """Units of all components."""
    todo: int
    """Units that were out of date when ninja started."""
    forecast: Forecast
    share: Callable[[], float] = lambda: 1.0
    """The part of a core that each running unit gets now."""
    started: float = field(default_factory=time.monotonic)
    running: dict[str, float] = field(default_factory=dict)
    finished: list[UnitRecord] = field(default_factory=list)
    _offset: int = 0
    _names: dict[str, str] = field(default_factory=dict)
    """Of the running units, for people."""
    _eta: tuple[float, float] = (0.0, -1.0)
    """The last estimate, and when it was made."""

    def begin(self) -> None:
        """Ignore what earlier runs wrote."""
        self._offset = self.events.stat().st_size if self.events.exists() else 0

    def update(self) -> None:
        """Read new events."""
        for event in self._new_events():
            self._eta = (0.0, -1.0)
            if event["event"] == "start":
                self.running[event["unit"]] = event["time"]
                self._names[event["unit"]] = short_name(event["source"])
                continue
            if event["event"] == "steps":
                continue
            self.running.pop(event["unit"], None)
            if event["event"] != "end":
                continue
            record = UnitRecord(
                event["unit"],
                event["source"],
                event["seconds"],
                event["cpu_seconds"],
                event["peak_kb"] * 1024 / 1e6,
                event["code"],
                event.get("archs"),
                event.get("cache"),
                event.get("headers"),
            )
            self.finished.append(record)

    def _new_events(self) -> Iterator[dict]:  # type: ignore[type-arg]
        if not self.events.exists():
            return
        with self.events.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with suppress(ValueError):  # torn by a full disk or a kill
                    yield json.loads(line)

    @property
    def done(self) -> int:
        """Units ready, those of earlier runs included."""
        return self.total - self.todo + sum(1 for record in self.finished if record.code == 0)

    def eta(self) -> float:
        """Seconds that are left; worked out anew at most once a second."""
        value, made = self._eta
        age = time.monotonic() - made
        if made < 0 or age >= 1:
            now = time.time()
            finished = {record.unit: 0.0 if record.cache == "hit" else record.seconds for record in self.finished}
            running = {unit: max(0.0, now - start) for unit, start in self.running.items()}
            self._eta = self.forecast.left(finished, running, self.share()), time.monotonic()
            return self._eta[0]
        return max(0.0, value - age)

    def headline(self) -> str:
        """Units done of all, percent, elapsed, time left."""
        percent = 100 * self.done // max(1, self.total)
        elapsed = human_seconds(time.monotonic() - self.started)
        return (
            f"{self.done}/{self.total} units ({percent} %), {elapsed} elapsed, about {human_seconds(self.eta())} left"
        )

    def plain(self) -> str:
        """One line for pipes and CI."""
        oldest = min(self.running.items(), key=lambda item: item[1], default=None)
        now = (
            f"; longest running: {self._names[oldest[0]]} ({human_seconds(time.time() - oldest[1])})" if oldest else ""
        )
        return f"compile: {self.headline()}; {len(self.running)} running{now}"

    def render(self) -> RenderableType:
        """Headline and the running units with their ages, for a terminal."""
        rows = [f"{'':<10}{self.headline()}"]
        for unit, start in sorted(self.running.items(), key=lambda item: item[1])[:12]:
            rows.append(f"{'':<12}{human_seconds(time.time() - start):>10}  {self._names[unit]}")
        return lines(*rows)


def read_units(events: Path) -> list[UnitRecord]:
    """Return the last successful compilation of each unit, over all runs that worked on the tree."""
    watch = UnitWatch(events, total=0, todo=0, forecast=Forecast([], jobs=1, memory=0))
    watch.update()
    return list({record.unit: record for record in watch.finished if record.code == 0}.values())


def read_failures(folder: Path) -> list[UnitFailure]:
    """Return the failed units that launchers recorded in `folder`, oldest first."""
    found = []
    for path in sorted(folder.glob("*.json"), key=lambda item: item.stat().st_mtime):
        try:
            data = json.loads(path.read_text())
        except ValueError:  # the launcher was killed while writing
            continue
        command = f"cd {shlex.quote(data['directory'])} && {shlex.join(data['command'])}"
        killed = not data["output"].strip() or any(word in data["output"] for word in ("Killed", "signal 9"))
        found.append(UnitFailure(short_name(data["unit"]), command, data["output"].strip(), killed))
    return found
