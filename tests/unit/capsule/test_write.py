"""A capsule on disk: the same bytes for the same members, parts of a size, whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.capsule.write import INDEX, SCRIPT, parse_size, write_capsule
from scripts.core.errors import FetchError, UsageError

ABOUT = {"recipe": "mini", "python": "3.11"}


@pytest.fixture
def members(tmp_path: Path) -> list[tuple[str, Path]]:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, size in (("a", 10), ("b", 150_000), ("tool", 70_000)):
        (folder / name).write_bytes(os.urandom(size))
    (folder / "tool").chmod(0o700)
    return [(f"project/{path.name}", path) for path in sorted(folder.iterdir())]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_members_give_the_same_bytes_whatever_their_times(
    members: list[tuple[str, Path]], tmp_path: Path
) -> None:
    write_capsule(tmp_path / "one", members, ABOUT, limit=65_536)
    for _, path in members:
        os.utime(path, (1, 1))
    previous = os.umask(0o077)
    try:
        write_capsule(tmp_path / "two", members, ABOUT, limit=65_536)
    finally:
        os.umask(previous)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("limit", [0, 65_536, 100_000])
def test_parts_joined_are_the_archive_and_the_index_has_their_digests(
    limit: int, members: list[tuple[str, Path]], tmp_path: Path
) -> None:
    index = write_capsule(tmp_path / "out", members, ABOUT, limit=limit)
    parts = [(tmp_path / "out" / part["name"]).read_bytes() for part in index["parts"]]
    assert [hashlib.sha256(part).hexdigest() for part in parts] == [part["sha256"] for part in index["parts"]]
    assert all(len(part) == limit for part in parts[:-1]) or limit == 0
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
        assert {item.name: (item.mode, item.mtime, item.uid) for item in tar} == {
            "project/a": (0o644, 0, 0),
            "project/b": (0o644, 0, 0),
            "project/tool": (0o755, 0, 0),
        }
    text = (tmp_path / "out" / INDEX).read_bytes()
    assert json.loads(text) == index
    assert f'INDEX = "{hashlib.sha256(text).hexdigest()}"' in (tmp_path / "out" / SCRIPT).read_text()


def test_an_earlier_capsule_is_replaced_and_nothing_else(members: list[tuple[str, Path]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_capsule(out, members, ABOUT, limit=65_536)
    write_capsule(out, members[:1], ABOUT)
    assert set(contents(out)) == {"capsule.001", INDEX, SCRIPT}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(UsageError, match="is there already and is no capsule"):
        write_capsule(tmp_path / "mine", members, ABOUT)
    assert set(contents(tmp_path / "mine")) == {"letter"}


def test_what_cannot_be_read_leaves_the_earlier_capsule(members: list[tuple[str, Path]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_capsule(out, members, ABOUT)
    before = contents(out)
    with pytest.raises(FetchError, match="writing the capsule"):
        write_capsule(out, [*members, ("gone", tmp_path / "gone")], ABOUT)
    assert contents(out) == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("text", "size"), [("60M", 60_000_000), ("1g", 10**9), ("66KB", 66_000), ("99999", 99_999)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_anything_else_is_refused_or_a_size(text: str) -> None:
    with suppress(UsageError):
        assert parse_size(text) >= 1 << 16
