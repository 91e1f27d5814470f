"""The sampler, watching real processes that are called as compilers are."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from scripts.compile.sampling import Phase, Sampler, phase_of
from scripts.compile.standalone.launcher import EVENTS
from scripts.core.paths import ROOT
from scripts.core.process import run_logged
from scripts.report.timeline import read_timeline


@pytest.mark.parametrize(
    ("program", "command", "phase"),
    [
        ("cc1plus", ["cc1plus", "-E", "x.cu"], Phase.PREPROCESS),
        ("cc1plus", ["cc1plus", "x.cpp"], Phase.HOST),
        ("cicc", [], Phase.CICC),
        ("ptxas", [], Phase.PTXAS),
        ("nvcc", [], None),
        ("ninja", [], None),
    ],
)
def test_a_phase_is_known_by_its_program(program: str, command: list[str], phase: Phase | None) -> None:
    assert phase_of(program, command) is phase


def busy(folder: Path, name: str) -> Path:
    """Return a program of this name that uses CPU for a while."""
    path = folder / name
    path.symlink_to(Path(shutil.which("sh") or "/bin/sh").resolve())
    return path


def test_phases_of_a_unit_and_memory_are_seen_while_it_runs(tmp_path: Path) -> None:
    loop = "i=0; while [ $i -lt 900000 ]; do i=$((i+1)); done"
    cicc, ptxas = busy(tmp_path, "cicc"), busy(tmp_path, "ptxas")
    driver = tmp_path / "nvcc"
    driver.write_text(f"#!/bin/sh\n'{cicc}' -c '{loop}'\n'{ptxas}' -c '{loop}'\n")
    driver.chmod(0o755)
    command = [
        sys.executable,
        "-S",
        "-E",
        str(ROOT / "scripts/compile/standalone/launcher.py"),
        str(driver),
        "x.cu",
        "-o",
        "x.o",
    ]
    environment = {**os.environ, EVENTS: str(tmp_path / "events.jsonl")}
    sampler = Sampler(tmp_path / "samples.jsonl")
    started = time.time()
    run_logged(command, log=tmp_path / "log", cwd=tmp_path, environment=environment, look=sampler.look)
    sampler.close()
    timeline = read_timeline(tmp_path / "events.jsonl")
    (span,) = timeline.units
    assert set(span.costs) == {"cicc", "ptxas"}
    assert 0.3 < sum(span.costs.values()) <= span.cpu_seconds * 1.05 + 0.1
    assert [phase.phase for phase in span.phases] == ["cicc", "ptxas"]
    assert all(rss > 1_000_000 for _, rss in timeline.memory[1:-1])
    assert abs(timeline.started - started) < 5


def test_processes_without_a_launcher_above_belong_to_no_unit(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "samples.jsonl")
    busy(tmp_path, "cicc")
    script = f"{tmp_path}/cicc -c 'i=0; while [ $i -lt 700000 ]; do i=$((i+1)); done'; true"
    run_logged(["sh", "-c", script], log=tmp_path / "log", cwd=tmp_path, environment=os.environ, look=sampler.look)
    sampler.close()
    assert "phase" not in (tmp_path / "samples.jsonl").read_text()


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Sampler(tmp_path / "no folder" / "samples.jsonl").look([], 0)
