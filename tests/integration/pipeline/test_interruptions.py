"""The main job through nox, interrupted at random moments: gone within 5 s, nothing held, nothing left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.interruptions import experiment


@pytest.mark.builds
@pytest.mark.large
def test_a_few_interruptions_leave_nothing_behind(tmp_path: Path) -> None:
    found = experiment(tmp_path, count=4, seed=int(time.time()))
    assert [seen for seen in found if seen.wrong] == []


@pytest.mark.large
def test_two_hundred_interruptions_leave_nothing_behind(tmp_path: Path) -> None:
    found = experiment(tmp_path, count=200, seed=int(time.time()))
    assert [seen for seen in found if seen.wrong] == []
