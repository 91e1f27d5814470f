"""sccache's variables as the settings of the client libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from scripts.compile import backends
from scripts.compile.backends import Backend, BackendError, RefusedError, bucket_config, open_backend, redis_url
from scripts.compile.sharing import share
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.downloads.access import Access
from tests.accesses import asked_indexes, make_access
from tests.cache_servers import free_port

OPENED: list[Backend] = []


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def opened(variables: dict[str, str], access: Access) -> Backend:
    backend = open_backend(variables, access)
    assert backend
    OPENED.append(backend)
    return backend


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return make_access(Cache.open(tmp_path / "cache"), Console(), indexes=asked_indexes())


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("tcp://cache:6379", "redis://cache:6379"),
        ("cache:6379", "redis://cache:6379"),
        ("redis://tcp:6379/2", "redis://tcp:6379/2"),
        ("rediss://cache:6379", "rediss://cache:6379"),
        ("redis+unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_endpoints_of_redis(endpoint: str, url: str) -> None:
    assert redis_url(endpoint) == url


@pytest.mark.parametrize(
    ("variables", "config"),
    [
        ({}, {"region": "us-east-1"}),
        ({"SCCACHE_ENDPOINT": "minio:9000", "SCCACHE_REGION": "auto"}, {"region": "auto", "endpoint": "http://minio:9000"}),
        ({"SCCACHE_ENDPOINT": "minio:9000", "SCCACHE_S3_USE_SSL": "true"},
         {"region": "us-east-1", "endpoint": "https://minio:9000"}),
        ({"SCCACHE_ENDPOINT": "https://a.r2.example", "AWS_REGION": "eu-1"},
         {"region": "eu-1", "endpoint": "https://a.r2.example"}),
        ({"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"},
         {"region": "us-east-1", "access_key_id": "me", "secret_access_key": "s", "session_token": "t"}),
        ({"SCCACHE_S3_NO_CREDENTIALS": "1"}, {"region": "us-east-1", "skip_signature": "true"}),
        ({"SCCACHE_S3_ENABLE_VIRTUAL_HOST_STYLE": "true", "SCCACHE_S3_SERVER_SIDE_ENCRYPTION": "true"},
         {"region": "us-east-1", "virtual_hosted_style_request": "true", "server_side_encryption": "AES256"}),
    ],
)  # fmt: skip
def test_variables_of_a_bucket(variables: dict[str, str], config: dict[str, str]) -> None:
    assert bucket_config(variables) == config
    assert open_backend({**variables, "SCCACHE_BUCKET": "cache"}, make_access_nowhere())


def make_access_nowhere() -> Access:
    return Access(cache=None, console=None, mirrors=(), offline=False, environment={})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "variables",
    [
        {"SCCACHE_GHA_ENABLED": "true"},
        {"SCCACHE_MEMCACHED": "tcp://cache:11211"},
        {"SCCACHE_REDIS_CLUSTER_ENDPOINTS": "redis://a,redis://b"},
        {"SCCACHE_CONF": "/home/me/sccache.conf", "SCCACHE_BUCKET": "cache"},
    ],
)
def test_what_only_sccache_speaks_has_no_backend(variables: dict[str, str]) -> None:
    assert open_backend(variables, make_access_nowhere()) is None


def test_an_endpoint_that_is_none_is_an_error_without_its_password(access: Access) -> None:
    for variables in ({"SCCACHE_REDIS_ENDPOINT": "gopher://me:s3cret@x"}, {"SCCACHE_REDIS": "redis://me:s3cret@x:no"}):
        with pytest.raises(BackendError) as caught:
            open_backend(variables, access)
        assert "s3cret" not in str(caught.value)
    backend = opened({"SCCACHE_WEBDAV_ENDPOINT": "http://me:s3cret@[::1"}, access)
    with pytest.raises(BackendError) as caught:
        backend.get("x")
    assert "s3cret" not in str(caught.value)


def test_what_cannot_be_shared_says_why_or_leaves_it_to_sccache(access: Access, tmp_path: Path) -> None:
    assert share({"SCCACHE_GHA_ENABLED": "true"}, access, store=tmp_path, tree=tmp_path) == (None, "")
    for variables in ({"SCCACHE_REDIS_ENDPOINT": "gopher://x"}, {"SCCACHE_REDIS_ENDPOINT": f"127.0.0.1:{free_port()}"}):
        sharing, why = share(variables, access, store=tmp_path, tree=tmp_path)
        assert sharing is None
        assert why


class Dav(BaseHTTPRequestHandler):
    """Answers with what the test says, and keeps what was asked."""

    asked: list[tuple[str, str, str]]
    answers: dict[str, list[int]]
    body = b"entry"
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        left = self.answers[self.command]
        self.send_response(left.pop(0) if len(left) > 1 else left[0])
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 08:00:00 GMT")
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_MKCOL = _do  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def dav(**answers: list[int]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    asked: list[tuple[str, str, str]] = []
    handler = type("Handler", (Dav,), {"asked": asked, "answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dav/", asked
    finally:
        server.shutdown()
        server.server_close()


def test_missing_folders_are_made_where_the_server_wants_them(access: Access) -> None:
    with dav(PUT=[409, 201], MKCOL=[405, 201]) as (url, asked):
        variables = {"SCCACHE_WEBDAV_ENDPOINT": url, "SCCACHE_WEBDAV_KEY_PREFIX": "/k", "SCCACHE_WEBDAV_TOKEN": "t0k"}
        backend = opened(variables, access)
        backend.put("ab/cd", b"x")
    folder = "/dav/k/wheelsmith"
    assert [(what, path) for what, path, _ in asked] == [
        ("PUT", f"{folder}/ab/cd"),
        ("MKCOL", "/dav/k/"),
        ("MKCOL", f"{folder}/"),
        ("MKCOL", f"{folder}/ab/"),
        ("PUT", f"{folder}/ab/cd"),
    ]
    assert {token for *_, token in asked} == {"Bearer t0k"}


@pytest.mark.parametrize(
    ("answer", "refused"),
    [(413, True), (403, True), (502, False), (301, False)],
)
def test_an_entry_that_is_not_taken_is_refused_or_a_fault(answer: int, access: Access, *, refused: bool) -> None:
    with dav(PUT=[answer], MKCOL=[405]) as (url, _):
        backend = opened({"SCCACHE_WEBDAV_ENDPOINT": url}, access)
        with pytest.raises(BackendError, match=f"HTTP {answer}") as caught:
            backend.put("ab/cd", b"x")
    assert isinstance(caught.value, RefusedError) is refused


def test_what_a_get_may_answer(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    with dav(GET=[200, 404, 410, 401, 500, 200]) as (url, _):
        backend = opened({"SCCACHE_WEBDAV_ENDPOINT": url}, access)
        assert [backend.get("ab/cd") for _ in range(3)] == [b"entry", None, None]
        for status in (401, 500):
            with pytest.raises(BackendError, match=f"HTTP {status}"):
                backend.get("ab/cd")
        monkeypatch.setattr(backends, "LARGEST", 4)
        with pytest.raises(BackendError, match="more than 4 bytes"):
            backend.get("ab/cd")


def test_what_a_bucket_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with dav(GET=[200, 404, 403, 200], PUT=[200, 403, 400]) as (url, asked):
        keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "s3cret", "SCCACHE_S3_KEY_PREFIX": "/team/"}
        backend = opened({"SCCACHE_BUCKET": "cache", "SCCACHE_ENDPOINT": url, **keys}, make_access_nowhere())
        assert backend.get("ab/cd") == b"entry"
        assert backend.get("ab/cd") is None
        with pytest.raises(BackendError) as caught:
            backend.get("ab/cd")
        assert "s3cret" not in str(caught.value)
        backend.put("ab/cd", b"x")
        with pytest.raises(RefusedError):
            backend.put("ab/cd", b"x")
        with pytest.raises(BackendError):
            backend.put("ab/cd", b"x")
        monkeypatch.setattr(backends, "LARGEST", 4)
        with pytest.raises(BackendError, match="5 bytes"):
            backend.get("ab/cd")
    assert asked[0][:2] == ("GET", "/dav/cache/team/wheelsmith/ab/cd")
