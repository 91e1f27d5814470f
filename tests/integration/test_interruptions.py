"""The main job through nox, interrupted at random moments: gone within 5 s, nothing held, nothing left."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from scripts.core.paths import ROOT
from tests.interruptions import experiment, nox_command, nox_environment


def test_a_few_interruptions_leave_nothing_behind(tmp_path: Path) -> None:
    found = experiment(tmp_path, count=4, seed=int(time.time()))
    assert [seen for seen in found if seen.wrong] == []


@pytest.mark.large
def test_two_hundred_interruptions_leave_nothing_behind(tmp_path: Path) -> None:
    found = experiment(tmp_path, count=200, seed=int(time.time()))
    assert [seen for seen in found if seen.wrong] == []


@pytest.mark.parametrize(("arguments", "code"), [(["--list"], 0), (["--recpie", "x"], 2)])
def test_nox_ends_with_the_exit_code_of_the_command(tmp_path: Path, arguments: list[str], code: int) -> None:
    command = nox_command(nox_environment(tmp_path), *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code
    assert ("quickstart" in done.stdout) if code == 0 else ("Perhaps you meant '--recipe'?" in done.stderr)
