"""The noxfile, run by nox itself in this Python's environment (`--no-venv`): what it starts, and what it hands back."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.core.console import Console
from scripts.core.paths import ROOT
from tests.support import wait_for

OURS = ("tests", "lint")  # these start other people's programs
PYTHON = Path(sys.executable)


def nox(*arguments: str, path: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run nox with this Python first on PATH."""
    return subprocess.run(
        [PYTHON, "-m", "nox", "--no-venv", "-f", ROOT / "noxfile.py", *arguments],
        env=environment(path),
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
    )


def environment(path: str = "") -> dict[str, str]:
    return {**os.environ, "PATH": f"{path or PYTHON.parent}:{os.environ['PATH']}", "NO_COLOR": "1"}


def stand_in(folder: Path, script: str, version: str = "3.12") -> str:
    """Make a `python` that answers the noxfile's question for its version, and else runs a shell script."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; exit; fi\n{script}\n')
    program.chmod(0o755)
    return str(folder)


def test_every_session_starts_a_command_that_calls_itself_by_the_sessions_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        name for name in re.findall(r"^[*-] ([a-z-]+) -> ", nox("--list").stdout, re.MULTILINE) if name not in OURS
    ]
    assert len(names) >= 15
    started = tmp_path / "started"
    done = nox(
        "--sessions", *names, "--", "a b", path=stand_in(tmp_path, f'printf "%s|" "$@" >>{started}; echo >>{started}')
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("|") for line in started.read_text().splitlines()]
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        _, module, *arguments = line[line.index("-m") :]  # behind the guard that ends it with nox
        assert arguments == ["a b", ""]
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(module).main(["--help"], Console())
        assert f"usage: nox -s {name} -- " in capsys.readouterr().out


def test_every_session_is_listed_with_a_sentence() -> None:
    lines = [line for line in nox("--list").stdout.splitlines() if line[:2] in {"* ", "- "}]
    assert len(lines) >= 17
    assert all(re.fullmatch(r"[*-] [a-z-]+ -> [A-Z].{20,}", line) for line in lines)


def test_a_commands_exit_code_is_noxs_own() -> None:
    done = nox("-s", "wheel", "--", "--recipe", "quickstrat")
    assert done.returncode == 2
    assert "quickstart" in done.stderr


def test_relative_paths_count_from_where_the_user_is(tmp_path: Path) -> None:
    (tmp_path / "my.log").write_text("fatal error: Python.h: No such file or directory\n")
    done = nox("-s", "diagnose", "--", "my.log", cwd=tmp_path)
    assert "Python.h" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("version", "age"), [("3.9", "old"), ("2.7", "old"), ("3.99", "new")])
def test_a_python_out_of_range_is_refused_before_anything_is_installed(version: str, age: str, tmp_path: Path) -> None:
    done = nox("-s", "wheel", path=stand_in(tmp_path, "exit 1", version))
    assert done.returncode == 3
    assert f"Python {version} is too {age}" in done.stderr
    assert "--force-python 3.12" in done.stderr


def test_ctrl_c_waits_for_the_command_to_save_its_state(tmp_path: Path) -> None:
    """nox alone would end a child after 0.3 s; ours takes a second to finish and chooses its exit code."""
    started, saved = tmp_path / "started", tmp_path / "saved"
    script = (
        f"import pathlib, sys, time; pathlib.Path({str(started)!r}).touch()\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        f"    time.sleep(1)\n    pathlib.Path({str(saved)!r}).touch()\n    sys.exit(130)\n"
    )
    (tmp_path / "slow.py").write_text(script)
    stand_in(tmp_path, f"exec {PYTHON} {tmp_path}/slow.py")
    command = [str(PYTHON), "-m", "nox", "--no-venv", "-s", "wheel"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(str(tmp_path)), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        wait_for(started.exists)
        time.sleep(0.2)  # until the child stands in its sleep
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    assert saved.exists()
