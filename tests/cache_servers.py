"""Real servers for the shared compiler cache: nginx with WebDAV and Redis, each with a password, on a port of ours."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "s3cr3t-of-the-tests"
_DAV_EXT = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")
NGINX = """
load_module {module};
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;{user}
events {{}}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; client_max_body_size 0;
  proxy_temp_path {folder}/t1; fastcgi_temp_path {folder}/t2; uwsgi_temp_path {folder}/t3; scgi_temp_path {folder}/t4;
  server {{
    listen 127.0.0.1:{port};
    auth_basic "cache"; auth_basic_user_file {folder}/users;
    location / {{
      root {folder}/files; dav_methods PUT DELETE MKCOL; dav_ext_methods PROPFIND OPTIONS;
      create_full_put_path on; dav_access user:rw;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    """A running server: its process, and the variables that tell sccache of it."""

    process: subprocess.Popen[bytes]
    variables: dict[str, str]
    folder: Path


def missing(kind: str) -> str:
    """Return what this machine lacks to run a server, "" when nothing."""
    program = {"webdav": "nginx", "redis": "redis-server"}[kind]
    if not shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin"):
        return f"{program} is not installed"
    return "" if kind == "redis" or _DAV_EXT.exists() else "libnginx-mod-http-dav-ext is not installed"


def needs(kind: str) -> pytest.MarkDecorator:
    """Skip where a server is not installed."""
    return pytest.mark.skipif(bool(missing(kind)), reason=missing(kind))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def serve(kind: str, folder: Path) -> Iterator[Server]:
    """Run a server of a kind (`webdav`, `redis`) in a folder."""
    folder.mkdir()
    server = {"webdav": _webdav, "redis": _redis}[kind](folder, free_port())
    try:
        yield server
    finally:
        server.process.kill()
        subprocess.run(["pkill", "-9", "-P", str(server.process.pid)], check=False)
        server.process.wait()


def _webdav(folder: Path, port: int) -> Server:
    for name in ("files", "body"):
        (folder / name).mkdir(mode=0o777)
    (folder / "users").write_text(f"me:{{PLAIN}}{PASSWORD}\n")
    user = " user root;" if Path("/proc/self").stat().st_uid == 0 else ""
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(module=_DAV_EXT, folder=folder, port=port, user=user))
    process = subprocess.Popen(["/usr/sbin/nginx", "-p", str(folder), "-c", str(conf)], stderr=subprocess.DEVNULL)
    _wait(port, process)
    url = f"http://127.0.0.1:{port}/"
    names = {"ENDPOINT": url, "USERNAME": "me", "PASSWORD": PASSWORD, "KEY_PREFIX": "k"}
    return Server(process, {f"SCCACHE_WEBDAV_{name}": value for name, value in names.items()}, folder)


def _redis(folder: Path, port: int) -> Server:
    conf = folder / "redis.conf"
    conf.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {PASSWORD}\nsave ""\ndir {folder}\n')
    process = subprocess.Popen(["redis-server", str(conf)], stdout=subprocess.DEVNULL)
    _wait(port, process)
    names = {"ENDPOINT": f"tcp://127.0.0.1:{port}", "PASSWORD": PASSWORD}
    return Server(process, {f"SCCACHE_REDIS_{name}": value for name, value in names.items()}, folder)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("the server does not start")
