"""A package's files besides its modules."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from scripts.core.console import Console
from scripts.package.data_files import warn_of_missing, write_manifest

FILES = ("setup.py", "vllm/__init__.py", "vllm/a b.jinja", "vllm/deep/.gitkeep", "vllm/__pycache__/x.pyc")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "sources"


def test_the_manifest_names_every_file_but_caches(sources: Path, tmp_path: Path) -> None:
    write_manifest(sources, tmp_path / "package", "vllm")
    text = (tmp_path / "package/vllm.egg-info/SOURCES.txt").read_text()
    assert text.splitlines() == ["setup.py", "vllm/__init__.py", "vllm/a b.jinja", "vllm/deep/.gitkeep"]


@pytest.mark.parametrize(
    ("inside", "missing"),
    [
        (FILES, []),
        (("vllm/__init__.py", "vllm/deep/.gitkeep"), ["vllm/a b.jinja"]),
        ((), ["vllm/__init__.py", "vllm/a b.jinja", "vllm/deep/.gitkeep"]),
    ],
)
def test_a_file_of_the_package_that_the_wheel_lacks_is_warned_of(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: tuple[str, ...], missing: list[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        for name in inside:
            archive.writestr(name, "")
    assert warn_of_missing(sources, tmp_path / "w.whl", "vllm", Console()) == missing
    said = capsys.readouterr().err
    assert (f"{len(missing)} files of vllm/ are not in the wheel: " in said) == bool(missing)
