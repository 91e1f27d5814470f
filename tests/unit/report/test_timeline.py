"""What the event and sample files of a tree say about its build."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.report.timeline import PAUSE, Timeline, read_timeline, thinned
from tests.builds import START, end_event, memory, phase, write_lines


def two_units(folder: Path) -> Timeline:
    events = write_lines(
        folder / "events.jsonl", end_event("moe/a.cu", 0, 10, cache="miss"), end_event("moe/b.cu", 2, 20, cache="hit")
    )
    rows = [
        phase("moe/a.cu", "cicc", 1, 6),
        phase("moe/a.cu", "cudafe++", 7, 2),
        memory(1, 10**9),
        memory(5, 3 * 10**9),
    ]
    write_lines(folder / "samples.jsonl", *rows)
    return read_timeline(events)


def test_units_that_overlap_have_lanes_of_their_own(tmp_path: Path) -> None:
    timeline = two_units(tmp_path)
    assert [(span.source, span.lane, span.start, span.end) for span in timeline.units] == [
        ("moe/a.cu", 0, 0, 10),
        ("moe/b.cu", 1, 2, 22),
    ]
    assert (timeline.seconds, timeline.lanes, timeline.started) == (22, 2, START)
    assert [span.cache for span in timeline.units] == ["miss", "hit"]
    assert timeline.memory == ((1, 10**9), (5, 3 * 10**9))


def test_a_lane_is_used_again_when_it_is_free(tmp_path: Path) -> None:
    rows = [end_event("a.cu", 0, 5), end_event("b.cu", 0, 9), end_event("c.cu", 5, 3)]
    timeline = read_timeline(write_lines(tmp_path / "events.jsonl", *rows))
    assert {span.unit: span.lane for span in timeline.units} == {"a.cu.o": 0, "b.cu.o": 1, "c.cu.o": 0}


def test_phases_belong_to_the_call_they_ran_in(tmp_path: Path) -> None:
    events = write_lines(tmp_path / "events.jsonl", end_event("a.cu", 0, 10, code=1), end_event("a.cu", 20, 10))
    write_lines(tmp_path / "samples.jsonl", phase("a.cu", "cicc", 1, 4), phase("a.cu", "ptxas", 22, 3))
    first, second = read_timeline(events).units
    assert (first.costs, second.costs) == ({"cicc": 4}, {"ptxas": 3})
    assert first.code == 1


def test_costs_are_added_up_over_archs_the_largest_first(tmp_path: Path) -> None:
    events = write_lines(tmp_path / "events.jsonl", end_event("a.cu", 0, 10))
    phases = [phase("a.cu", "ptxas", 0, 3), phase("a.cu", "cicc", 3, 2), phase("a.cu", "cicc", 5, 2.5)]
    write_lines(tmp_path / "samples.jsonl", *phases)
    (span,) = read_timeline(events).units
    assert list(span.costs.items()) == [("cicc", 4.5), ("ptxas", 3)]


def test_the_pause_between_two_runs_is_left_out(tmp_path: Path) -> None:
    rows = [end_event("a.cu", 0, 100), end_event("b.cu", 4000, 50)]
    timeline = read_timeline(write_lines(tmp_path / "events.jsonl", *rows))
    first, second = timeline.units
    assert (first.start, first.end) == (0, 100)
    assert (second.start, second.end) == (100, 150)


def test_torn_lines_and_strange_ones_are_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", end_event("a.cu", 0, 1), {"event": "start"})
    path.write_text(path.read_text() + '[1]\n{"event": "end", "uni')
    assert [span.unit for span in read_timeline(path).units] == ["a.cu.o"]


def test_nothing_compiled_is_an_empty_timeline(tmp_path: Path) -> None:
    timeline = read_timeline(tmp_path / "absent")
    assert (timeline.seconds, timeline.lanes, timeline.units) == (0, 0, ())


def test_the_report_data_give_the_timeline_back(tmp_path: Path) -> None:
    timeline = two_units(tmp_path)
    assert Timeline.model_validate_json(timeline.model_dump_json()) == timeline


def test_a_long_memory_curve_keeps_its_peak() -> None:
    points = tuple((float(index), index % 977) for index in range(10_000))
    kept = thinned(points)
    assert len(kept) <= 600
    assert max(rss for _, rss in kept) == 976


@given(st.lists(st.tuples(st.floats(0, 9000), st.floats(0.1, 500)), min_size=1, max_size=25))
def test_spans_of_a_lane_never_overlap_and_keep_their_length(calls: list[tuple[float, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = [end_event(f"{index}.cu", *call) for index, call in enumerate(calls)]
        timeline = read_timeline(write_lines(Path(folder) / "events", *rows))
    for lane in range(timeline.lanes):
        spans = sorted((span.start, span.end) for span in timeline.units if span.lane == lane)
        assert all(later[0] >= earlier[1] - 0.03 for earlier, later in pairwise(spans))
    lengths = {f"{index}.cu.o": seconds for index, (_, seconds) in enumerate(calls)}
    for span in timeline.units:
        assert span.end - span.start == pytest.approx(lengths[span.unit], abs=0.05)
    assert timeline.seconds <= sum(seconds for _, seconds in calls) + PAUSE * len(calls) + 1
