"""What a build leaves behind, made up: events and samples of a tree, and a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.core.files import file_sha256
from scripts.report.models import SCHEMA, BuildReport, report_of
from scripts.report.timeline import Timeline

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


def report_data(timeline: Timeline | None = None, **changes: Any) -> dict[str, Any]:
    """Return a report as `NAME.whl.report.json` has it."""
    return {
        "schema": SCHEMA,
        "wheel": {
            "name": "vllm-1.whl", "sha256": "ab" * 32, "size": 8_123_456, "version": "1", "platform": "manylinux_2_34"
        },
        "recipe": {"name": "mine", "digest": "7a", "notice": "not <for> serving"},
        "build": "b1",
        "sources": [{"name": "source", "version": "1", "kind": "sdist", "project": "vllm 1", "sha256": "cd" * 32}],
        "patches": [{"name": "0001-a.patch", "sha256": "ef" * 32}],
        "toolchain": {"key": "k", "python": "3.11", "host_compiler": "g++ 12", "cuda": "wheels", "packages": {}},
        "torch": {"version": "2.11.0", "cuda": "13.0"},
        "archs": "9.0;12.0",
        "components": [
            {"name": "_moe_C", "size": 3_600_000, "cubins": {"90": 2}, "ptx": {}, "operators": ["a", "b"],
             "bytes_per_arch": {"sm_90": 2_000_000}, "containers": ["a.cu", "b.cu"]},
            {"name": "cumem_allocator", "size": 27_100, "cubins": {}, "ptx": {}, "operators": [],
             "bytes_per_arch": {}, "containers": []},
        ],
        "stages": {"fetch": {"seconds": 2.0, "peak_bytes": 0}, "compile": {"seconds": 61, "peak_bytes": 6_200_000_000}},
        "timeline": timeline.model_dump(mode="json") if timeline else None,
        "audit": audit_data(),
        **changes,
    }  # fmt: skip


def audit_data(**changes: Any) -> dict[str, Any]:
    """Return an audit as `nox -s audit -- --json` writes it."""
    return {
        "subject": "x.whl", "kind": "wheel", "size": 7, "sha256": None, "name": "vllm", "version": "1", "tags": [],
        "torch": None, "ok": True, "targets": [], "components": {}, "findings": [], "seconds": 0.1, **changes,
    }  # fmt: skip


def make_report(timeline: Timeline | None = None, **changes: Any) -> BuildReport:
    """Return a report as it is read from `NAME.whl.report.json`."""
    return report_of(json.dumps(report_data(timeline, **changes)), "a report")


def put_report(wheel: Path, *, ok: bool = True, findings: Sequence[Any] = (), **changes: Any) -> dict[str, Any]:
    """Write a report about a wheel beside it, whose audit passed or did not; return it."""
    about = {**report_data()["wheel"], "name": wheel.name, "sha256": file_sha256(wheel)}
    data = report_data(wheel=about, audit=audit_data(ok=ok, findings=list(findings)), **changes)
    wheel.with_name(wheel.name + ".report.json").write_text(json.dumps(data))
    return data
