"""The Chrome trace of a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.report.timeline import read_timeline
from scripts.report.trace import running, trace
from tests.builds import end_event, memory, phase, write_lines


def make(folder: Path) -> dict[str, Any]:
    events = write_lines(folder / "events.jsonl", end_event("moe/a.cu", 0, 10), end_event("moe/b.cu", 2, 20, code=1))
    rows = [phase("moe/a.cu", "preprocess", 0, 3), phase("moe/a.cu", "cicc", 2.6, 7.8), memory(1, 5)]
    write_lines(folder / "samples.jsonl", *rows)
    return trace(read_timeline(events), "a wheel")


def test_every_unit_is_a_slice_with_its_phases_nested_inside(tmp_path: Path) -> None:
    data = json.loads(json.dumps(make(tmp_path)))
    slices = [event for event in data["traceEvents"] if event["ph"] == "X"]
    assert [(item["name"], item["cat"], item["tid"], item["ts"], item["dur"]) for item in slices] == [
        ("moe/a.cu", "unit", 1, 0, 10_000_000),
        ("preprocess", "phase", 1, 0, 3_000_000),
        ("cicc", "phase", 1, 3_000_000, 7_000_000),  # from 2.6 to 10.4 s, as blurred clocks have it
        ("moe/b.cu", "failed", 2, 2_000_000, 20_000_000),
    ]


def test_rows_and_counters_are_named(tmp_path: Path) -> None:
    events = make(tmp_path)["traceEvents"]
    assert [item["args"]["name"] for item in events if item["ph"] == "M"] == ["a wheel", "unit 1", "unit 2"]
    counters = [(item["name"], item["ts"], item["args"]) for item in events if item["ph"] == "C"]
    assert counters[0] == ("memory", 1_000_000, {"bytes": 5})
    assert counters[1:] == [
        ("units", 0, {"running": 1}),
        ("units", 2_000_000, {"running": 2}),
        ("units", 10_000_000, {"running": 1}),
        ("units", 22_000_000, {"running": 0}),
    ]


def test_a_row_that_is_taken_over_at_once_counts_one_unit(tmp_path: Path) -> None:
    rows = [end_event("a.cu", 0, 4), end_event("b.cu", 4, 4)]
    timeline = read_timeline(write_lines(tmp_path / "events.jsonl", *rows))
    assert max(count for _, count in running(timeline)) == 1
