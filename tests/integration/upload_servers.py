"""Upload APIs on loopback for tests: a small one that can be told to fail, devpi and pypiserver."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import platformdirs

from tests.integration.index_servers import basic, free_port, started, tool

CACHE = Path(  # read here, as tests change HOME
    os.environ.get("WHEELSMITH_TEST_CACHE", platformdirs.user_cache_dir("wheelsmith-tests", appauthor=False))
)
S3_KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "us-east-1"}
SERVERS = ("devpi-server==6.20.3", "pypiserver==2.4.2", "passlib", "moto[server]==5.2.5")


@dataclass
class Index:
    """A small index with an upload API at `url`; `answers` are given to uploads first, one each."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    """HTTP status; 0: cut the connection."""
    posts: int = 0
    truncate: int = 0
    """Keep so many bytes less of each upload than came."""
    hashes: bool = True
    banner: str = "an index"
    blind: bool = False
    """Answer 404 for whatever is asked."""


@contextmanager
def small_index() -> Iterator[Index]:  # noqa: C901
    """Run an index that wants user `team`, password `secret`."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                return self._answer(200, index.banner.encode(), "text/html")
            if index.blind:
                return self._answer(404, b"no such page", "text/html")
            if self.path.startswith("/files/"):
                return self._answer(200, index.files[unquote(self.path.removeprefix("/files/"))])
            if self.headers.get("Authorization") != basic()["Authorization"]:
                return self._answer(401, b"who are you")
            rows = [
                {
                    "filename": name,
                    "url": f"/files/{name}",
                    "hashes": {"sha256": hashlib.sha256(data).hexdigest()} if index.hashes else {},
                }
                for name, data in index.files.items()
            ]
            page = {"meta": {"api-version": "1.0"}, "name": "vllm", "files": rows}
            return self._answer(200, json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")

        def do_POST(self) -> None:
            index.posts += 1
            answer = index.answers.pop(0) if index.answers else 200
            size = int(self.headers["Content-Length"])
            if not answer:
                self.rfile.read(min(size // 2, 100_000))
                self.connection.close()
                return None
            body = self.rfile.read(size)
            if self.headers.get("Authorization") != basic()["Authorization"]:
                answer = 401
            if answer == 200:
                self._keep(body)
            return self._answer(answer, b"no" if answer != 200 else b"")

        def _keep(self, body: bytes) -> None:
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            for part in BytesParser().parsebytes(head + body).get_payload():
                if name := part.get_filename():  # type: ignore[union-attr]
                    data = part.get_payload(decode=True)  # type: ignore[union-attr]
                    assert isinstance(data, bytes)
                    index.files[name] = data[: len(data) - index.truncate]

        def _answer(self, code: int, data: bytes, kind: str = "text/plain") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if code == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()


def server_tools() -> Path:
    """Return the bin folder of an environment with real servers, made once in WHEELSMITH_TEST_CACHE."""
    folder = CACHE / f"servers-{sys.version_info.minor}"
    if not (folder / "bin" / "moto_server").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([tool("uv"), "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        python = folder / "bin" / "python"
        subprocess.run([tool("uv"), "pip", "install", "-q", "--python", python, *SERVERS], check=True)
    return folder / "bin"


def _devpi_call(method: str, url: str, data: dict[str, object], token: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "X-Devpi-Auth": token}
    request = urllib.request.Request(url, json.dumps(data).encode(), headers, method=method)
    with urllib.request.urlopen(request) as answer:
        return dict(json.load(answer))


@contextmanager
def devpi(work: Path, *options: str) -> Iterator[str]:
    """Run devpi with index `team/prod` of user `team`, password `secret`; yield the upload URL."""
    tools, port = server_tools(), free_port()
    environment = {"TMPDIR": str(work)}
    state = ["--serverdir", str(work / "devpi")]
    subprocess.run([tools / "devpi-init", *state, "--no-root-pypi"], check=True, capture_output=True)
    command = [str(tools / "devpi-server"), *state, "--host", "127.0.0.1", "--port", str(port), *options]
    with started(command, port, work, environment):
        url = f"http://127.0.0.1:{port}"
        _devpi_call("PUT", f"{url}/team", {"password": "secret", "email": "a@b.c"})
        login = _devpi_call("POST", f"{url}/+login", {"user": "team", "password": "secret"})
        token = base64.b64encode(f"team:{login['result']['password']}".encode()).decode()
        _devpi_call("PUT", f"{url}/team/prod", {"bases": [], "volatile": False}, token)
        yield f"{url}/team/prod/"


@contextmanager
def s3(work: Path, bucket: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Run moto's S3 with a bucket; yield its URL and the environment variables that lead there."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started([str(server_tools() / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, work):
        with urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT")):
            pass
        yield url, {**S3_KEYS, "AWS_ENDPOINT_URL": url}


@contextmanager
def pypiserver(work: Path, *options: str) -> Iterator[str]:
    """Run a bare pypiserver, open to all; yield its URL."""
    port, folder = free_port(), work / "packages"
    folder.mkdir()
    command = [str(server_tools() / "pypi-server"), "run", "-p", str(port), "-i", "127.0.0.1"]
    with started(
        [*command, "--disable-fallback", "--server", "wsgiref", "-P", ".", "-a", ".", *options, str(folder)], port, work
    ):
        yield f"http://127.0.0.1:{port}/"
