from __future__ import annotations

import gzip
import io
import stat
import tarfile
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core.errors import FetchError
from scripts.downloads import unpack
from scripts.downloads.unpack import unpack_sdist, unpack_wheel

Entry = tuple[str, bytes, str]  # name, type, content of a file or goal of a link

FILE, FOLDER, SYMLINK, HARDLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def make_tar(path: Path, entries: list[Entry], *, mode: str = "w:gz", permissions: int = 0o644) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, kind, text in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, permissions
            data = text.encode("utf-8", "surrogateescape") if kind == FILE else b""
            info.size, info.linkname = len(data), "" if kind == FILE else text
            tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path: Path, entries: dict[str, str], *, mode: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as wheel:
        for name, text in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, compression
            wheel.writestr(info, text)
    return path


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Return everything in a folder: path to content or link goal."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else str(path.readlink())
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def links_leaving(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
    ]


def test_an_sdist_is_unpacked_without_its_top_folder(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("vllm-1/", FOLDER, ""),
        ("./vllm-1/a.txt", FILE, "a"),
        ("vllm-1/b/", FOLDER, ""),
        ("vllm-1/b/link", SYMLINK, "../a.txt"),
        ("vllm-1/b/same", HARDLINK, "vllm-1/a.txt"),
        ("top-level", FILE, "is left out"),
    ]
    unpack_sdist(make_tar(tmp_path / "x.tar.gz", entries), tmp_path / "out")
    assert snapshot(tmp_path / "out") == {"a.txt": b"a", "b/link": b"a", "b/same": b"a"}
    assert str((tmp_path / "out/b/link").readlink()) == "../a.txt"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_of_tar_is_read_and_its_damage_named(tmp_path: Path, mode: str) -> None:
    text = "".join(f"line {number * 7919}\n" for number in range(20_000))
    archive = make_tar(tmp_path / "x.tar", [("v/a.txt", FILE, text)], mode=mode)
    unpack_sdist(archive, tmp_path / "out")
    assert (tmp_path / "out/a.txt").read_text() == text
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FetchError, match=r"x\.tar is corrupt"):
        unpack_sdist(archive, tmp_path / "cut")
    if mode in {"w:bz2", "w:xz"}:  # tar and gzip (its trailer unread) leave this to the pinned sha256
        archive.write_bytes(whole[: len(whole) // 2] + b"\x55" * 64 + whole[len(whole) // 2 + 64 :])
        with pytest.raises(FetchError, match=r"x\.tar is corrupt"):
            unpack_sdist(archive, tmp_path / "changed")


def test_permissions_are_plain_but_for_the_executable_bit(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "x.tar", [("v/run", FILE, "#!")], permissions=0o6777)
    unpack_sdist(archive, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/run").stat().st_mode) == 0o755
    unpack_wheel(make_zip(tmp_path / "x.whl", {"a": "1"}, mode=stat.S_IFREG | 0o4711), tmp_path / "out2")
    assert stat.S_IMODE((tmp_path / "out2/a").stat().st_mode) == 0o755
    unpack_wheel(make_zip(tmp_path / "y.whl", {"a": "1"}, mode=stat.S_IFREG | 0o600), tmp_path / "out3")
    assert stat.S_IMODE((tmp_path / "out3/a").stat().st_mode) == 0o644


HOSTILE: dict[str, list[Entry]] = {
    "absolute": [("/etc/evil", FILE, "x")],
    "parent": [("v/../../evil", FILE, "x")],
    "parent at the top": [("../evil", FILE, "x")],
    "backslash": [("v/..\\evil", FILE, "x")],
    "device": [("v/null", tarfile.CHRTYPE, "")],
    "block device": [("v/disk", tarfile.BLKTYPE, "")],
    "pipe": [("v/pipe", tarfile.FIFOTYPE, "")],
    "symlink to outside": [("v/l", SYMLINK, "../../x")],
    "symlink to nothing": [("v/l", SYMLINK, "")],
    "absolute symlink": [("v/l", SYMLINK, "/etc/passwd")],
    "absolute symlink into the target's namesake": [("v/l", SYMLINK, "/")],
    "file through a link": [("v/d", FOLDER, ""), ("v/l", SYMLINK, "d/../.."), ("v/l/evil", FILE, "x")],
    "link that another link turns outward": [("v/x", SYMLINK, "y/.."), ("v/y", SYMLINK, ".")],
    "links that turn outward, then a file": [("v/x", SYMLINK, "y/.."), ("v/y", SYMLINK, "."), ("v/x/evil", FILE, "x")],
    "links in a circle": [("v/a", SYMLINK, "b"), ("v/b", SYMLINK, "a"), ("v/a/c", FILE, "x")],
    "hard link to outside": [("v/h", HARDLINK, "/etc/passwd")],
    "hard link to a parent": [("v/h", HARDLINK, "v/../../x")],
    "hard link to nothing": [("v/h", HARDLINK, "v/none")],
    "hard link to a link": [("v/a", FILE, "x"), ("v/l", SYMLINK, "a"), ("v/h", HARDLINK, "v/l")],
    "hard link to a folder": [("v/d", FOLDER, ""), ("v/h", HARDLINK, "v/d")],
    "file as a folder": [("v/a", FILE, "x"), ("v/a/b", FILE, "x")],
    "folder as a file": [("v/a/b", FILE, "x"), ("v/a", FILE, "x")],
    "folder over a file": [("v/a", FILE, "x"), ("v/a", FOLDER, "")],
    "name too long": [("v/" + "n" * 300, FILE, "x")],
    "nothing inside": [("v/", FOLDER, ""), ("top-level", FILE, "x")],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tar_is_refused_and_touches_nothing_outside(tmp_path: Path, entries: list[Entry]) -> None:
    box = tmp_path / "box"
    box.mkdir()
    archive = make_tar(tmp_path / "x.tar.gz", entries)
    with pytest.raises(FetchError, match=r"x\.tar\.gz"):
        unpack_sdist(archive, box / "out")
    assert [path for path in box.iterdir() if path.name != "out"] == []


def test_a_later_member_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    entries: list[Entry] = [("v/a", FILE, "1"), ("v/b", SYMLINK, "a"), ("v/b", FILE, "2")]
    unpack_sdist(make_tar(tmp_path / "x.tar", entries), tmp_path / "out")
    assert snapshot(tmp_path / "out") == {"a": b"1", "b": b"2"}


NAMES = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", "é", "n" * 80]), min_size=1, max_size=4).map("/".join)
GOALS = NAMES | NAMES.map("/".__add__) | NAMES.map("v/".__add__)
KINDS = st.sampled_from([FILE, FILE, FOLDER, SYMLINK, SYMLINK, HARDLINK, tarfile.FIFOTYPE])
ENTRIES = st.lists(st.tuples(NAMES.map("v/".__add__) | NAMES, KINDS, GOALS), max_size=8)
ON_DISK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@ON_DISK
@given(ENTRIES)
def test_no_tar_writes_or_points_outside_the_target(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "box"
        box.mkdir()
        archive = make_tar(Path(folder) / "x.tar", entries, mode="w")
        with suppress(FetchError):
            unpack_sdist(archive, box / "out")
            assert links_leaving(box / "out") == []
        assert [path.name for path in box.iterdir() if path.name != "out"] == []
        assert len(list(Path(folder).iterdir())) == 2


@ON_DISK
@given(st.dictionaries(NAMES | NAMES.map("/".__add__), st.text(max_size=20), max_size=6), st.sampled_from(["", "a"]))
def test_no_zip_writes_outside_the_target(entries: dict[str, str], inside: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "box"
        box.mkdir()
        archive = make_zip(Path(folder) / "x.whl", entries)
        with suppress(FetchError):
            unpack_wheel(archive, box / "out", folder=inside)
            assert set(snapshot(box / "out").values()) <= {text.encode() for text in entries.values()}
        assert [path.name for path in box.iterdir() if path.name != "out"] == []
        assert len(list(Path(folder).iterdir())) == 2


@ON_DISK
@given(st.data())
def test_a_damaged_archive_never_gives_anything_but_a_fetch_error(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if data.draw(st.booleans()):
            archive, reader = make_zip(folder / "x.whl", {"a/b": "text" * 50, "a/c": "more"}), unpack_wheel
        else:
            mode = data.draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
            archive = make_tar(folder / "x.tar", [("v/a", FILE, "text" * 50), ("v/b", SYMLINK, "a")], mode=mode)
            reader = unpack_sdist  # type: ignore[assignment]
        whole = bytearray(archive.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        archive.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        with suppress(FetchError):
            reader(archive, folder / "out")
        assert {path.name for path in folder.iterdir()} <= {archive.name, "out"}


def test_a_wheel_s_folder_is_unpacked_alone(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.whl", {"p/data/a": "1", "p/data/b/c": "2", "p/other": "3", "p/data2": "4"})
    unpack_wheel(archive, tmp_path / "out", folder="p/data/")
    assert snapshot(tmp_path / "out") == {"a": b"1", "b/c": b"2"}
    with pytest.raises(FetchError, match="holds no p/none/"):
        unpack_wheel(archive, tmp_path / "out2", folder="p/none")


@pytest.mark.parametrize(
    ("entries", "mode"),
    [
        ({"../evil": "x"}, 0),
        ({"/evil": "x"}, 0),
        ({"a/../../evil": "x"}, 0),
        ({"a": "/etc/passwd"}, stat.S_IFLNK | 0o777),
        ({"a": "x"}, stat.S_IFCHR | 0o666),
        ({"a": "x", "a/b": "y"}, 0),
    ],
    ids=["parent", "absolute", "hidden parent", "symlink", "device", "file as a folder"],
)
def test_a_hostile_zip_is_refused(tmp_path: Path, entries: dict[str, str], mode: int) -> None:
    archive = make_zip(tmp_path / "x.whl", entries, mode=mode)
    with pytest.raises(FetchError, match=r"x\.whl"):
        unpack_wheel(archive, tmp_path / "box" / "out")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "box" / "evil").exists()


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MAX_BYTES", 10_000)
    big = "0" * 6000
    for archive, reader in (
        (make_tar(tmp_path / "x.tar.gz", [("v/a", FILE, big), ("v/b", FILE, big)]), unpack_sdist),
        (make_zip(tmp_path / "x.whl", {"a": big, "b": big}), unpack_wheel),
    ):
        with pytest.raises(FetchError, match="was not unpacked") as raised:
            reader(archive, tmp_path / "out")
        assert "10.0 kB" in raised.value.why


def test_hard_links_count_as_the_copies_they_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_BYTES", 10_000)
    links: list[Entry] = [(f"v/{number}", HARDLINK, "v/a") for number in range(5)]
    archive = make_tar(tmp_path / "x.tar", [("v/a", FILE, "0" * 3000), *links])
    with pytest.raises(FetchError, match="was not unpacked"):
        unpack_sdist(archive, tmp_path / "out")


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_FILES", 3)
    archive = make_tar(tmp_path / "x.tar", [(f"v/{number}", FILE, "") for number in range(4)])
    with pytest.raises(FetchError, match="was not unpacked") as raised:
        unpack_sdist(archive, tmp_path / "out")
    assert "3 files" in raised.value.why


def test_a_zip_whose_table_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.whl", {"a": "x" * 100}, compression=zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (50).to_bytes(4, "little")  # uncompressed size
    archive.write_bytes(data)
    with pytest.raises(FetchError, match="corrupt"):
        unpack_wheel(archive, tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"not an archive", gzip.compress(b"not a tar", mtime=0)])
def test_what_is_no_archive_is_called_corrupt(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    for reader in (unpack_sdist, unpack_wheel):
        with pytest.raises(FetchError, match="x is corrupt") as raised:
            reader(path, tmp_path / "out")
        assert "fetch it anew" in raised.value.fix[0]


def test_a_full_disk_is_not_called_a_corrupt_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpack, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        unpack_sdist(make_tar(tmp_path / "x.tar", [("v/a", FILE, "x")]), tmp_path / "out")
