"""Compile units as ninja and the launcher report them: which there are, which run, which failed."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType

from scripts.console import human_seconds, lines


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


@dataclass(frozen=True)
class Failure:
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
    jobs: int
    expected_seconds: float
    """First guess of a unit's duration, until some have finished."""
    started: float = field(default_factory=time.monotonic)
    running: dict[str, float] = field(default_factory=dict)
    finished: list[UnitRecord] = field(default_factory=list)
    _offset: int = 0

    def begin(self) -> None:
        """Ignore what earlier runs wrote."""
        self._offset = self.events.stat().st_size if self.events.exists() else 0

    def update(self) -> None:
        """Read new events."""
        for event in self._new_events():
            name = short_name(event["source"])
            if event["event"] == "start":
                self.running[name] = event["time"]
                continue
            self.running.pop(name, None)
            record = UnitRecord(
                event["unit"],
                event["source"],
                event["seconds"],
                event["cpu_seconds"],
                event["peak_kb"] / 1000,
                event["code"],
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
        """Seconds that are left, by the mean duration of the units so far."""
        finished = [record.seconds for record in self.finished]
        mean = (sum(finished) + self.expected_seconds) / (len(finished) + 1)
        left = max(0, self.todo - len(finished))
        spent = sum(min(mean, time.time() - start) for start in self.running.values())
        return max(0.0, (left * mean - spent) / max(1, min(self.jobs, left or 1)))

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
        now = f"; longest running: {oldest[0]} ({human_seconds(time.time() - oldest[1])})" if oldest else ""
        return f"compile: {self.headline()}; {len(self.running)} running{now}"

    def render(self) -> RenderableType:
        """Headline and the running units with their ages, for a terminal."""
        rows = [f"{'':<10}{self.headline()}"]
        for name, start in sorted(self.running.items(), key=lambda item: item[1])[:12]:
            rows.append(f"{'':<12}{human_seconds(time.time() - start):>10}  {name}")
        return lines(*rows)


def read_units(events: Path) -> list[UnitRecord]:
    """Return the last successful compilation of each unit, over all runs that worked on the tree."""
    watch = UnitWatch(events, total=0, todo=0, jobs=1, expected_seconds=0)
    watch.update()
    return list({record.unit: record for record in watch.finished if record.code == 0}.values())


def short_name(path: str) -> str:
    """Return a source's path below csrc/, or its last parts."""
    return path.split("/csrc/", 1)[-1] if "/csrc/" in path else "/".join(path.split("/")[-2:])


def read_failures(folder: Path) -> list[Failure]:
    """Return the failed units that launchers recorded in `folder`, oldest first."""
    found = []
    for path in sorted(folder.glob("*.json"), key=lambda item: item.stat().st_mtime):
        try:
            data = json.loads(path.read_text())
        except ValueError:  # the launcher was killed while writing
            continue
        command = f"cd {shlex.quote(data['directory'])} && {shlex.join(data['command'])}"
        killed = not data["output"].strip() or "Killed" in data["output"]
        found.append(Failure(short_name(data["unit"]), command, data["output"].strip(), killed))
    return found
