"""What the project says of itself in more than one place is the same in all."""

from __future__ import annotations

import datetime as dt
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from noxfile import PYTHONS
from scripts.core.paths import ROOT
from scripts.doctor.checks.compiler import python_version
from scripts.doctor.registry import Verdict
from scripts.failures.catalogue import catalogue
from tests.subjects import make_subject

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
HEADINGS = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_changelog_has_what_comes_and_then_dated_releases_the_newest_first() -> None:
    assert HEADINGS[0] == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in HEADINGS[1:]]
    assert found
    releases = [(Version(match[1]), dt.date.fromisoformat(match[2])) for match in found if match]
    assert len(releases) == len(found)
    assert releases == sorted(releases, reverse=True)
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= set(KINDS)


def test_the_version_is_the_newest_release_or_on_the_way_to_the_next() -> None:
    version, newest = Version(PROJECT["version"]), Version(HEADINGS[1].split("]")[0].strip("["))
    assert version == newest or (version.is_devrelease and version > newest)


@pytest.mark.parametrize("python", ["3.9", *PYTHONS, "3.14"])
def test_a_python_is_promised_everywhere_or_nowhere(
    python: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    promised = python in PYTHONS
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.1") == promised
    subject = make_subject(tmp_path)
    running = SimpleNamespace(version_info=(*map(int, python.split(".")), 1, "final", 0))  # not sys: others import now
    monkeypatch.setattr("scripts.doctor.checks.compiler.sys", running)
    assert (python_version(subject).verdict is Verdict.OK) == promised


def test_what_people_read_names_the_same_pythons() -> None:
    span = f"{PYTHONS[0]} to {PYTHONS[-1]}"
    assert f"Python {span}" in (ROOT / "README.md").read_text()
    assert f"Python {span}" in catalogue()["python-version-out-of-range"].fix


CODE = [
    *(ROOT / name for name in ("noxfile.py", "pyproject.toml", "Dockerfile.runtime")),
    *(path for folder in ("scripts", "runtime", "tests") for path in (ROOT / folder).rglob("*.py")),
    *(ROOT / "scripts").rglob("*.toml"),
]
NAMED_FILE = re.compile(r"(?<![\w/.-])(?:scripts|runtime|tests)/[\w/.-]*\.(?:py|toml|html|sh)\b")
NAMED_MODULE = re.compile(r"(?<![\w/.-])(?:scripts|tests)(?:\.[a-z_]\w*)+(?!\w)")
PLACEHOLDERS = {"scripts/commands/NAME.py", "scripts.newcomer", "tests.txt"}


def is_there(module: str) -> bool:
    """Tell whether a dotted name is a package or module of ours, or something in one."""
    words = module.split(".")
    for count in range(len(words), 1, -1):
        place = ROOT.joinpath(*words[:count])
        file = next(filter(lambda path: path.is_file(), (place / "__init__.py", place.with_suffix(".py"))), None)
        if file:
            return count == len(words) or bool(re.search(rf"\b{words[count]}\b", file.read_text(encoding="utf-8")))
    return False


def test_every_file_and_module_of_ours_that_code_and_comments_name_exists() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in CODE}
    files = {(str(path.relative_to(ROOT)), name) for path, text in texts.items() for name in NAMED_FILE.findall(text)}
    modules = {
        (str(path.relative_to(ROOT)), name) for path, text in texts.items() for name in NAMED_MODULE.findall(text)
    }
    gone = {(path, name) for path, name in files if not (ROOT / name).exists()}
    gone |= {(path, name) for path, name in modules if not is_there(name)}
    assert {(path, name) for path, name in gone if name not in PLACEHOLDERS} == set()
