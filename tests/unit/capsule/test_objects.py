"""Objects on their way back: whole, checked, and into the compiler cache only."""

from __future__ import annotations

import io
import json
import platform
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.capsule.objects import give_objects, take_objects
from scripts.commands.capsule import main, parse_parts
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import FetchError, UsageError, WheelsmithError
from scripts.sources.bundle import plain_entry

NAMES = ("0/a/3c9d5f2ab81b4e6f7a8c9d0e1f2aR", "f/1/6f342a3ffd56fac9039bc4d78fe9602e781c36")

MADE = {"Python": "3.0.0"}


def cache_with(root: Path, *names: str) -> Cache:
    cache = Cache.open(root)
    for name in names:
        path = root / "compiler-cache/objects" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 50)
    return cache


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    cache = cache_with(tmp_path / "there", *NAMES, "ccache.conf", "0/a/stats", "seconds.json", "tmp/x.tmp")
    assert len(give_objects(cache, tmp_path / "objects.tar", MADE).results) == 2
    return tmp_path / "objects.tar"


def test_objects_go_from_one_cache_to_another_and_those_that_are_there_stay(packed: Path, tmp_path: Path) -> None:
    home = cache_with(tmp_path / "home", NAMES[0])
    assert take_objects(home, packed) == (1, 2, MADE)
    assert take_objects(home, packed) == (0, 2, MADE)
    found = {p.name: p.read_bytes() for p in (tmp_path / "home/compiler-cache/objects").rglob("*") if p.is_file()}
    assert found == {Path(name).name: name.encode() * 50 for name in NAMES}


def test_equal_objects_make_equal_files(packed: Path, tmp_path: Path) -> None:
    give_objects(cache_with(tmp_path / "other", *NAMES), tmp_path / "again.tar", MADE)
    assert packed.read_bytes() == (tmp_path / "again.tar").read_bytes()


@pytest.mark.parametrize("made", [{"Python": "\x1b[31m3"}, {"Perl": "5"}, {"Python": "3" * 201}, {"Python": 3}])
def test_what_a_file_says_of_its_machine_is_plain_and_short(made: dict[str, str], tmp_path: Path) -> None:
    data = json.dumps({"format": 1, "results": [], "made_with": made}).encode()
    with tarfile.open(tmp_path / "o.tar", "w") as tar:
        tar.addfile(plain_entry("manifest.json", len(data)), io.BytesIO(data))
    with pytest.raises(FetchError, match="not a whole file of objects"):
        take_objects(cache_with(tmp_path / "home"), tmp_path / "o.tar")


def test_taking_needs_no_compiler(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert main(["--take", str(packed)], Console(quiet=True)) == 0


def test_nothing_compiled_or_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no objects"):
        give_objects(cache_with(tmp_path / "empty"), tmp_path / "o.tar", MADE)
    with pytest.raises(FetchError, match="there is no file"):
        take_objects(cache_with(tmp_path / "home"), tmp_path / "none.tar")


def test_an_object_that_is_cut_or_changed_is_refused(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    for bad in (data[: len(data) // 2], data.replace(NAMES[1].encode() * 50, b"x" * (50 * len(NAMES[1])))):
        packed.write_bytes(bad)
        with pytest.raises(FetchError, match="not a whole file of objects"):
            take_objects(cache_with(tmp_path / "home"), packed)
    place = tmp_path / "home/compiler-cache/objects"
    assert not (place / NAMES[1]).exists()


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "0/a/../../../../../tmp/3c9d5f2ab81b4e6f7a8c9d0e1f2aR", "ccache.conf"]
)
def test_only_the_names_that_ccache_gives_are_taken(name: str, tmp_path: Path) -> None:
    manifest = {"format": 1, "results": [{"name": name, "sha256": "0" * 64, "size": 0}]}
    data = json.dumps(manifest).encode()
    with tarfile.open(tmp_path / "o.tar", "w") as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(FetchError, match="not a whole file") as raised:
        take_objects(cache_with(tmp_path / "home"), tmp_path / "o.tar")
    assert "manifest.json" in raised.value.why


def test_a_header_that_python_s_tarfile_cannot_read_is_no_file_of_objects(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "o.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.pax_headers = {"GNU.sparse.map": "x,y"}  # a ValueError of tarfile
        tar.addfile(entry, io.BytesIO())
    with pytest.raises(FetchError, match="not a whole file"):
        take_objects(cache_with(tmp_path / "home"), tmp_path / "o.tar")


@given(st.binary(max_size=300), st.integers(0, 20_000))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_objects_or_an_error(packed: Path, tmp_path: Path, noise: bytes, place: int) -> None:
    data = packed.read_bytes()
    (tmp_path / "noise.tar").write_bytes(data[:place] + noise + data[place + len(noise) :])
    home = cache_with(tmp_path / "home")
    try:
        take_objects(home, tmp_path / "noise.tar")
    except WheelsmithError as error:
        assert error.fix  # noqa: PT017
    for name in NAMES:
        path = tmp_path / "home/compiler-cache/objects" / name
        assert not path.exists() or path.read_bytes() == name.encode() * 50


def test_the_command_packs_and_takes(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "home"))
    assert main(["--take", str(packed)], Console()) == 0
    said = capsys.readouterr()
    assert "2 objects, 2 of them new here" in said.out
    assert f"Python was 3.0.0 there and is {platform.python_version()} here" in said.err
    again = tmp_path / "again.tar"
    assert main(["--give", str(again)], Console()) == 0
    assert main(["--take", str(again)], Console()) == 0
    said = capsys.readouterr()
    assert "2 objects, 0 of them new here" in said.out
    assert "there and is" not in said.err
    for arguments in ([], ["out", "--take", "x"]):
        with pytest.raises(UsageError, match="name one thing"):
            main(arguments, Console())


def test_parts_are_torch_and_cuda() -> None:
    assert parse_parts("torch, cuda") == ("cuda", "torch")
    assert parse_parts("") == ()
    with pytest.raises(UsageError, match="Perhaps you meant"):
        parse_parts("touch")
