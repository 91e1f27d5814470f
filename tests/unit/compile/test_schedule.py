from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.compile.schedule import Task, choose, makespan, smallest, split, wall_seconds
from scripts.recipe.costs import cost_book
from scripts.recipe.expected import expected_units
from scripts.recipe.files import load_recipe

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


def test_a_task_that_takes_the_memory_of_several_counts_as_several_times_longer() -> None:
    waiting = [task("long", 10, 2), task("wide", 4, 8)]
    assert choose(waiting, 8) == waiting[0]
    assert choose(waiting, 8, share=2) == waiting[1]  # it keeps three other slots empty
    assert choose(waiting, 8, share=4) == waiting[0]


def core() -> list[Task]:
    """Return the units of vLLM 0.20.1 for 9.0, as they were measured."""
    recipe = load_recipe("vllm-0.20.1-cu130")
    units = expected_units(recipe, recipe.archs[3:4], cost_book(recipe))
    return [Task(name, item.cpu_seconds, item.peak_bytes) for name, item in units.items()]


@pytest.mark.parametrize(
    ("slots", "gigabytes", "most"),
    [(2, 15, 1.01), (4, 23, 1.01), (4, 15, 1.16), (8, 31, 1.12), (16, 63, 1.01)],
)
def test_the_real_core_is_done_nearly_as_soon_as_cores_and_memory_allow(
    slots: int, gigabytes: int, most: float
) -> None:
    tasks = core()
    assert len(tasks) == 108
    by_cores = sum(item.seconds for item in tasks) / slots
    by_memory = sum(item.seconds * item.bytes for item in tasks) / (gigabytes * 1e9)
    least = max(by_cores, by_memory, *(item.seconds for item in tasks))
    span = makespan(tasks, [], slots=slots, memory=gigabytes * 10**9)
    assert least - 1e-6 <= span <= most * least


@given(TASKS, st.floats(1, 5000), st.integers(1, 8))
def test_expected_seconds_are_at_least_the_work_over_the_slots_and_the_longest_unit(
    tasks: list[Task], total: float, slots: int
) -> None:
    span = wall_seconds(tasks, total, slots=slots, memory=10**9, other_bytes=1)
    assert span >= total / slots - 1e-6
    sure = sum(item.seconds for item in tasks)
    if tasks and sure <= total:
        assert span >= max(item.seconds for item in tasks) - 1e-6


def test_work_that_no_unit_was_measured_of_is_spread_over_slots_and_memory() -> None:
    assert wall_seconds([], 240, slots=4, memory=100, other_bytes=1) == pytest.approx(60)
    assert wall_seconds([], 240, slots=4, memory=100, other_bytes=50) == pytest.approx(120)
    known = [task("a", 10), task("b", 30)]
    assert wall_seconds(known, 80, slots=2, memory=100, other_bytes=1) == pytest.approx(40)
    assert wall_seconds(known, 20, slots=2, memory=100, other_bytes=1) == pytest.approx(15)  # they took half as long


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
