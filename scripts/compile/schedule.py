"""Which unit goes next, when all are done, who compiles which: pure functions on expected costs.

List scheduling, longest first: its makespan is at most 4/3 of the best possible (Graham 1969), and much nearer for
hundreds of units. A unit that needs more than a slot's share of the memory counts as so many times longer: it holds
others up by as much. With 16 GB that makes vLLM's core 7 % quicker on four cores than by seconds alone (simulated).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_PIECE = 60.0  # seconds of a unit of which nothing is known
_PIECES = 100  # such units for each slot at most: more of them tell nothing more


@dataclass(frozen=True)
class Task:
    """A unit with what it is expected to take."""

    name: str
    seconds: float
    bytes: int


def choose(waiting: Iterable[Task], free: int, *, share: float = math.inf) -> Task | None:
    """Return the longest task that fits into `free` bytes, `share` being a slot's part of all; None when none does."""
    fitting = [task for task in waiting if task.bytes <= free]
    return max(fitting, key=lambda task: _rank(task, share), default=None)


def smallest(waiting: Iterable[Task]) -> Task | None:
    """Return the task that needs least memory: what to start when nothing fits and nothing runs."""
    return min(waiting, key=lambda task: (task.bytes, task.name), default=None)


def makespan(todo: Sequence[Task], running: Sequence[Task], *, slots: int, memory: int) -> float:
    """Return the seconds until all are done: `running` with the seconds each has left, `todo` admitted as they fit."""
    ends = [(task.seconds, index) for index, task in enumerate(running)]
    tasks = list(running)
    heapq.heapify(ends)
    left = sorted(todo, key=lambda task: _rank(task, memory / slots))
    free = memory - sum(task.bytes for task in running)
    now = 0.0
    while left:
        index = next((place for place in range(len(left) - 1, -1, -1) if left[place].bytes <= free), None)
        if index is None and not ends:
            index = left.index(smallest(left) or left[0])
        if index is None or len(ends) >= slots:
            now, ended = heapq.heappop(ends)
            free += tasks[ended].bytes
            continue
        task = left.pop(index)
        free -= task.bytes
        heapq.heappush(ends, (now + task.seconds, len(tasks)))
        tasks.append(task)
    return max((end for end, _ in ends), default=now)


def wall_seconds(known: Sequence[Task], total: float, *, slots: int, memory: int, other_bytes: int) -> float:
    """Return the seconds that `total` core-seconds of units take, of which the `known` tasks are a part.

    The rest is taken to be units of the known ones' mean length that need `other_bytes` each. Known tasks that are
    longer than `total` together are shortened.
    """
    sure = sum(task.seconds for task in known)
    scale = min(1.0, total / sure) if sure else 0.0
    tasks = [replace(task, seconds=task.seconds * scale) for task in known]
    rest = max(0.0, total - sure)
    mean = sure / len(known) if sure else _PIECE
    count = slots * max(1, min(_PIECES, round(rest / slots / mean)))
    tasks += [Task(f"other {number}", rest / count, other_bytes) for number in range(count if rest else 0)]
    return makespan(tasks, [], slots=slots, memory=memory)


def split(tasks: Iterable[Task], count: int) -> list[list[Task]]:
    """Part tasks into `count` lists of about equal seconds, the same on every machine: longest to the emptiest."""
    parts: list[list[Task]] = [[] for _ in range(count)]
    loads = [(0.0, index) for index in range(count)]
    for task in sorted(tasks, key=_rank, reverse=True):
        load, index = heapq.heappop(loads)
        parts[index].append(task)
        heapq.heappush(loads, (load + task.seconds, index))
    return parts


def _rank(task: Task, share: float = math.inf) -> tuple[float, str]:
    return task.seconds * max(1.0, task.bytes / max(1.0, share)), task.name
