from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scripts.compile.schedule import Task, choose, makespan, smallest, split

TASKS = st.lists(
    st.builds(Task, st.uuids().map(str), st.floats(0.1, 500), st.integers(1, 10)),
    max_size=40,
    unique_by=lambda t: t.name,
)


def task(name: str, seconds: float, size: int = 1) -> Task:
    return Task(name, seconds, size)


def test_the_longest_that_fits_goes_next() -> None:
    waiting = [task("small", 1, 1), task("long", 9, 5), task("longest", 10, 8)]
    assert choose(waiting, 8) == waiting[2]
    assert choose(waiting, 7) == waiting[1]
    assert choose(waiting, 0) is None
    assert smallest(waiting) == waiting[0]
    assert smallest([]) is None


@given(TASKS, st.integers(1, 9))
def test_parts_hold_every_task_once_and_differ_by_one_task_at_most(tasks: list[Task], count: int) -> None:
    parts = split(tasks, count)
    assert sorted(task.name for part in parts for task in part) == sorted(task.name for task in tasks)
    loads = [sum(task.seconds for task in part) for part in parts]
    assert max(loads) - min(loads) <= max((task.seconds for task in tasks), default=0) + 1e-6


@given(TASKS, st.randoms(use_true_random=False))
def test_parts_do_not_depend_on_the_order_of_the_tasks(tasks: list[Task], random: st.DataObject) -> None:
    shuffled = list(tasks)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split(shuffled, 3) == split(tasks, 3)


@given(TASKS, st.integers(1, 8))
def test_the_makespan_lies_between_the_bounds_of_list_scheduling(tasks: list[Task], slots: int) -> None:
    total, longest = sum(task.seconds for task in tasks), max((task.seconds for task in tasks), default=0)
    span = makespan(tasks, [], slots=slots, memory=10**9)
    assert max(total / slots, longest) - 1e-6 <= span <= total / slots + longest + 1e-6


@given(TASKS)
def test_without_memory_for_two_tasks_run_one_by_one(tasks: list[Task]) -> None:
    wide = [Task(item.name, item.seconds, 6) for item in tasks]
    assert abs(makespan(wide, [], slots=8, memory=10) - sum(item.seconds for item in wide)) < 1e-6


def test_running_tasks_count_with_what_they_have_left_and_the_memory_they_hold() -> None:
    running = [task("r", 10, 6)]
    assert makespan([], running, slots=2, memory=10) == 10
    assert makespan([task("a", 5, 4)], running, slots=2, memory=10) == 10
    assert makespan([task("a", 5, 5)], running, slots=2, memory=10) == 15
    assert makespan([task("huge", 5, 99)], [], slots=2, memory=10) == 5  # it runs alone rather than never
