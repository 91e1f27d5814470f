"""Replay a real build's events: how far off was the time left at each finished unit?

`python -m tests.replay EVENTS --recipe R --jobs N` prints the worst error from the tenth unit on, as a share of all
time, with the recipe's cost file as it is. The log must be of one run that built everything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.compile.build import task_of
from scripts.compile.forecast import Forecast
from scripts.recipe.costs import CostBook, Unit, cost_book
from scripts.recipe.files import load_recipe


def errors(events: Sequence[dict[str, Any]], book: CostBook, *, jobs: int, archs: int = 1) -> list[float]:
    """Return, for each finished unit, |forecast end / real end - 1|; `archs` for events that do not say."""
    ends = [event for event in events if event["event"] == "end"]
    begin, over = events[0]["time"], ends[-1]["time"]
    units = [Unit(event["unit"], event["source"], event.get("archs") or archs) for event in ends]
    forecast = Forecast([task_of(unit, book) for unit in units], jobs=jobs, memory=10**15)
    running: dict[str, float] = {}
    finished: dict[str, float] = {}
    found = []
    for event in events:
        if event["event"] == "start":
            running[event["unit"]] = event["time"]
            continue
        started = running.pop(event["unit"])
        if event["event"] == "end":
            finished[event["unit"]] = event["time"] - started
            ages = {unit: event["time"] - since for unit, since in running.items()}
            whole = event["time"] - begin + forecast.left(finished, ages)
            found.append(abs(whole / (over - begin) - 1))
    return found


def main() -> None:
    """Print the worst errors of a log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--archs", type=int, default=1)
    options = parser.parse_args()
    events = [json.loads(line) for line in options.events.read_text().splitlines()]
    found = errors(events, cost_book(load_recipe(options.recipe)), jobs=options.jobs, archs=options.archs)
    late = f"{max(found[9:]):.1%}" if len(found) > 9 else "no tenth unit"
    print(f"{len(found)} units, worst error {max(found):.1%}, from the tenth on {late}")  # noqa: T201


if __name__ == "__main__":
    main()
