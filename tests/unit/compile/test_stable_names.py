"""Names and dates that do not depend on where a wheel is built."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts.compile.stable_names import FIRST_DATE, map_names, source_date, zip_date
from scripts.compile.standalone.launcher import MAPS, with_stable_names
from scripts.core.errors import UsageError


def test_the_date_is_the_users_else_1980() -> None:
    assert source_date({"SOURCE_DATE_EPOCH": "1700000000"}) == 1_700_000_000
    assert zip_date(1_700_000_001) == (2023, 11, 14, 22, 13, 20)
    assert zip_date(source_date({})) == (1980, 1, 1, 0, 0, 0)
    assert source_date({"SOURCE_DATE_EPOCH": ""}) == FIRST_DATE


@pytest.mark.parametrize("text", ["yesterday", "-1", "0", "4354819200", "1e9", "\u0661\u0667", "17 "])
def test_a_date_that_a_wheel_cannot_have_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is"):
        source_date({"SOURCE_DATE_EPOCH": text})


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    binds = {"build": "/c/builds/1", "venv": "/c/tc/venv", "cuda": "/c/tc/cuda", "dependencies/cutlass": "/c/deps/2"}
    names = map_names({name: Path(path) for name, path in binds.items()})
    monkeypatch.setenv(MAPS, names[MAPS])
    return dict(json.loads(names[MAPS]))


def test_every_directory_of_the_cache_gets_a_name(maps: dict[str, str]) -> None:
    assert maps == {
        "/c/builds/1": "/tmp/wheelsmith/build",
        "/c/tc/venv": "/tmp/wheelsmith/venv",
        "/c/tc/cuda": "/tmp/wheelsmith/cuda",
        "/c/deps/2": "/tmp/wheelsmith/dependencies/cutlass",
    }


def test_nvcc_is_told_the_names_through_its_host_compiler_and_cudafe(maps: dict[str, str]) -> None:
    command = ["/c/tc/cuda/bin/nvcc", "-O3", "-c", "/c/builds/1/source/a.cu", "-o", "a.o"]
    told = with_stable_names(command)
    assert told[0] == command[0]
    assert told[-len(command) + 1 :] == command[1:]
    assert "-Xcompiler=-ffile-prefix-map=/c/deps/2=/tmp/wheelsmith/dependencies/cutlass" in told
    assert told[told.index("-Xcudafe") + 1] == "--orig_src_path_name=/tmp/wheelsmith/build/source/a.cu"


def test_a_source_from_elsewhere_keeps_its_name(maps: dict[str, str]) -> None:
    assert "-Xcudafe" not in with_stable_names(["nvcc", "-c", "/c/builds/10/a.cu", "-o", "a.o"])


def test_a_host_compiler_is_told_directly(maps: dict[str, str]) -> None:
    told = with_stable_names(["g++", "-c", "/c/builds/1/a.cpp", "-o", "a.o"])
    assert told[1] == "-ffile-prefix-map=/c/builds/1=/tmp/wheelsmith/build"
    assert not any(word.startswith("-X") for word in told)


def test_links_and_calls_without_names_stay_as_they_are(maps: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    link = ["g++", "-shared", "-o", "lib.so", "a.o"]
    assert with_stable_names(link) == link
    monkeypatch.delenv(MAPS)
    compiling = ["g++", "-c", "a.cpp", "-o", "a.o"]
    assert with_stable_names(compiling) == compiling


def test_a_real_compiler_writes_the_same_object_in_two_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = []
    for name in ("a", "another-one"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.cpp").write_text("const char *where() { return __FILE__; }\n")
        monkeypatch.setenv(MAPS, map_names({"build": folder})[MAPS])
        command = ["g++", "-c", str(folder / "x.cpp"), "-o", str(folder / "x.o")]
        subprocess.run(with_stable_names(command), check=True)
        objects.append((folder / "x.o").read_bytes())
    assert objects[0] == objects[1]
    assert b"/tmp/wheelsmith/build/x.cpp" in objects[0]
