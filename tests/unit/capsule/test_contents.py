"""What a capsule carries: the packages of a lock file for the Python that is there, not the one that packs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.capsule.contents import download_wheels, lock_for
from scripts.commands.capsule import PYTHONS
from scripts.core.cache import Cache
from scripts.core.paths import ROOT
from tests.accesses import make_access

TOOLS = (ROOT / "requirements" / "tools.txt").read_text()


@pytest.mark.parametrize(
    ("python", "exceptions", "filelock"), [("3.10", 1, "4.1"), ("3.11", 0, "4.2"), ("3.13", 0, "4.2")]
)
def test_markers_are_judged_by_the_python_of_the_other_machine(python: str, exceptions: int, filelock: str) -> None:
    kept = lock_for(TOOLS, python)
    assert len(re.findall(r"^exceptiongroup==", kept, re.MULTILINE)) == exceptions
    assert re.findall(r"^filelock==(\d\.\d)", kept, re.MULTILINE) == [filelock]
    assert "colorama" not in kept
    assert " ; " not in kept
    pins = re.findall(r"^\S+==.*\n((?: +--hash=.*\n?)+)", kept, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", kept, re.MULTILINE))  # each keeps its hashes


def test_the_pythons_are_the_project_s() -> None:
    assert list(PYTHONS) == re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())


def test_wheels_for_another_python_are_downloaded(tmp_path: Path) -> None:
    """A real package with one wheel for each Python."""
    [block] = re.findall(r"^lz4==.*\n(?: +--hash=.*\n?)+", TOOLS, re.MULTILINE)
    requirements, wheels = tmp_path / "in.txt", tmp_path / "wheels"
    requirements.write_text(block)
    wheels.mkdir()
    (tmp_path / "cache").mkdir()
    download_wheels(requirements, wheels, "3.13", make_access(Cache(tmp_path / "cache")))
    [wheel] = wheels.iterdir()
    assert "-cp313-" in wheel.name
