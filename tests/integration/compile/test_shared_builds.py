"""Builds that share a compiler cache although nothing of them is at the same place: checkouts, homes, caches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.compile.fixed_paths import refusal
from scripts.core.paths import ROOT
from tests.cache_servers import PASSWORD, Server, missing, serve
from tests.miniature import Miniature, make_miniature, wheel_command

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(bool(missing("webdav")), reason=missing("webdav")),
    pytest.mark.skipif(bool(refusal()), reason=f"no mount namespace here: {refusal()}"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve("webdav", tmp_path_factory.mktemp("shared") / "server") as running:
        yield running


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


def run(place: Path, miniature: Miniature, server: Server, *arguments: str) -> subprocess.Popen[str]:
    """Start a build in a checkout, home and cache below `place`."""
    checkout = place / "some" / "checkout"
    for name in ("scripts", "recipes", "patches"):
        shutil.copytree(ROOT / name, checkout / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", checkout)  # the version
    (place / "home").mkdir(exist_ok=True)
    environment = {**os.environ, **miniature.environment(place / "cache"), **server.variables}
    environment.update(HOME=str(place / "home"), PYTHONDONTWRITEBYTECODE="1")
    command = wheel_command("--recipe", str(miniature.recipe), "--wheelhouse", str(place / "wheelhouse"), *arguments)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=checkout, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(started: subprocess.Popen[str], place: Path) -> str:
    """Wait for a build; return what it said. No secret may be in it, or in what it wrote."""
    said = started.communicate()[0]
    assert started.returncode == 0, said
    for path in [*(place / "wheelhouse").glob("*.json"), *(place / "cache" / "builds").glob("*/*.*")]:
        assert not path.is_file() or PASSWORD not in path.read_text(errors="replace"), path
    assert PASSWORD not in said
    return said


def test_two_shards_elsewhere_compile_and_a_third_build_only_links(
    miniature: Miniature, server: Server, tmp_path: Path
) -> None:
    places = [tmp_path / "one", tmp_path / "another" / "place", tmp_path / "third"]
    shards = [run(place, miniature, server, "--shard", f"{n}/2") for n, place in enumerate(places[:2], 1)]
    for shard, place in zip(shards, places, strict=False):
        assert "is done" in finish(shard, place)
    said = finish(run(places[2], miniature, server), places[2])
    [path] = (places[2] / "wheelhouse").glob("*.whl.report.json")
    report: dict[str, Any] = json.loads(path.read_text())
    cache = report["compiler_cache"]
    assert (cache["hits"], cache["misses"], cache["exchanged"]["units"]) == (3, 1, 3)  # ccache takes no .incbin
    assert (cache["shared"]["hits"], cache["shared"]["misses"]) == (1, 0)
    assert "3 of 4 units (75 %); 3 of them from the shared cache" in said
    assert (cache["exchanged"]["errors"], cache["trouble"]) == (0, [])
