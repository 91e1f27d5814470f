"""What is found to be missing before a build starts, with hosts on closed ports of this machine."""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import DoctorError
from scripts.core.files import digest
from scripts.core.paths import RECIPES
from scripts.doctor.examine import smaller_subject
from scripts.doctor.preflight import missing_git
from scripts.doctor.registry import require
from scripts.downloads.access import Access
from scripts.downloads.mirrors import parse_mirrors
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Component, Recipe
from scripts.recipe.sources import GitSource
from scripts.sources.git_source import tree_key
from scripts.toolchain.installed import find_system_toolkit
from tests.accesses import make_access
from tests.subjects import answer, make_subject
from tests.support import make_recipe

COMMIT = "a" * 40
PYPI = {"kind": "pypi", "cuda": "13.0", "lock": "x.txt", "build_requirements": []}


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search = functools.partial(find_system_toolkit, prefix=tmp_path / "local")
    monkeypatch.setattr("scripts.doctor.preflight.find_system_toolkit", search)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def closed() -> Iterator[int]:
    """Return a port of 127.0.0.1 that refuses connections for as long as the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can listen there
        yield held.getsockname()[1]


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def access(cache: Cache, *, offline: bool = False, mirrors: str = "") -> Access:
    return make_access(cache, Console(), mirrors=parse_mirrors(mirrors), offline=offline)


def check_reach(recipe: Recipe, access: Access, *, environment: dict[str, str]) -> None:
    subject = make_subject(access.cache.root.parent, recipe, access=access, environment=environment)
    names = ("fetchcontent-clone-failed", "nvcc-or-cuda-home-missing")
    require(tuple(answer(name, subject) for name in names), recipe)


def git(url: str) -> dict[str, Any]:
    return {"kind": "git", "repository": url, "commit": COMMIT}


def with_git(port: int, *names: str, **changes: Any) -> Recipe:
    source = git(f"https://127.0.0.1:{port}/vllm.git")
    dependencies = {
        name: {"version": "1", "variable": "X", "source": git(f"https://127.0.0.1:{port}/{name}.git")} for name in names
    }
    return make_recipe(source=source, dependencies=dependencies, **{"toolchain": PYPI, **changes})


def test_a_git_host_that_refuses_is_named_once_with_how_many_sources_need_it(cache: Cache, closed: int) -> None:
    with pytest.raises(DoctorError, match=r"mine cannot be built here yet: 1 thing") as raised:
        check_reach(with_git(closed, "cutlass", "fa"), access(cache), environment={})
    assert raised.value.why.startswith(f"git host 127.0.0.1:{closed}: failed to connect to 127.0.0.1: ")
    assert raised.value.why.endswith("(needed for 3 sources) [fetchcontent-clone-failed]")
    assert any("WHEELSMITH_MIRROR" in fix for fix in raised.value.fix)
    assert not any("CUDA" in fix for fix in raised.value.fix[:1])


def test_a_git_host_that_answers_is_no_problem(cache: Cache, open_port: int) -> None:
    check_reach(with_git(open_port), access(cache), environment={})


def test_the_mirror_is_what_must_be_reached(cache: Cache, closed: int, open_port: int) -> None:
    mirrors = f"https://127.0.0.1:{closed}/=https://127.0.0.1:{open_port}/m/"
    recipe = with_git(closed, "cutlass")
    found = access(cache, mirrors=mirrors)
    assert missing_git(recipe, cache, found.mirrors) == [
        f"https://127.0.0.1:{open_port}/m/vllm.git",
        f"https://127.0.0.1:{open_port}/m/cutlass.git",
    ]
    check_reach(recipe, found, environment={})


def test_offline_every_missing_source_is_named_and_no_host_is_asked(cache: Cache, closed: int) -> None:
    with pytest.raises(DoctorError) as raised:
        check_reach(with_git(closed, "cutlass"), access(cache, offline=True), environment={})
    assert "2 git sources are not in the cache and --offline forbids fetching" in raised.value.why
    assert f"https://127.0.0.1:{closed}/cutlass.git" in raised.value.why


def test_what_is_in_the_cache_is_not_asked_for(
    cache: Cache, closed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = with_git(closed, "cutlass")
    sources = [recipe.source, recipe.dependencies["cutlass"].source]
    for source in sources:
        assert isinstance(source, GitSource)
        cache.place("git-trees", tree_key(source, recipes=RECIPES)).mkdir()
    check_reach(recipe, access(cache), environment={})
    check_reach(recipe, access(cache, offline=True), environment={})
    assert capsys.readouterr().err == ""


def redist(kind: str, port: int) -> Recipe:
    archives = {"release": "13.0.2", "base_url": f"http://127.0.0.1:{port}/redist/", "components": ["cuda_nvcc"]}
    return make_recipe(toolchain={**PYPI, "kind": kind, "redist": archives})


@pytest.mark.parametrize("kind", ["redist", "auto"])
def test_archives_that_cannot_be_reached_are_one_thing_missing(
    kind: str, cache: Cache, closed: int, tmp_path: Path
) -> None:
    environment = {"CUDA_HOME": str(tmp_path / "nothing")}
    with pytest.raises(DoctorError) as raised:
        check_reach(redist(kind, closed), access(cache), environment=environment)
    assert "NVIDIA's archives: failed to connect to 127.0.0.1" in raised.value.why
    assert ("there is no such folder" in raised.value.why) == (kind == "auto")
    assert any("nvidia/cuda:13.0.1-devel" in fix for fix in raised.value.fix)
    with pytest.raises(DoctorError) as raised:
        check_reach(redist(kind, closed), access(cache, offline=True), environment=environment)
    assert "--offline forbids downloads" in raised.value.why


def test_archives_that_can_be_reached_or_are_cached_are_no_problem(cache: Cache, closed: int, open_port: int) -> None:
    check_reach(redist("redist", open_port), access(cache), environment={})
    entry = {"version": "1", "linux-x86_64": {"relative_path": "x.tar.xz", "sha256": "0" * 64, "size": "1"}}
    url = f"http://127.0.0.1:{closed}/redist/redistrib_13.0.2.json"
    manifest = {"release_label": "13.0.2", "cuda_nvcc": entry}
    cache.place("redist", f"{digest([url])}.json").write_text(json.dumps(manifest))
    cache.place("redist", digest(["13.0.2", [["cuda_nvcc", "0" * 64]]])).mkdir()
    check_reach(redist("redist", closed), access(cache, offline=True), environment={})


def test_a_toolkit_that_must_be_installed_and_is_not_is_missing_beside_the_git_host(
    cache: Cache, closed: int, tmp_path: Path
) -> None:
    recipe = with_git(closed, toolchain={**PYPI, "kind": "system"})
    with pytest.raises(DoctorError, match="2 thing") as raised:
        check_reach(recipe, access(cache), environment={"CUDA_HOME": str(tmp_path / "nothing")})
    first, second = raised.value.why.split("\n")
    assert first.startswith("git host")
    assert "CUDA 13.0: none is installed (CUDA_HOME=" in second


def test_an_installed_toolkit_is_enough(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "cuda/bin").mkdir(parents=True)
    (tmp_path / "cuda/include").mkdir()
    (tmp_path / "cuda/include/cuda_runtime.h").touch()
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho release 13.0\n")
    nvcc.chmod(0o755)
    recipe = make_recipe(toolchain={**PYPI, "kind": "system"})
    check_reach(recipe, access(cache, offline=True), environment={"CUDA_HOME": str(tmp_path / "cuda")})


def test_what_is_suggested_as_smaller_is_smaller(tmp_path: Path) -> None:
    larger = make_subject(tmp_path, "vllm-0.20.1-cu130")
    small = smaller_subject(larger)
    assert small is not None
    assert small.recipe.name == "quickstart"
    assert smaller_subject(make_subject(tmp_path)) is None
    tiny = load_recipe("quickstart").model_copy(update={"name": "mine", "components": (Component.MOE,), "cost": None})
    assert smaller_subject(make_subject(tmp_path, tiny)) is None
