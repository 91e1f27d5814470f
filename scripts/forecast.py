"""When a compilation will be done: the cost model's expectations, corrected by how long units really take here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scripts.schedule import Task, makespan

PRIOR_UNITS = 2.0  # the model's word counts as much as this many finished units of mean length
OVERDUE = 0.1  # a unit that runs longer than expected is taken to need this share of its time still


class Forecast:
    """Time left for a known set of units."""

    def __init__(self, todo: Sequence[Task], *, jobs: int, memory: int) -> None:
        self.tasks = {task.name: task for task in todo}
        self._jobs, self._memory = jobs, memory
        mean = sum(task.seconds for task in todo) / len(todo) if todo else 0.0
        self._prior = PRIOR_UNITS * max(mean, 0.01)

    def pace(self, finished: Mapping[str, float]) -> float:
        """Return how many seconds an expected second takes, by the units that have finished (name: seconds)."""
        known = [(self.tasks[name].seconds, seconds) for name, seconds in finished.items() if name in self.tasks]
        expected, taken = sum(pair[0] for pair in known), sum(pair[1] for pair in known)
        return (taken + self._prior) / (expected + self._prior)

    def left(self, finished: Mapping[str, float], running: Mapping[str, float]) -> float:
        """Return the seconds until all is done; `finished` and `running` give units' seconds and seconds so far."""
        pace = self.pace(finished)
        now = [self._rest(self.tasks[name], pace, age) for name, age in running.items() if name in self.tasks]
        rest = [task for name, task in self.tasks.items() if name not in finished and name not in running]
        todo = [replace(task, seconds=task.seconds * pace) for task in rest]
        return makespan(todo, now, slots=self._jobs, memory=self._memory)

    @staticmethod
    def _rest(task: Task, pace: float, age: float) -> Task:
        expected = task.seconds * pace
        return replace(task, seconds=max(expected - age, OVERDUE * max(expected, age)))
