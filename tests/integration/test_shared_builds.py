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

from scripts.fixed_paths import refusal
from scripts.recipe import ROOT
from tests.cache_servers import PASSWORD, Server, missing, serve
from tests.miniature import Miniature, make_miniature, wheel_command

pytestmark = [
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


def build(place: Path, miniature: Miniature, server: Server) -> tuple[dict[str, Any], str]:
    """Build in a checkout, home and cache below `place`; return the report and what was said."""
    checkout = place / "some" / "checkout"
    for name in ("scripts", "recipes", "patches"):
        shutil.copytree(ROOT / name, checkout / name)
    (place / "home").mkdir()
    environment = {**os.environ, **miniature.environment(place / "cache"), **server.variables}
    environment.update(HOME=str(place / "home"), PYTHONDONTWRITEBYTECODE="1")
    command = wheel_command("--recipe", str(miniature.recipe), "--wheelhouse", str(place / "wheelhouse"))
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [report] = (place / "wheelhouse").glob("*.whl.report.json")
    for path in [report, *(place / "cache" / "builds").glob("*/compile.log")]:
        assert PASSWORD not in path.read_text()
    assert PASSWORD not in done.stderr + done.stdout
    return json.loads(report.read_text()), done.stdout


def test_a_build_elsewhere_takes_every_object_from_the_one_before(
    miniature: Miniature, server: Server, tmp_path: Path
) -> None:
    first, _ = build(tmp_path / "one", miniature, server)
    assert first["compiler_cache"]["shared"]["hits"] == 0
    second, said = build(tmp_path / "another" / "place", miniature, server)
    counts = second["compiler_cache"]["shared"]
    assert (counts["misses"], counts["errors"]) == (0, 0)
    assert counts["hits"] == first["compiler_cache"]["shared"]["misses"] > 0
    assert f"shared: {counts['hits']} of {counts['hits']} steps" in said
    assert second["components"] == first["components"]
