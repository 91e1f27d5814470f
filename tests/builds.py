"""What a build leaves behind, made up: events and samples of a tree, and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.report.timeline import Timeline
from scripts.report.wheelhouse import SCHEMA

START = 1_800_000_000.0


def end_event(unit: str, start: float, seconds: float, **changes: Any) -> dict[str, Any]:
    """Return the launcher's record of a unit that ended; `start` in seconds from the start of the build."""
    return {
        "event": "end",
        "unit": f"{unit}.o",
        "source": f"/build/source/csrc/{unit}",
        "time": START + start + seconds,
        "code": 0,
        "seconds": seconds,
        "cpu_seconds": round(seconds * 0.9, 2),
        "peak_kb": 1_000_000,
        **changes,
    }


def phase(unit: str, name: str, start: float, seconds: float) -> dict[str, Any]:
    """Return the sampler's record of a phase."""
    return {"unit": f"{unit}.o", "phase": name, "start": START + start, "end": START + start + seconds, "cpu": seconds}


def memory(time: float, rss: int) -> dict[str, Any]:
    """Return the sampler's record of memory."""
    return {"time": START + time, "rss": rss}


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    """Write records as the launcher and the sampler do."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_report(timeline: Timeline | None = None, **changes: Any) -> dict[str, Any]:
    """Return a report as `NAME.whl.report.json` has it."""
    audit = {
        "subject": "x.whl", "kind": "wheel", "size": 7, "sha256": None, "name": "vllm", "version": "1", "tags": [],
        "torch": None, "ok": True, "targets": [], "components": {}, "findings": [], "seconds": 0.1,
    }  # fmt: skip
    return {
        "schema": SCHEMA,
        "wheel": {
            "name": "vllm-1.whl", "sha256": "ab" * 32, "size": 8_123_456, "version": "1", "platform": "manylinux_2_34"
        },
        "recipe": {"name": "mine", "notice": "not <for> serving"},
        "sources": [{"name": "source", "version": "1", "sha256": "cd" * 32}],
        "patches": [{"name": "0001-a.patch", "sha256": "ef" * 32}],
        "torch": {"version": "2.11.0", "cuda": "13.0"},
        "archs": "9.0;12.0",
        "components": [
            {"name": "_moe_C", "size": 3_600_000, "operators": ["a", "b"], "bytes_per_arch": {"sm_90": 2_000_000}},
            {"name": "cumem_allocator", "size": 27_100, "operators": [], "bytes_per_arch": {}},
        ],
        "stages": {"fetch": {"seconds": 2.0, "peak_bytes": 0}, "compile": {"seconds": 61, "peak_bytes": 6_200_000_000}},
        "timeline": timeline.data() if timeline else None,
        "audit": audit,
        **changes,
    }  # fmt: skip
