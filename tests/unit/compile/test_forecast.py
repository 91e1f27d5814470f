"""The time that is left, by replaying builds: what was forecast at each moment against what then came."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from scripts.compile.admission import lookahead
from scripts.compile.forecast import Forecast, _log_survival
from scripts.compile.schedule import Task
from tests.replay import errors
from tests.unit.recipe.test_cost_model import book


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


# Of vLLM 0.20.1's core for one arch, by what they took on 16 cores: 2 paged attention kernels, 8 machete, 6 CUTLASS
# W4A8 and scaled_mm, 28 Marlin, 64 light ones (docs/performance.md).
CORE = [440.0] * 2 + [290.0] * 8 + [240.0] * 6 + [230.0] * 28 + [30.0, 50.0, 70.0, 110.0] * 16


@pytest.mark.parametrize("slots", [2, 4, 8, 16])
def test_no_core_idles_though_ninja_shows_only_a_part_of_the_units_at_a_time(slots: int) -> None:
    source = random.Random(slots)
    manifest = source.sample(CORE, len(CORE))
    window = [manifest.pop() for _ in range(min(len(manifest), lookahead(10**12, slots)))]
    running: list[float] = []
    now = worked = 0.0
    while window or running:
        while window and len(running) < slots:
            longest = window.pop(window.index(max(window)))
            seconds = longest * source.uniform(0.75, 1.3)
            worked += seconds
            heapq.heappush(running, now + seconds)
            window += [manifest.pop()] if manifest else []
        now = heapq.heappop(running)
    assert worked / (slots * now) >= 0.95


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
    assert forecast.left({}, {"a": 50}) >= 10


def test_units_that_are_overdue_tell_the_pace_before_any_has_finished() -> None:
    """As seen: "2 to 5 minutes left" for half an hour, then 26. Here 20 units are 8 times slower than expected."""
    tasks = [Task(f"u{index}", 60, 1) for index in range(20)]
    forecast, whole = Forecast(tasks, jobs=2, memory=99), 20 * 480 / 2
    assert forecast.left({}, {"u0": 75, "u1": 75}) > 1.3 * 600
    told = [forecast.left({}, {"u0": age, "u1": age}) + age for age in (120, 240, 400)]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(whole, rel=0.25)
    assert forecast.left({"u0": 480, "u1": 480}, {}) == pytest.approx(whole - 480, rel=0.2)


def test_the_share_of_a_core_that_units_get_tells_the_pace_at_once() -> None:
    forecast = Forecast([Task(f"u{index}", 60, 1) for index in range(20)], jobs=2, memory=99)
    assert forecast.left({}, {"u0": 20, "u1": 20}, share=0.25) == pytest.approx(4 * 600 - 20)


def test_objects_out_of_the_compiler_cache_do_not_make_the_machine_fast() -> None:
    tasks = [Task(f"hit{index}", 60, 1) for index in range(40)] + [Task(f"miss{index}", 300, 1) for index in range(4)]
    forecast = Forecast(tasks, jobs=2, memory=99)
    hits = {f"hit{index}": 0.0 for index in range(40)}
    assert forecast.pace(hits, {}) == 1
    assert forecast.left(hits, {"miss0": 60, "miss1": 60}) >= 240


def test_the_chance_of_a_late_unit_is_smooth_where_erfc_has_no_digits() -> None:
    values = [_log_survival(at / 10) for at in range(-50, 300)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert values[109] == pytest.approx(values[110], abs=0.7)


def test_units_that_nobody_expected_change_nothing() -> None:
    forecast = Forecast([Task("a", 10, 1)], jobs=1, memory=9)
    assert forecast.left({"x": 1000}, {"y": 3}) == 10
    assert Forecast([], jobs=1, memory=1).left({}, {}) == 0


def test_a_log_is_replayed_with_its_waits_kills_and_missing_archs() -> None:
    def event(kind: str, name: str, at: float, **more: object) -> dict[str, object]:
        return {"event": kind, "unit": f"CMakeFiles/_C.dir/{name}.o", "source": f"/t/csrc/{name}", "time": at, **more}

    log = [
        event("start", "a.cu", 100.0),
        event("start", "b.cu", 100.0),
        event("killed", "a.cu", 101.0),
        event("end", "b.cu", 110.0, archs=1),
        event("start", "a.cu", 110.0),
        event("end", "a.cu", 120.0),
    ]
    known = book({"_C/a.cu": {1: (10, 1)}, "_C/b.cu": {1: (10, 1)}})
    assert errors(log, known, jobs=1) == pytest.approx([0.0, 0.0])
    wrong = book({"_C/a.cu": {1: (30, 1)}, "_C/b.cu": {1: (10, 1)}})
    assert errors(log, wrong, jobs=1)[0] > 0.5
