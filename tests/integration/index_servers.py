"""Servers of package indexes on loopback for tests: a plain one that counts bytes, and nginx."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts.core.paths import ROOT

JSON = "application/vnd.pypi.simple.v1+json"


@dataclass
class Served:
    """A running server and what it sent."""

    url: str
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes of bodies by path."""

    def bytes_of(self, suffix: str) -> int:
        """Return how many bytes of files that end so were sent."""
        return sum(count for path, count in self.sent.items() if path.endswith(suffix))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serve(root: Path) -> Iterator[Served]:
    """Serve a folder; index.json instead of index.html to those who accept it, where there is one."""
    served = Served("")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(root))

        def send_head(self) -> Any:
            as_json = f"{self.path.partition('?')[0]}index.json"
            if JSON in self.headers.get("Accept", "") and Path(self.translate_path(as_json)).is_file():
                self.path = as_json
            return super().send_head()

        def guess_type(self, path: Any) -> str:
            return JSON if str(path).endswith("index.json") else super().guess_type(path)

        def copyfile(self, source: Any, outputfile: Any) -> None:
            data = source.read()
            served.sent[self.path] = served.sent.get(self.path, 0) + len(data)
            outputfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def nginx(root: Path, work: Path, *, upstream: str = "", port: int = 0) -> Iterator[Served]:
    """Run nginx over a folder with the configuration that the docs give, user `team` and password `secret`."""
    port, log = port or free_port(), work / "access.log"
    text = (ROOT / "docs" / "nginx.conf").read_text()
    words = {"listen 443 ssl;": f"listen 127.0.0.1:{port};", "/srv/wheels": str(root), "/etc/nginx/wheels": str(work)}
    for old, new in words.items():
        assert old in text
        text = text.replace(old, new)
    if upstream:
        text = upstream
    main = f"daemon off; pid {work}/pid; error_log {work}/error.log; user root; events {{}}\nhttp {{\n"
    main += "log_format count '$status $body_bytes_sent $request_uri';\n" + f"access_log {log} count;\n{text}\n}}\n"
    (work / "nginx.conf").write_text(main)
    password = subprocess.run(
        ["openssl", "passwd", "-apr1", "secret"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (work / "htpasswd").write_text(f"team:{password}\n")
    with started(["nginx", "-p", str(work), "-c", str(work / "nginx.conf")], port, work):
        served = Served(f"http://127.0.0.1:{port}")
        yield served


def needs(program: str, package: str = "") -> pytest.MarkDecorator:
    """Return a mark that leaves a test out where a server is not installed."""
    reason = f"{program} is not installed: apt-get install {package or program}"
    return pytest.mark.skipif(not shutil.which(program), reason=reason)


_SQUID = """http_port 127.0.0.1:{port} accel defaultsite=127.0.0.1 no-vhost
cache_peer 127.0.0.1 parent {upstream} 0 no-query no-digest originserver login=PASSTHRU
http_access allow all
never_direct allow all
cache_mem 64 MB
maximum_object_size_in_memory 8 MB
access_log none
cache_log /dev/stderr
pid_filename none
shutdown_lifetime 0 seconds
pinger_enable off
"""


@contextmanager
def squid(work: Path, upstream: int) -> Iterator[Served]:
    """Run squid as a cache that readers share, before the server on a port of loopback."""
    port = free_port()
    (work / "squid.conf").write_text(_SQUID.format(port=port, upstream=upstream))
    with started(["squid", "-N", "-f", str(work / "squid.conf")], port, work):
        yield Served(f"http://127.0.0.1:{port}")


@contextmanager
def nginx_cache(work: Path, upstream: int) -> Iterator[Served]:
    """Run nginx as a cache that readers share, before the server on a port of loopback."""
    port = free_port()
    text = (
        f"proxy_cache_path {work}/cache keys_zone=shared:1m;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{upstream};"
        " proxy_cache shared; proxy_cache_valid 200 10m; } }"
    )
    with nginx(work, work, upstream=text, port=port) as served:
        yield served


def nginx_bytes(work: Path, suffix: str) -> int:
    """Return the bytes that nginx sent of files that end so."""
    time.sleep(0.1)  # nginx writes its log when the request is over
    rows = [line.split() for line in (work / "access.log").read_text().splitlines()]
    return sum(int(row[1]) for row in rows if row[2].endswith(suffix))


@contextmanager
def started(command: list[str], port: int, work: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """Run a server until its port answers and the block has ended; yield its process id."""
    with (work / "server.log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
    try:
        _wait_for(port, child, work / "server.log")
        yield child.pid
    finally:
        child.terminate()
        child.wait()


def _wait_for(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600  # devpi takes minutes where 30 processes share two cores
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"no answer on port {port}: {log.read_text()}")


def netrc(folder: Path, user: str = "team", password: str = "secret") -> Path:
    """Write a netrc for loopback."""
    path = folder / "netrc"
    path.write_text(f"machine 127.0.0.1\nlogin {user}\npassword {password}\n")
    path.chmod(0o600)
    return path


def basic(user: str = "team", password: str = "secret") -> dict[str, str]:
    """Return the header of basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def clean_environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which pip and uv have no settings and no cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    own = {
        "HOME": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "UV_CACHE_DIR": str(folder / "uv"),
    }
    return {**kept, **own, "UV_NO_CONFIG": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more}


def venv(folder: Path) -> Path:
    """Make an empty environment; return its Python."""
    subprocess.run([tool("uv"), "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    return folder / "bin" / "python"


def tool(name: str) -> str:
    """Return a tool that lies beside this Python."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else str(shutil.which(name))
