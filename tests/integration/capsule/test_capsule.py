"""A capsule of the miniature, from packing to a wheel without a network and back: real pip, uv, sh, namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.capsule.write import SCRIPT
from scripts.commands import capsule, wheel
from scripts.core.console import Console
from tests.miniature import Miniature, make_miniature

pytestmark = pytest.mark.large  # downloads 80 MB of wheelsmith's tools


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    made = make_miniature(tmp_path / "miniature")
    for name, value in made.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return made


def offline(script: Path, *words: str, home: Path, compiler: Path) -> str:
    """Run a capsule's command where there is no network and nothing in HOME; return what it said."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHON": sys.executable, "CXX": str(compiler)}
    command = ["unshare", "-rn", "sh", str(script), *words]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_capsule_makes_the_same_wheel_offline_and_its_objects_are_taken_at_home(
    miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ["--recipe", str(miniature.recipe)]
    parts = ["--with", "torch,cuda", "--split", "20M"]
    assert capsule.main([*recipe, *parts, str(tmp_path / "out")], Console()) == 0
    assert capsule.main([*recipe, *parts, str(tmp_path / "again")], Console()) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) > 3
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

    home = tmp_path / "home"
    home.mkdir()
    script = tmp_path / "out" / SCRIPT
    offline(script, "wheel", "--jobs", "1", home=home, compiler=miniature.compiler)
    [there] = (home / "wheelhouse").glob("*.whl")
    said = offline(script, "wheel", "--jobs", "1", home=home, compiler=miniature.compiler)
    assert "unpacking" not in said
    assert "this wheel is built already" in said
    offline(script, "objects", "objects.tar", home=home, compiler=miniature.compiler)

    assert capsule.main(["--take", str(home / "objects.tar")], Console()) == 0
    house = tmp_path / "house"
    assert wheel.main([*recipe, "--wheelhouse", str(house)], Console()) == 0
    [here] = house.glob("*.whl")
    assert here.read_bytes() == there.read_bytes()
    # ccache keeps no unit with `.incbin` in it, as the miniature's b.cpp has for its device code
    assert "local: 3 of 4 units (75 %)" in capsys.readouterr().out
    assert not any(os.environ["WHEELSMITH_CACHE"] in path.name for path in home.iterdir())
