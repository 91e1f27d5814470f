"""When a compilation will be done: the cost model's expectations, corrected by how long units really take here.

How many seconds an expected second takes (the pace) is one number for all units, and each strays from it by a factor
(lognormal, SPREAD). It is learned from units that have finished, and from those that run: one that has run longer than
expected says that the pace is at least so much, long before anything has finished. The model's word counts as much as
a few units. Objects out of the compiler cache say nothing about the pace, only how likely the next one is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scripts.compile.schedule import Task, makespan

SPREAD = 0.35  # standard deviation of log(unit's pace / common pace); 0.2 to 0.4 in the builds of docs/scheduling.md
DOUBT = 1.0  # standard deviation of log(common pace): another machine may well be three times as slow
OVERDUE = 0.2  # a unit that runs longer than expected is taken to need this share of its time still
YOUNG = 5.0  # seconds: a unit that has run no longer may still come out of the compiler cache
_GRID = [step / 20 for step in range(-80, 121)]  # of log(pace): 0.02 to 400


class Forecast:
    """Time left for a known set of units."""

    def __init__(self, todo: Sequence[Task], *, jobs: int, memory: int) -> None:
        self.tasks = {task.name: task for task in todo}
        self._jobs, self._memory = jobs, memory
        self._mean = sum(task.seconds for task in todo) / len(todo) if todo else 0.0

    def pace(self, finished: Mapping[str, float], running: Mapping[str, float], share: float = 1.0) -> float:
        """Return how many seconds an expected second takes, by what has finished (0 s: out of the cache) and what runs.

        `share` is the part of a core that each running unit gets: the model's seconds are those of a whole one.
        """
        count = total = 0.0
        for name, seconds in finished.items():
            if seconds > 0 and (log := self._log(name, seconds)) is not None:
                weight = self._weight(name)
                count, total = count + weight, total + weight * log
        ages = [(self._weight(name), self._log(name, age)) for name, age in running.items() if age > 0]
        first = -math.log(min(1.0, max(0.02, share)))

        def likelihood(log: float) -> float:
            value = -((log - first) ** 2) / (2 * DOUBT**2) - (count * log * log - 2 * total * log) / (2 * SPREAD**2)
            return value + sum(weight * _log_survival((at - log) / SPREAD) for weight, at in ages if at is not None)

        if not count and not any(at is not None and at > first for _, at in ages):
            return math.exp(first)  # nothing is known yet
        return math.exp(max(_GRID, key=likelihood))

    def _log(self, name: str, seconds: float) -> float | None:
        task = self.tasks.get(name)
        return math.log(seconds / task.seconds) if task and task.seconds > 0 else None

    def _weight(self, name: str) -> float:
        """Return how much a unit's word counts: by its length, since what matters is the sum."""
        task = self.tasks.get(name)
        return min(3.0, max(0.1, task.seconds / self._mean)) if task and self._mean else 0.0

    def left(self, finished: Mapping[str, float], running: Mapping[str, float], share: float = 1.0) -> float:
        """Return the seconds until all is done.

        `finished` and `running` give units' seconds and seconds so far; 0 for one that came out of the cache.
        """
        pace = self.pace(finished, running, share)
        now = [self._rest(self.tasks[name], pace, age) for name, age in running.items() if name in self.tasks]
        hits = sum(1 for name, seconds in finished.items() if name in self.tasks and seconds <= 0)
        others = len(finished) - hits + sum(1 for age in running.values() if age > YOUNG)
        compiled = pace * (1 - hits / (hits + others + 2))
        rest = [task for name, task in self.tasks.items() if name not in finished and name not in running]
        todo = [replace(task, seconds=task.seconds * compiled) for task in rest]
        return makespan(todo, now, slots=self._jobs, memory=self._memory)

    @staticmethod
    def _rest(task: Task, pace: float, age: float) -> Task:
        expected = task.seconds * pace
        return replace(task, seconds=max(expected - age, OVERDUE * max(expected, age)))


def _log_survival(deviations: float) -> float:
    """Return the logarithm of the chance that a standard normal value is larger."""
    if deviations > 6:  # erfc loses its digits
        return -deviations * deviations / 2 - math.log(deviations * math.sqrt(2 * math.pi))
    return math.log(0.5 * math.erfc(deviations / math.sqrt(2)))
