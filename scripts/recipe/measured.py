"""Measured seconds and memory of compile units, entered into a recipe's cost file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.core.errors import UsageError
from scripts.core.files import write_atomic
from scripts.recipe.costs import CostData, Measured, costs_json, read_costs, unit_name
from scripts.recipe.model import Recipe

MOST = 1e15  # seconds or kB: what is more, or no number, was damaged
BUSY = 0.02  # core-seconds per second below which a call was a cache's client, whose own figures say nothing


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the successful compiler calls that events.jsonl of a build tree tells of. Raises UsageError for none."""
    path = path / "events.jsonl" if path.is_dir() else path
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read", why=error.strerror or str(error), fix="name a build tree, events or a report"
        ) from error
    return measurements(_parsed(text), path)


def measurements(records: Iterable[Any], path: Path) -> list[dict[str, Any]]:
    """Return the records of successful calls whose figures are the compiler's. Raises UsageError when none is."""
    found = [
        record
        for record in records
        if isinstance(record, dict) and record.get("event", "end") == "end" and _is_measurement(record)
    ]
    if not found:
        raise UsageError(
            f"{path} lists no compiled unit",
            why="units that came out of a compiler cache do not count",
            fix="name events.jsonl of a build tree, or a wheel's report.json",
        )
    return found


def _parsed(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # torn by a kill
            continue


def _is_measurement(record: dict[str, Any]) -> bool:
    numbers = [record.get(key) for key in ("seconds", "cpu_seconds")]
    numbers.append(record.get("peak_mb", record.get("peak_kb")))
    texts = [record.get(key) for key in ("unit", "source")]
    whole = all(isinstance(value, int | float) and 0 <= value < MOST for value in numbers)
    if not whole or not all(isinstance(value, str) and value for value in texts):
        return False
    own = record["cpu_seconds"] >= BUSY * record["seconds"]
    return bool(own) and record.get("code") == 0 and record.get("cache") != "hit"


def enter(data: CostData, records: Iterable[dict[str, Any]], *, archs: int | None) -> CostData:
    """Return the data with the records entered, the last of each unit; `archs` for records that do not say."""
    units = {name: dict(counts) for name, counts in data.units.items()}
    for record in records:
        count = archs or record.get("archs")
        if not isinstance(count, int):
            raise UsageError(
                f"{record['source']} does not say for how many archs it was compiled",
                why="the build tree is of an older wheelsmith",
                fix="--archs N: for how many archs it was built",
            )
        peak = record["peak_mb"] if "peak_mb" in record else record["peak_kb"] * 1024 / 1e6
        host = not record["source"].endswith(".cu")
        name = unit_name(record["unit"], record["source"])
        measured = Measured(cpu_seconds=round(record["cpu_seconds"], 1), peak_mb=round(peak))
        units.setdefault(name, {})[1 if host else count] = measured
    return CostData(measured=data.measured, units=units)


def own_costs(cache: Path, recipe: Recipe) -> CostData | None:
    """Return what earlier builds of a recipe took on this machine; None when none was kept, or not readably."""
    with suppress(UsageError):
        return read_costs(_own_file(cache, recipe))
    return None


def keep_own(cache: Path, recipe: Recipe, events: Path) -> None:
    """Keep what the units of a build tree took, for later builds of the recipe; where it cannot be written, do not."""
    with suppress(OSError, UsageError):
        records = whole_calls(_parsed(events.read_text(errors="replace")))
        old = own_costs(cache, recipe) or CostData(measured="on this machine", units={})
        new = enter(old, records, archs=None)
        if new != old:
            path = _own_file(cache, recipe)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, costs_json(new).encode())


def whole_calls(records: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the successful calls that took no device step over: one that did needs less memory than it will alone."""
    taken: set[Any] = set()
    for record in records:
        if not isinstance(record, dict):
            continue
        if record.get("event") == "steps" and record.get("hits"):
            taken.add(record.get("unit"))
        elif record.get("event") == "end" and _is_measurement(record) and isinstance(record.get("archs"), int):
            if record["unit"] not in taken:
                yield record
            taken.discard(record["unit"])


def _own_file(cache: Path, recipe: Recipe) -> Path:
    return cache / "measured" / f"{recipe.name}-{recipe.package.version}.json"
