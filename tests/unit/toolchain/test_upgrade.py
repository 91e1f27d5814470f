"""Renewing lock files: what is resolved, with which indexes, and the recipes' schema."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import dependency_groups
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.commands import upgrade
from scripts.core.console import Console
from scripts.core.errors import ToolchainError, UsageError
from scripts.core.paths import RECIPES, ROOT
from scripts.downloads.indexes import read_indexes
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.model import SCHEMA_FILE
from scripts.report.models import SCHEMA_FILE as REPORT_SCHEMA
from scripts.toolchain import locks as toolchain_locks
from tests.support import make_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with two empty dependency groups, and an index that nothing listens at."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text("[dependency-groups]\ntests = []\nlint = [{ include-group = 'tests' }]\n")
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(toolchain_locks, "ROOT", tmp_path)
    monkeypatch.setattr(upgrade, "SCHEMA_FILE", tmp_path / "docs" / "schema.json")
    monkeypatch.setattr(upgrade, "REPORT_SCHEMA", tmp_path / "docs" / "report.json")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return tmp_path


def test_an_environment_is_resolved_from_torch_cuda_and_what_building_and_importing_need() -> None:
    recipe = make_recipe(
        import_requirements=["packaging"],
        toolchain={
            "kind": "pypi",
            "cuda": "13.0",
            "lock": "x.txt",
            "cuda_packages": ["cuda-toolkit[nvcc]==13.0.2"],
            "build_requirements": ["ninja", "cmake>=3.26"],
        },
    )
    assert toolchain_locks.lock_inputs(recipe).splitlines() == [
        "torch==2.11.0",
        "cuda-toolkit[nvcc]==13.0.2",
        "ninja",
        "cmake>=3.26",
        "packaging",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_every_requirement_of_a_recipe_is_pinned_in_its_lock_file(name: str) -> None:
    recipe = load_recipe(name)
    locked = recipe.lock_file.read_text()
    assert f"torch=={recipe.torch.version} " in locked
    for line in toolchain_locks.lock_inputs(recipe).splitlines():
        project = line.split("[")[0].split("=")[0].split(">")[0].split("<")[0].strip()
        assert f"\n{project.lower()}==" in f"\n{locked}"


def test_every_dependency_of_a_group_is_pinned_in_its_lock_file() -> None:
    """An entry that somebody forgot to lock, or took out of the lock alone, is found here."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert set(groups) == set(toolchain_locks.dependency_groups())
    for name in groups:
        locked = (ROOT / "requirements" / f"{name}.txt").read_text()
        wanted = dependency_groups.resolve(groups, name)
        assert len(wanted) > 20
        names = [canonicalize_name(Requirement(line).name) for line in wanted]
        assert [project for project in names if f"\n{project}==" not in f"\n{locked}"] == []


def test_an_unknown_name_is_refused_before_anything_is_written(project: Path, console: Console) -> None:
    with pytest.raises(UsageError, match=r"there is no 'shema'\. Perhaps you meant 'schema'") as raised:
        upgrade.main(["lint", "shema"], console)
    assert "quickstart" in raised.value.fix[0]
    assert not (project / "requirements/lint.txt").exists()


def test_the_schema_alone_is_written_on_request_and_the_committed_one_is_current(
    project: Path, console: Console
) -> None:
    assert upgrade.main(["schema"], console) == 0
    assert (project / "docs/schema.json").read_text() == SCHEMA_FILE.read_text()
    assert (project / "docs/report.json").read_text() == REPORT_SCHEMA.read_text()
    assert "extends" in json.loads(SCHEMA_FILE.read_text())["properties"]
    assert not list((project / "requirements").glob("*.txt"))


def test_only_what_is_named_is_resolved_by_uv(project: Path, console: Console) -> None:
    assert upgrade.main(["lint"], console) == 0
    assert [path.name for path in (project / "requirements").glob("*.txt")] == ["lint.txt"]


def test_what_cannot_be_resolved_is_named_with_what_uv_said(project: Path) -> None:
    (project / "pyproject.toml").write_text("[dependency-groups]\nlint = ['no-such-thing-at-all']\n")
    with pytest.raises(ToolchainError, match=r"requirements/lint\.txt could not be resolved") as raised:
        toolchain_locks.compile_group("lint", os.environ)
    assert "127.0.0.1:9/simple/no-such-thing-at-all" in raised.value.detail


def test_neither_local_folders_nor_extra_indexes_get_into_a_lock_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = project / "bin"
    bin_folder.mkdir()
    (bin_folder / "uv").write_text(f"#!/bin/sh\nenv > {project}/seen\n")
    (bin_folder / "uv").chmod(0o755)
    (bin_folder / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PIP_FIND_LINKS", "/links")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://extra.example/simple")
    indexes = read_indexes(os.environ)
    assert indexes.find_links
    monkeypatch.setattr("scripts.toolchain.locks.read_indexes", lambda _: indexes)
    monkeypatch.setattr("sys.executable", str(bin_folder / "python"))
    toolchain_locks.compile_group("lint", os.environ)
    seen = [line for line in (project / "seen").read_text().splitlines() if line.startswith("UV_")]
    assert "UV_DEFAULT_INDEX=http://127.0.0.1:9/simple" in seen
    assert not [line for line in seen if "links" in line or "extra" in line]


def test_recipes_that_share_a_lock_file_resolve_it_once(
    project: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(upgrade, "compile_group", lambda name, _: asked.append(("", f"{name}.txt")))
    monkeypatch.setattr(
        upgrade, "compile_lock", lambda inputs, target, _, **__: asked.append((inputs[0].read_text(), target.name))
    )
    upgrade.main([], console)
    locks = [name for _, name in asked]
    assert locks[:2] == ["lint.txt", "tests.txt"]
    assert locks[2:4] == ["vllm-0.15.1.txt", "worker.txt"]
    assert sorted(locks[4:]) == sorted(path.name for path in (RECIPES / "locks").glob("*.txt"))
    asked.clear()
    upgrade.main(["quickstart"], console)
    assert asked == [(toolchain_locks.lock_inputs(load_recipe("quickstart")), load_recipe("quickstart").lock_file.name)]
