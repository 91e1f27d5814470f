"""Files of a wheel as a source: range requests to a real server, digests, hostile archives and servers."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import FetchError
from scripts.downloads import ranges, unpack
from scripts.downloads.access import Access
from scripts.downloads.download import open_client
from scripts.downloads.indexes import Indexes
from scripts.downloads.ranges import NoRangesError, RemoteFile
from scripts.downloads.unpack import unpack_members
from scripts.recipe.sources import MembersSource
from scripts.sources.bundle import read_bundle, write_bundle
from scripts.sources.fetch import fetch_dependency, fetch_for_bundle
from tests.accesses import make_access
from tests.support import make_recipe

NAME = "thing-1.0-py3-none-any.whl"
FILES = {f"thing/sub/{name}.py": hashlib.shake_256(name.encode()).digest(2_000) for name in "abc"}
BIG = hashlib.shake_256(b"big").digest(400_000)


def make_zip(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


WHEEL = make_zip({"thing/big.bin": BIG, **FILES, "thing/other.py": b"x"})
WANTED = {name: (name.removeprefix("thing/"), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()}


class Index(http.server.ThreadingHTTPServer):
    """A package index with one wheel, and faults to choose from."""

    daemon_threads = True
    fault = ""
    wheel = WHEEL

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as PEP 503 says, files with ranges."""

    server: Index

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer a page, or a file with or without ranges."""
        if not self.path.endswith(".whl"):
            sha256 = hashlib.sha256(WHEEL).hexdigest()
            page = f'<a href="/files/{NAME}#sha256={sha256}">{NAME}</a>'.encode()
            return self._answer(200, page, {"Content-Type": "text/html"})
        wheel, fault = self.server.wheel, self.server.fault
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        changed = fault == "changed" and "If-Range" in self.headers
        if not wanted or fault == "no ranges" or changed:
            return self._answer(200, wheel, {})
        first, last = int(wanted[1]), min(int(wanted[2]), len(wheel) - 1)
        content, total = wheel[first : last + 1], len(wheel)
        if fault == "once" and not self.server.sent:
            self.server.sent.append(("503", 0))
            return self._answer(503, b"", {})
        if fault == "more":
            content += b"x" * 10
        if fault == "other size" and first:
            total += 1
        said = f"bytes {first + (fault == 'shifted')}-{last}/{total}" if fault != "unsaid" else "bytes"
        return self._answer(206, content, {"Content-Range": said, "ETag": '"1"'}, cut=fault == "cut")

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.server.sent.append((self.headers.get("Range", ""), len(content)))
        self.wfile.write(content[: len(content) // 2] if cut else content)


@pytest.fixture
def index() -> Iterator[Index]:
    server = Index()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def access(index: Index, tmp_path: Path) -> Access:
    return make_access(Cache.open(tmp_path / "cache"), indexes=Indexes(index_url=f"{index.url}/simple"))


@pytest.fixture
def source(tmp_path: Path) -> MembersSource:
    listed = tmp_path / "recipes" / "thing.sha256"
    listed.parent.mkdir()
    listed.write_text("".join(f"{sha256}  {place.removeprefix('sub/')}\n" for place, sha256 in WANTED.values()))
    return MembersSource(
        kind="wheel-members",
        name="thing",
        version="1.0",
        sha256=hashlib.sha256(WHEEL).hexdigest(),
        path="thing/sub",
        files_sha256="thing.sha256",
        into="inner/folder",
    )


def fetched(source: MembersSource, access: Access, tmp_path: Path) -> dict[str, bytes]:
    root = fetch_dependency(source, access, recipes=tmp_path / "recipes")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


EXPECTED = {f"inner/folder/{name.removeprefix('thing/sub/')}": content for name, content in FILES.items()}


def test_only_the_listed_files_come_and_only_a_part_of_the_wheel(
    index: Index, access: Access, source: MembersSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "BLOCK", 8_192)
    assert fetched(source, access, tmp_path) == EXPECTED
    assert sum(size for said, size in index.sent if said) < 40_000 < len(WHEEL)
    before = len(index.sent)
    assert fetched(source, replace(access, offline=True), tmp_path) == EXPECTED  # the cache needs no one
    assert len(index.sent) == before
    assert not (access.cache.root / "downloads" / source.sha256).exists()


def test_an_index_without_ranges_sends_the_whole_wheel_whose_digest_is_checked(
    index: Index, access: Access, source: MembersSource, tmp_path: Path
) -> None:
    index.fault = "no ranges"
    assert fetched(source, access, tmp_path) == EXPECTED
    assert (access.cache.root / "downloads" / source.sha256 / NAME).read_bytes() == WHEEL
    index.wheel = b"x" + WHEEL
    other = replace(access, cache=Cache.open(tmp_path / "other"))
    with pytest.raises(FetchError, match="is not the pinned file"):
        fetched(source, other, tmp_path)


@pytest.fixture
def bundle(access: Access, source: MembersSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a recipe that needs the wheel's files, written where the index is."""
    monkeypatch.setattr(ranges, "BLOCK", 8_192)
    dependency = {"version": "1.0", "variable": "THING", "source": source.model_dump()}
    archive = access.cache.place("downloads/" + hashlib.sha256(b"x").hexdigest(), "vllm-0.20.1.tar.gz")
    archive.write_bytes(b"x")
    own = {"kind": "sdist", "name": "vllm", "version": "0.20.1", "sha256": hashlib.sha256(b"x").hexdigest()}
    recipe = make_recipe(tmp_path / "recipes", source=own, dependencies={"thing": dependency})
    target = tmp_path / "sources.tar"
    write_bundle(
        recipe, target, access=access, archive_of=lambda item: fetch_for_bundle(item, access, tmp_path / "recipes")
    )
    return target


def test_a_bundle_carries_the_files_alone_and_they_are_checked_again(
    access: Access, bundle: Path, source: MembersSource, tmp_path: Path
) -> None:
    assert bundle.stat().st_size < 40_000 < len(WHEEL)
    assert not (access.cache.root / "downloads" / source.sha256).exists()
    there = make_access(Cache.open(tmp_path / "there"), offline=True)
    read_bundle(bundle, there)
    assert fetched(source, there, tmp_path) == EXPECTED


def test_an_excerpt_with_other_files_is_told_and_not_used(
    index: Index,
    access: Access,
    bundle: Path,
    source: MembersSource,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = replace(access, cache=Cache.open(tmp_path / "there"), console=Console())
    read_bundle(bundle, there)
    [excerpt] = (there.cache.root / "excerpts").iterdir()
    excerpt.write_bytes(make_zip({**FILES, "thing/sub/b.py": b"evil"}))
    with pytest.raises(FetchError, match="not in the cache"):
        fetched(source, replace(there, offline=True), tmp_path)
    assert "thing-1.0" in capsys.readouterr().err
    read_bundle(bundle, there)
    excerpt.write_bytes(b"no zip")
    assert fetched(source, there, tmp_path) == EXPECTED  # from the index
    assert any(said for said, _ in index.sent)


def test_a_wheel_in_the_cache_is_used_as_it_is(
    index: Index, access: Access, source: MembersSource, tmp_path: Path
) -> None:
    access.cache.place(f"downloads/{source.sha256}", NAME).write_bytes(WHEEL)
    assert fetched(source, replace(access, offline=True), tmp_path) == EXPECTED
    assert index.sent == []


def test_without_a_network_and_a_cache_it_says_what_to_do(
    access: Access, source: MembersSource, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"thing 1.0 \(the wheel, or 3 of its files\) is not in the cache"):
        fetched(source, replace(access, offline=True), tmp_path)


def test_a_server_that_stumbles_is_asked_again(
    index: Index, access: Access, source: MembersSource, tmp_path: Path
) -> None:
    index.fault = "once"
    assert fetched(source, access, tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shifted", "it says 'bytes 1-0"),
        ("unsaid", "it says 'bytes'"),
        ("more", "more than the 1 bytes"),
        ("other size", r"it says 'bytes \d+-"),
        ("changed", "changed while it was read"),
        ("cut", "connection closed|peer closed|ReadError|RemoteProtocolError"),
    ],
)
def test_a_server_that_answers_otherwise_than_it_was_asked_is_refused(
    index: Index,
    access: Access,
    source: MembersSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    said: str,
) -> None:
    index.fault = fault
    monkeypatch.setattr(ranges, "BLOCK", 100_000)
    with pytest.raises(FetchError) as caught:
        fetched(source, access, tmp_path)
    assert re.search(said, caught.value.why)
    assert not list((access.cache.root / "dependencies").glob("[!.]*"))


def test_a_file_that_is_not_the_listed_one_is_refused(
    index: Index, access: Access, source: MembersSource, tmp_path: Path
) -> None:
    changed = dict(FILES)
    changed["thing/sub/b.py"] = b"evil"
    index.wheel = make_zip({"thing/big.bin": BIG, **changed})
    with pytest.raises(FetchError, match=r"thing/sub/b.py of thing-1.0.* is not the pinned file"):
        fetched(source, access, tmp_path)
    assert not list((access.cache.root / "dependencies").glob("[!.]*"))


def test_more_than_is_reasonable_is_not_read(index: Index, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MAX_RECEIVED", 100_000)
    with open_client(access) as client, pytest.raises(FetchError) as caught:
        io.BufferedReader(RemoteFile(client, f"{index.url}/files/{NAME}", access)).read()
    assert "more than 100.0 kB" in caught.value.why


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, len(WHEEL) + 50), st.integers(-1, 20_000)), max_size=8))
def test_reading_in_parts_gives_what_reading_the_file_gives(
    index: Index, access: Access, steps: list[tuple[int, int]]
) -> None:
    local = io.BytesIO(WHEEL)
    with open_client(access) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "BLOCK", 5_000)
        patch.setattr(ranges, "KEPT", 2)
        remote = RemoteFile(client, f"{index.url}/files/{NAME}", access)
        assert (remote.size, remote.readable(), remote.seekable()) == (len(WHEEL), True, True)
        with pytest.raises(ValueError, match="before the beginning"):
            remote.seek(-1)
        reader = io.BufferedReader(remote)
        for position, size in steps:
            assert reader.seek(position) == local.seek(position) == reader.tell()
            assert reader.read(size) == local.read(size)
        assert remote.seek(-5, io.SEEK_END) == len(WHEEL) - 5
        assert remote.seek(2, io.SEEK_CUR) == remote.tell() == len(WHEEL) - 3


def test_a_server_without_ranges_is_told_apart(index: Index, access: Access) -> None:
    index.fault = "no ranges"
    with open_client(access) as client, pytest.raises(NoRangesError):
        RemoteFile(client, f"{index.url}/files/{NAME}", access)


def taken(wheel: bytes, target: Path, wanted: Mapping[str, tuple[str, str]] = WANTED) -> dict[str, bytes]:
    unpack_members(io.BytesIO(wheel), NAME, wanted, target)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


RIGHT = {name.removeprefix("thing/"): content for name, content in FILES.items()}


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_gives_the_right_files_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    wheel = bytearray(make_zip(FILES))
    for _ in range(data.draw(st.integers(1, 4))):
        wheel[data.draw(st.integers(0, len(wheel) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del wheel[data.draw(st.integers(0, len(wheel))) :]
    target = tmp_path_factory.mktemp("taken")
    try:
        found = taken(bytes(wheel), target)
    except FetchError:
        return
    assert found == RIGHT


@settings(max_examples=30, deadline=None)
@given(place=st.text(alphabet="a./\\\0", max_size=12))
def test_no_path_leaves_the_folder(tmp_path_factory: pytest.TempPathFactory, place: str) -> None:
    target = tmp_path_factory.mktemp("taken") / "inner"
    name, (_, sha256) = next(iter(WANTED.items()))
    with contextlib.suppress(FetchError):
        taken(WHEEL, target, {name: (place, sha256)})
    assert [path.name for path in target.parent.iterdir()] in ([], ["inner"])


@pytest.mark.parametrize(
    ("wheel", "said"),
    [
        (
            make_zip({**FILES, "thing/sub/./a.py": b""}).replace(b"thing/sub/./a.py", b"thing/sub/a.py\0."),
            "twice|corrupt",
        ),
        (make_zip(dict(list(FILES.items())[:2])), "not in the archive"),
        (b"PK no zip at all", "BadZipFile"),
        (make_zip(FILES).replace(b"thing/sub/b.py", b"thing/sub/a.py"), "twice"),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, wheel: bytes, said: str) -> None:
    with pytest.raises(FetchError) as caught:
        taken(wheel, tmp_path / "x")
    assert re.search(said, f"{caught.value.what} {caught.value.why}")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = make_zip({"thing/sub/a.py": bytes(10_000_000)})
    monkeypatch.setattr(unpack, "MAX_MEMBER", 1_000_000)
    with pytest.raises(FetchError) as caught:
        taken(bomb, tmp_path / "x", {"thing/sub/a.py": ("a.py", "0" * 64)})
    assert "larger than 1.0 MB" in caught.value.why
    assert not (tmp_path / "x").exists()
