from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import FetchError
from scripts.downloads.download import download, open_client
from scripts.downloads.indexes import Indexes
from scripts.recipe.sources import SdistSource
from scripts.sources.fetch import fetch_archive
from scripts.sources.types import Archive
from tests.accesses import make_access


def _sdist() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("thing-1.0/data")
        info.size = 1_500_000
        tar.addfile(info, io.BytesIO(hashlib.shake_256(b"x").digest(1_500_000)))
    return buffer.getvalue()


DATA = _sdist()
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "thing-1.0.tar.gz"
SOURCE = SdistSource(kind="sdist", name="thing", version="1.0", sha256=SHA256)


class Index(http.server.ThreadingHTTPServer):
    """A package index with one sdist, and faults to choose from."""

    daemon_threads = True
    fault = ""
    listed_sha256 = SHA256

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as PEP 503 says, files with ranges."""

    server: Index

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append((self.path, wanted))
        fault = self.server.fault
        if fault == "401" and self.headers.get("Authorization") is None:
            self.answer(401, b"")
        elif self.path == "/simple/thing/":
            page = f'<a href="/files/{NAME}#sha256={self.server.listed_sha256}">{NAME}</a>'
            self.answer(200, page.encode(), kind="text/html")
        elif self.path == f"/files/{NAME}":
            self.file(wanted, fault)
        else:
            self.answer(404, b"")

    def file(self, wanted: str, fault: str) -> None:
        first = sum(1 for path, _ in self.server.requests if path.startswith("/files/")) == 1
        if fault == "404":
            self.answer(404, b"")
        elif (fault == "503" and first) or fault == "always 503":
            self.answer(503, b"")
        elif fault == "corrupt":
            self.answer(200, b"x" * len(DATA))
        elif fault.startswith("cut") and (first or fault == "cut always"):
            self.answer(200, DATA[: len(DATA) // 2], length=len(DATA))
        elif wanted and fault != "cut, no ranges":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.answer(206 if start < len(DATA) else 416, DATA[start:])
        else:
            self.answer(200, DATA)

    def answer(self, status: int, body: bytes, *, length: int = -1, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HOME", str(tmp_path))  # without a .netrc
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        yield server
        server.shutdown()


def fetch(cache: Cache, *, offline: bool = False) -> Archive:
    return fetch_archive(SOURCE, make_access(cache, Console(), offline=offline))


def pulled(cache: Cache, index: Index) -> Path:
    """Download the file by its URL alone, without waiting between attempts."""
    access = make_access(cache, Console(), indexes=Indexes())
    with open_client(access) as client:
        return download(client, f"{index.url}/files/{NAME}", access, sha256=SHA256, filename=NAME)


def test_a_pinned_sdist_is_fetched_once_and_then_offline(cache: Cache, index: Index) -> None:
    archive = fetch(cache)
    assert archive.path.read_bytes() == DATA
    asked = len(index.requests)
    assert fetch(cache, offline=True) == archive
    assert fetch(cache) == archive
    assert len(index.requests) == asked


def test_offline_with_an_empty_cache_says_so(cache: Cache, index: Index) -> None:
    with pytest.raises(FetchError, match="not in the cache"):
        fetch(cache, offline=True)
    assert index.requests == []


def test_a_damaged_file_in_the_cache_is_fetched_again(cache: Cache, index: Index) -> None:
    fetch(cache).path.write_bytes(b"damaged")
    assert fetch(cache).path.read_bytes() == DATA


@pytest.mark.parametrize("fault", ["cut", "cut, no ranges", "503"])
def test_a_break_is_got_over_within_one_run(cache: Cache, index: Index, fault: str) -> None:
    index.fault = fault
    assert pulled(cache, index).read_bytes() == DATA
    assert index.requests[-1][1].startswith("bytes=") == fault.startswith("cut")  # resumed after what had come


def test_a_later_run_goes_on_where_an_earlier_one_stopped(cache: Cache, index: Index) -> None:
    partial = cache.place(f"downloads/{SHA256}", f".{NAME}.part")
    partial.write_bytes(DATA[:1000])
    assert pulled(cache, index).read_bytes() == DATA
    assert index.requests[-1][1] == "bytes=1000-"


@pytest.mark.parametrize(
    ("fault", "shown"),
    [("corrupt", "not the pinned file"), ("404", "was refused"), ("401", "was refused"), ("always 503", "cannot be")],
)
def test_a_fault_that_stays_is_a_fetch_error_and_leaves_no_file(
    cache: Cache, index: Index, fault: str, shown: str
) -> None:
    index.fault = fault
    with pytest.raises(FetchError, match=shown):
        pulled(cache, index)
    assert [path for path in (cache.root / "downloads").rglob("*") if path.is_file()] == []


def test_credentials_are_taken_from_netrc(cache: Cache, index: Index, tmp_path: Path) -> None:
    index.fault = "401"
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch(cache)
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o644)
    with pytest.raises(FetchError, match="netrc cannot be used"):
        fetch(cache)
    netrc.chmod(0o600)
    assert fetch(cache).path.read_bytes() == DATA


def test_an_index_that_lists_other_bytes_is_not_downloaded_from(cache: Cache, index: Index) -> None:
    index.listed_sha256 = "f" * 64
    with pytest.raises(FetchError, match="lists other bytes"):
        fetch(cache)
    assert [path for path, _ in index.requests if path.startswith("/files/")] == []


def test_an_unreachable_index_is_named(cache: Cache, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:1/simple")
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:1/simple cannot be reached") as raised:
        fetch(cache)
    assert "secret" not in raised.value.what + raised.value.why


def test_a_find_links_folder_is_enough(
    cache: Cache, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / NAME).write_bytes(DATA)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    assert fetch(cache).path.read_bytes() == DATA
    assert index.requests == []
