"""Looking up an sdist's digest on an index of our own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.core.cache import Cache
from scripts.core.errors import FetchError
from scripts.downloads.access import Access
from scripts.downloads.indexes import Indexes
from scripts.downloads.listing import find_sdist
from tests.accesses import make_access


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path, cache: Cache) -> Iterator[Access]:
    page = tmp_path / "simple/vllm/index.html"
    page.parent.mkdir(parents=True)
    wheel = "vllm-0.16.0-cp38-abi3-manylinux_2_31_x86_64.whl"
    links = [f"{wheel}#sha256={'1' * 64}", f"vllm-0.16.0.tar.gz#sha256={'2' * 64}", "vllm-0.17.0.tar.gz", wheel]
    page.write_text("<html><body>" + "".join(f'<a href="/f/{link}">{link}</a>\n' for link in links))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/simple/"
    yield make_access(cache, indexes=Indexes(index_url=url, trusted_hosts=("127.0.0.1",)))
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_digest_of_an_sdist_is_what_the_index_lists(index: Access) -> None:
    assert find_sdist("vllm", "0.16.0", index) == "2" * 64


def test_a_version_without_an_sdist_has_none(index: Access) -> None:
    assert find_sdist("vllm", "0.15.1", index) is None


def test_an_index_without_digests_is_refused(index: Access) -> None:
    with pytest.raises(FetchError, match="lists no sha256"):
        find_sdist("vllm", "0.17.0", index)
