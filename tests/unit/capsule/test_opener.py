"""The script of a capsule: what is damaged, missing or hostile is one screen, and nothing half-unpacked stays."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.capsule.standalone import opener
from scripts.capsule.write import INDEX, SCRIPT, script, write_capsule

HERE = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "machine": os.uname().machine}
ABOUT = {"recipe": "mini", "own_recipe": True, "archs": "9.0", "with": [], **HERE}


@pytest.fixture
def capsule(tmp_path: Path) -> Path:
    """A capsule in three parts, without tools."""
    files = tmp_path / "files"
    files.mkdir()
    for name in ("a", "b"):
        (files / name).write_bytes(os.urandom(80_000))
    (files / "a").chmod(0o755)
    write_capsule(tmp_path / "out", [(f"project/{p.name}", p) for p in sorted(files.iterdir())], ABOUT, limit=65_536)
    return tmp_path / "out"


def start(capsule: Path, *words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(home or capsule.parent / "home")}
    command = ["sh", str(capsule / SCRIPT), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def unpacked(capsule: Path) -> Path:
    return capsule.parent / "home/.cache/wheelsmith-capsule"


def test_without_a_command_it_says_what_it_can(capsule: Path) -> None:
    assert start(capsule).returncode == 2
    done = start(capsule, "--help")
    assert done.returncode == 0
    assert "sh wheelsmith-capsule.sh wheel" in done.stderr


def damage(name: str) -> Callable[[Path], None]:
    def change(capsule: Path) -> None:
        data = bytearray((capsule / name).read_bytes())
        data[len(data) // 2] ^= 1
        (capsule / name).write_bytes(data)

    return change


def shorten(capsule: Path) -> None:
    (capsule / "capsule.002").write_bytes((capsule / "capsule.002").read_bytes()[:-9])


def lose(capsule: Path) -> None:
    (capsule / "capsule.002").unlink()
    (capsule / "capsule.003").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage("capsule.001"), ["capsule.001 is damaged", "copy capsule.001 again: sha256sum must say"]),
        (damage("capsule.003"), ["capsule.003 is damaged"]),
        (shorten, ["1 of 3 parts", "capsule.002 has 65527 of 65536 bytes", "copy into"]),
        (lose, ["2 of 3 parts", "capsule.002 is missing; capsule.003 is missing", "capsule.002 capsule.003"]),
        (damage(INDEX), ["capsule.json is not of this capsule"]),
        (lambda capsule: (capsule / INDEX).unlink(), ["capsule.json cannot be read", "No such file"]),
    ],
)
def test_what_is_damaged_or_missing_is_one_screen(
    change: Callable[[Path], None], said: list[str], capsule: Path
) -> None:
    change(capsule)
    done = start(capsule, "wheel")
    assert done.returncode == 4
    for text in said:
        assert text in done.stderr
    assert len(done.stderr.splitlines()) <= 5
    assert "Traceback" not in done.stderr
    assert not (
        unpacked(capsule).exists() and [p for p in unpacked(capsule).iterdir() if p.is_dir() and p.name[0] != "."]
    )


def test_another_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_capsule(tmp_path / "out", [], {**ABOUT, "python": "3.9"})
    done = start(tmp_path / "out", "wheel")
    assert done.returncode == 3
    assert "packages for Python 3.9" in done.stderr
    assert "PYTHON=/path/to/python3.9" in done.stderr


def test_what_a_killed_run_left_is_replaced(capsule: Path) -> None:
    index = json.loads((capsule / INDEX).read_text())
    key = hashlib.sha256((capsule / INDEX).read_bytes()).hexdigest()[:16]
    left = unpacked(capsule) / f".{key}.partial/project"
    left.mkdir(parents=True)
    (left / "a").write_text("half")
    done = start(capsule, "wheel")  # there is no uv in this capsule, so it ends after unpacking
    assert done.returncode != 0
    assert (unpacked(capsule) / key / "project/a").read_bytes() == (capsule.parent / "files/a").read_bytes()
    assert os.access(unpacked(capsule) / key / "project/a", os.X_OK)
    assert index["parts"]
    assert not left.exists()


def sealed(out: Path) -> None:
    """Write index and script for the one part that is in `out`."""
    data = (out / "capsule.001").read_bytes()
    part = {"name": "capsule.001", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({**ABOUT, "parts": [part]}).encode()
    (out / INDEX).write_bytes(text)
    (out / SCRIPT).write_text(script(hashlib.sha256(text).hexdigest()))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        member("../outside"),
        member("/outside"),
        member("project/../../outside"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "../x"),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda entry: entry.name,
)
def test_nothing_of_an_archive_goes_outside(entry: tarfile.TarInfo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with tarfile.open(out / "capsule.001", "w") as tar:
        tar.addfile(entry, io.BytesIO())
    sealed(out)
    done = start(out, "wheel")
    assert done.returncode != 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*outside*")}
    assert all(name.startswith("home/.cache/wheelsmith-capsule/") for name in found)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_header_that_python_s_tarfile_cannot_read_is_one_screen(tmp_path: Path) -> None:
    """Its digests are right: an integer is none, for which tarfile has a ValueError."""
    out = tmp_path / "out"
    out.mkdir()
    entry = member("project/a")
    entry.pax_headers = {"GNU.sparse.map": "x,y"}
    with tarfile.open(out / "capsule.001", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO())
    sealed(out)
    done = start(out, "wheel")
    assert done.returncode == 4
    assert "the capsule cannot be unpacked" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.suffix for path in unpacked(out).iterdir()] == [".lock"]


def test_folders_may_be_relative_to_where_it_is_started(capsule: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "WHEELSMITH_CAPSULE": "here", "HOME": str(tmp_path / "home")}
    command = [sys.executable, str(capsule / SCRIPT), "wheel"]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert list(tmp_path.glob("here/*/project/a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("WHEELSMITH_CACHE", "cache")
        assert opener.settings(capsule)["WHEELSMITH_CACHE"] == str(tmp_path / "cache")


def test_a_folder_that_cannot_be_made_is_one_screen(capsule: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    done = start(capsule, "wheel")
    assert done.returncode == 2
    assert "WHEELSMITH_CAPSULE=/a/folder" in done.stderr
    assert "Traceback" not in done.stderr


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_to_any_part_is_found_before_the_end(
    data: st.DataObject, capsule: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    index = json.loads((capsule / INDEX).read_text())
    number = data.draw(st.integers(0, 2))
    path = capsule / index["parts"][number]["name"]
    before = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
    target = tmp_path_factory.mktemp("unpacked") / "key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opener, "HERE", capsule)
        with pytest.raises(SystemExit):
            opener.unpack(index, target)
    assert list(target.parent.iterdir()) == []
    path.write_bytes(before)


def test_the_recipe_archs_torch_and_wheelhouse_are_the_capsule_s_unless_they_are_given(tmp_path: Path) -> None:
    words = opener.arguments_for(["wheel", "--jobs", "4"], ABOUT, tmp_path)
    assert words[:2] == ["scripts.commands.wheel", "--offline"]
    pairs = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    assert pairs == {
        "--recipe": f"{tmp_path}/recipe/mini.toml",
        "--arch": "9.0",
        "--torch": "installed",
        "--wheelhouse": "wheelhouse",
    }
    given_ = opener.arguments_for(
        ["wheel", "--torch=/opt/python", "--arch", "12.0"], {**ABOUT, "own_recipe": False}, tmp_path
    )
    assert "installed" not in given_
    assert given_.count("--arch") == 1
    assert given_[given_.index("--recipe") + 1] == "mini"
    measured = opener.arguments_for(["bench", "--only", "stock"], ABOUT, tmp_path)
    assert "--wheelhouse" not in measured
    assert {"--recipe", "--arch", "--torch", "--offline"} <= set(measured)
    whole = opener.arguments_for(["doctor"], {**ABOUT, "with": ["cuda", "torch"]}, tmp_path)
    assert "--torch" not in whole
    assert opener.arguments_for(["objects", "o.tar"], ABOUT, tmp_path) == [
        "scripts.commands.capsule",
        "--give",
        "o.tar",
    ]
    assert opener.arguments_for(["gpu-check", "w"], ABOUT, tmp_path) == ["scripts.commands.gpu_check", "w"]
