"""Of a guarded command nothing is left, however it ends and whatever it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.core.process import GUARD
from tests.support import alive, wait_for

# Ignores everything, and so does its child, which is in a session of its own and whose parent has ended.
STUBBORN = """
trap "" TERM INT HUP
(setsid sh -c 'trap "" TERM INT HUP; echo $$ > orphan; while :; do sleep 1; done' &)
echo $$ > child; : > scratch/left; while :; do sleep 1; done
"""


def guarded(folder: Path, *command: str, grace: float = 0.3) -> list[str]:
    """Return the command line; its parent is whoever runs it."""
    (folder / "scratch").mkdir(exist_ok=True)
    options = ["--grace", str(grace), "--scratch", str(folder / "scratch"), "--", *command]
    return [sys.executable, "-S", "-E", str(GUARD), "--parent", str(os.getpid()), *options]


def pids(folder: Path) -> list[int]:
    """Return the processes that have written their number."""
    paths = [folder / "child", folder / "orphan"]
    wait_for(lambda: all(path.exists() and path.read_text().strip() for path in paths))
    return [int(path.read_text()) for path in paths]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_ignores_signals_and_left_its_family_is_gone_after_the_grace(
    tmp_path: Path, number: signal.Signals
) -> None:
    guard = subprocess.Popen(guarded(tmp_path, "sh", "-c", STUBBORN), cwd=tmp_path)
    started = pids(tmp_path)
    begin = time.monotonic()
    guard.send_signal(number)
    assert guard.wait(10) == 128 + number
    assert 0.3 <= time.monotonic() - begin < 3
    assert not any(alive(pid) for pid in started)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_killed_parent_takes_all_with_it(tmp_path: Path) -> None:
    words = guarded(tmp_path, "sh", "-c", STUBBORN)
    words[words.index("--parent") + 1] = "PARENT"
    code = f"import os, subprocess; subprocess.run([w.replace('PARENT', str(os.getpid())) for w in {words!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    started = pids(tmp_path)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(alive(pid) for pid in started), 5)


def test_a_killed_guard_has_its_command_told_to_end(tmp_path: Path) -> None:
    guard = subprocess.Popen(
        guarded(tmp_path, "sh", "-c", "echo $$ > child; echo 1 > orphan; exec sleep 60"), cwd=tmp_path
    )
    child = pids(tmp_path)[0]
    guard.kill()
    guard.wait()
    wait_for(lambda: not alive(child), 5)


def test_a_parent_that_died_before_it_was_asked_for_starts_nothing(tmp_path: Path) -> None:
    words = guarded(tmp_path, "touch", str(tmp_path / "ran"))
    words[words.index("--parent") + 1] = "1"
    assert subprocess.run(words, check=False).returncode == 143
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("trap 'exit 0' TERM; kill $PPID; wait", 0)]
)
def test_the_exit_code_is_the_command_s(tmp_path: Path, script: str, code: int) -> None:
    command = guarded(tmp_path, "sh", "-c", script.replace("; wait", "; while :; do sleep 0.05; done"), grace=5)
    assert subprocess.run(command, check=False, timeout=20).returncode == code


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = subprocess.run(guarded(tmp_path, "/none/x"), capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr == "/none/x: No such file or directory\n"
