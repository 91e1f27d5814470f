"""The time that is left, by replaying builds: what was forecast at each moment against what then came."""

from __future__ import annotations

import heapq
import random

import pytest

from scripts.forecast import Forecast
from scripts.schedule import Task


def replay(expected: dict[str, float], real: dict[str, float], slots: int) -> list[tuple[int, float, float]]:
    """Run a build, longest expected first; return (units finished, forecast of the whole, real whole) at each end."""
    forecast = Forecast([Task(name, seconds, 1) for name, seconds in expected.items()], jobs=slots, memory=10**9)
    waiting = sorted(expected, key=lambda name: -expected[name])
    running: list[tuple[float, str]] = []
    started: dict[str, float] = {}
    finished: dict[str, float] = {}
    now, told = 0.0, []
    while waiting or running:
        while waiting and len(running) < slots:
            name = waiting.pop(0)
            started[name] = now
            heapq.heappush(running, (now + real[name], name))
        now, name = heapq.heappop(running)
        finished[name] = real[name]
        ages = {other: now - started[other] for _, other in running}
        told.append((len(finished), now + forecast.left(finished, ages)))
    return [(count, whole, now) for count, whole in told]


@pytest.mark.parametrize("slots", [2, 4, 16])
@pytest.mark.parametrize("pace", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_from_the_tenth_unit_on_the_end_is_known_within_20_percent(seed: int, slots: int, pace: float) -> None:
    source = random.Random(seed)
    expected = {f"u{i}": source.choice((40.0, 50.0, 60.0, 80.0, 110.0, 200.0, 290.0, 440.0)) for i in range(108)}
    real = {name: seconds * pace * source.uniform(0.75, 1.3) for name, seconds in expected.items()}
    late = [abs(whole / end - 1) for count, whole, end in replay(expected, real, slots) if count >= 10]
    assert max(late) <= 0.2


def test_the_first_word_is_the_model_s_own_and_the_last_is_nothing() -> None:
    forecast = Forecast([Task("a", 10, 1), Task("b", 30, 1)], jobs=1, memory=9)
    assert forecast.left({}, {}) == 40
    assert forecast.left({}, {"b": 10}) == 30
    assert forecast.left({"a": 10, "b": 30}, {}) == 0


def test_an_overdue_unit_still_needs_a_part_of_its_age() -> None:
    forecast = Forecast([Task("a", 10, 1)], jobs=1, memory=9)
    assert forecast.left({}, {"a": 50}) == 5


def test_units_that_nobody_expected_change_nothing() -> None:
    forecast = Forecast([Task("a", 10, 1)], jobs=1, memory=9)
    assert forecast.left({"x": 1000}, {"y": 3}) == 10
    assert Forecast([], jobs=1, memory=1).left({}, {}) == 0
