from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scripts.core import version as module
from scripts.core.paths import ROOT


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(folder), *words]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "ROOT", tmp_path)
    module.commit.cache_clear()
    (tmp_path / "file").write_text("a")
    return tmp_path


def test_the_version_is_that_of_the_project() -> None:
    assert f'version = "{module.version()}"' in (ROOT / "pyproject.toml").read_text()


def test_a_checkout_is_named_by_its_commit_and_whether_it_was_changed(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "file")
    git(checkout, "commit", "-qm", "x")
    first = module.commit()
    assert first is not None
    assert re.fullmatch("[0-9a-f]{40}", first)
    (checkout / "file").write_text("b")
    module.commit.cache_clear()
    assert module.commit() == f"{first}-dirty"
    module.commit.cache_clear()


def test_outside_git_there_is_no_commit(checkout: Path) -> None:
    assert module.commit() is None
    (checkout / ".git").mkdir()  # empty, as in some archives
    module.commit.cache_clear()
    assert module.commit() is None
    module.commit.cache_clear()
