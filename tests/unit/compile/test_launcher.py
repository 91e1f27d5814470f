"""The launcher's records, in this process; real compilers run through it in the process tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compile.standalone.launcher import COMPILER_CACHE, EVENTS, FAILURES, append, keep_failure, unit_of
from scripts.compile.units import read_failures
from scripts.core.paths import ROOT
from tests.support import wait_for


@pytest.mark.parametrize(
    ("command", "unit"),
    [
        ("nvcc -c x/a.cu -o b/a.cu.o", ("b/a.cu.o", "x/a.cu")),
        ("g++ -o b/a.o -c x/a.cpp", ("b/a.o", "x/a.cpp")),
        ("g++ -shared -o b/lib.so", ("b/lib.so", "b/lib.so")),
        ("g++ a.cc -o", ("", "a.cc")),
        ("true", ("", "")),
    ],
)
def test_a_unit_is_read_from_its_command(command: str, unit: tuple[str, str]) -> None:
    assert unit_of(command.split()) == unit


def test_events_are_lines_of_one_file_and_nothing_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EVENTS, raising=False)
    append({"event": "lost"})
    monkeypatch.setenv(EVENTS, str(tmp_path / "events"))
    append({"event": "start"})
    append({"event": "end"})
    lines = (tmp_path / "events").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "end"]


def test_a_failure_is_kept_as_it_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILURES, raising=False)
    keep_failure("a.o", ["g++"], b"")
    monkeypatch.setenv(FAILURES, str(tmp_path))
    keep_failure("b/a.o", ["g++", "-DX=a b"], b"bad \xff byte\n")
    (failure,) = read_failures(tmp_path)
    assert failure.command == f"cd {Path.cwd()} && g++ '-DX=a b'"
    assert (failure.output, failure.killed) == ("bad \N{REPLACEMENT CHARACTER} byte", False)


@pytest.mark.parametrize(("script", "code", "kept"), [("exit 0", 0, 0), ("exit 3", 3, 1), ("kill -9 $$", 137, 1)])
def test_a_call_ends_with_its_code_and_failures_are_kept(script: str, code: int, kept: int, tmp_path: Path) -> None:
    environment = {**os.environ, EVENTS: str(tmp_path / "events"), FAILURES: str(tmp_path)}
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), "sh", "-c", script]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    assert done.returncode == code
    start, end = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
    assert (start["event"], end["event"], end["code"]) == ("start", "end", code)
    assert [failure.killed for failure in read_failures(tmp_path)] == [True] * kept


def test_a_call_that_is_told_to_stop_is_not_tried_again_without_the_cache(tmp_path: Path) -> None:
    """As when the whole run is killed: the cache's program says that it failed, and the compiler must not start."""
    cache, switch = tmp_path / "cache.sh", tmp_path / "switch.json"
    cache.write_text('trap "echo ccache: error: stopped; exit 1" TERM\ntouch "$STARTED"\nwhile :; do sleep 0.1; done\n')
    environment = {"STARTED": str(tmp_path / "started"), "COMPILED": str(tmp_path / "compiled")}
    switch.write_text(json.dumps({"command": ["sh", str(cache)], "environment": environment, "folder": str(tmp_path)}))
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), "sh", "-c", 'touch "$COMPILED"']
    with subprocess.Popen(command, env={**os.environ, **environment, COMPILER_CACHE: str(switch)}) as process:
        wait_for((tmp_path / "started").exists)
        for _ in range(3):  # ninja and the kernel both tell it, when the run is killed
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) != 0
    assert not (tmp_path / "compiled").exists()
