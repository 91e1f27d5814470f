"""`nox -s diagnose`: what it prints, what it writes, and what it says about what cannot be read."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from scripts.commands.diagnose import main
from scripts.commands.failures_page import PAGE, page
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.doctor.registry import CHECKS
from scripts.failures import error_lines, prefilter, recognise
from scripts.failures.catalogue import catalogue

LOG = "one\nfatal: write error: No space left on device\n"


def run(*arguments: str) -> int:
    return main(list(arguments), Console())


def test_a_known_failure_is_shown_with_line_cause_remedy_and_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "x.log"
    log.write_text(LOG)
    assert run(str(log), "--json", str(tmp_path / "f.json")) == 0
    out = capsys.readouterr().out
    assert out.startswith("disk-full-triton-clone: ")
    assert "line 2: fatal: write error" in out
    assert "see: docs/failures.md#disk-full-triton-clone" in out
    assert json.loads((tmp_path / "f.json").read_text()) == [
        {
            "id": "disk-full-triton-clone",
            "stage": "fetch",
            "line": 2,
            "text": "fatal: write error: No space left on device",
        }
    ]


def test_an_unknown_failure_and_none_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "x.log"
    log.write_text("a\nerror: the moon is full\n")
    run(str(log), "--json", str(tmp_path / "f.json"))
    out = capsys.readouterr().out
    assert "the catalogue does not know" in out
    assert "line 2: error: the moon is full" in out
    assert json.loads((tmp_path / "f.json").read_text()) == []
    log.write_text("all fine\n")
    run(str(log))
    assert "no failure is seen" in capsys.readouterr().out


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG.encode())))
    run("-")
    assert "disk-full-triton-clone" in capsys.readouterr().out


def test_without_a_name_the_newest_log_of_the_cache_is_read(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="there is no log in"):
        run("--cache", str(cache.root))
    for name, age in (("old", 100), ("new", 10)):
        log = cache.root / "builds" / name / "compile.log"
        log.parent.mkdir(parents=True)
        log.write_text(LOG if name == "new" else "fatal: early EOF")
        os.utime(log, (1e9 - age, 1e9 - age))
    run("--cache", str(cache.root))
    captured = capsys.readouterr()
    assert "disk-full-triton-clone" in captured.out
    assert "new/compile.log" in captured.err


@pytest.mark.parametrize("make", ["missing", "folder", "broken"])
def test_what_cannot_be_read_is_said(make: str, tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    (tmp_path / "build1.log").touch()
    if make == "folder":
        log.mkdir()
    elif make == "broken":
        log.write_bytes(b"\x1f\x8b\x08\x00garbage that is not gzip")
    with pytest.raises(UsageError, match=r"build.log cannot be read: "):
        run(str(log))


def test_the_page_of_failures_is_what_the_catalogue_says() -> None:
    assert PAGE.read_text() == page(catalogue().values(), CHECKS), "run python -m scripts.commands.failures_page"


def test_each_entry_of_the_page_says_what_why_and_do_in_three_lines() -> None:
    sections = PAGE.read_text().split("\n### ")[1:]
    assert len(sections) == len(catalogue())
    for section in sections:
        lines = section.split("\n")
        assert lines[1].startswith("- **"), lines[0]
        assert lines[2].startswith("- Why: "), lines[0]
        assert lines[3].startswith("- Do: "), lines[0]
        assert lines[4] == "", lines[0]


def test_a_large_log_is_read_without_hyperscan_too_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "x.log"
    log.write_text(f"{LOG}{'-- compiling' * 8}\n" * 4000 + "error: the moon is full\n")
    run(str(log))
    fast = capsys.readouterr()
    assert "Hyperscan" not in fast.err
    for made in (prefilter.library, recognise._prefilter, error_lines._fast):
        made.cache_clear()
    monkeypatch.setitem(sys.modules, "hyperscan", None)  # importing it raises ImportError
    try:
        run(str(log))
    finally:
        for made in (prefilter.library, recognise._prefilter, error_lines._fast):
            made.cache_clear()
    slow = capsys.readouterr()
    assert "Hyperscan is not installed" in slow.err
    assert slow.out == fast.out
    assert "disk-full-triton-clone" in slow.out
