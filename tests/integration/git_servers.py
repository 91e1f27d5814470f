"""Real git servers on loopback for tests: repositories shaped like upstream's, served by `git http-backend`."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Run git in a folder and return its stdout without the final newline."""
    environment = {**os.environ, **_ENVIRONMENT}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, input=stdin, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@dataclass
class Upstream:
    """A bare repository on a server that tests commit to."""

    path: Path
    files: dict[str, bytes] = field(default_factory=dict)
    gitlinks: dict[str, str] = field(default_factory=dict)
    head: str = ""

    @classmethod
    def create(cls, root: Path, name: str) -> Upstream:
        path = root / f"{name}.git"
        git(root, "init", "-q", "--bare", "-b", "main", str(path))
        git(path, "config", "uploadpack.allowFilter", "true")
        git(path, "config", "uploadpack.allowAnySHA1InWant", "true")
        git(path, "config", "http.receivepack", "false")
        return cls(path)

    def commit(self, changes: Mapping[str, bytes | str] | None = None, *, orphan: bool = False) -> str:
        """Add a commit to main with `changes` (a 40-digit str is a submodule's commit); return its id."""
        for name, content in (changes or {}).items():
            if isinstance(content, str):
                self.gitlinks[name] = content
            else:
                self.files[name] = content
        stream = [b"commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\ndata 1\nc\n"]
        if self.head and not orphan:
            stream.append(f"from {self.head}\n".encode())
        stream.append(b"deleteall\n")
        for name, data in self.files.items():
            mode = b"120000" if name.endswith(".link") else b"100755" if name.endswith(".sh") else b"100644"
            stream.append(b"M %s inline %s\ndata %d\n%s\n" % (mode, name.encode(), len(data), data))
        stream += [f"M 160000 {sha} {name}\n".encode() for name, sha in self.gitlinks.items()]
        git(self.path, "fast-import", "--quiet", "--force", stdin=b"".join(stream))
        self.head = git(self.path, "rev-parse", "refs/heads/main")
        return self.head

    def replay(self, rounds: Iterable[Mapping[str, bytes]]) -> list[str]:
        """Add one commit per round of changed files, all in one run of git; return the commits' ids."""
        before = self.head
        stream = []
        for number, changes in enumerate(rounds):
            stream.append(b"commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\ndata 1\nc\n")
            stream.append(f"from {before}\n".encode() if number == 0 else b"")
            for name, data in changes.items():
                stream.append(b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(data), data))
        git(self.path, "fast-import", "--quiet", "--force", stdin=b"".join(stream))
        self.head = git(self.path, "rev-parse", "refs/heads/main")
        return git(self.path, "rev-list", "--reverse", f"{before}..main").split()

    def tag(self, name: str, commit: str, *, annotated: bool = True) -> None:
        git(self.path, "tag", "-f", *(["-a", "-m", "release"] if annotated else []), name, commit)


@dataclass
class GitServer:
    """A smart HTTP server; its fields are switches for what goes wrong, and counters."""

    root: Path
    port: int = 0
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    protocol_v2: bool = True
    fail_status: int = 0
    fail_requests: int = 0
    cut_after: int = 0
    cut_requests: int = 0
    credentials: str = ""

    def url(self, name: str, userinfo: str = "") -> str:
        return f"http://{userinfo + '@' if userinfo else ''}127.0.0.1:{self.port}/{name}.git"


@contextmanager
def serving(root: Path) -> Iterator[GitServer]:
    """Serve the bare repositories below `root` over smart HTTP on a free loopback port."""
    state = GitServer(root)

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: GitServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.requests.append(f"{self.command} {self.path}")
        if state.fail_requests:
            state.fail_requests -= 1
            return self.send_error(state.fail_status)
        wanted = "Basic " + base64.b64encode(state.credentials.encode()).decode()
        if state.credentials and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._send(self._backend(body))

    def _backend(self, body: bytes) -> bytes:
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.server_state.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        if self.server_state.protocol_v2:
            environment["GIT_PROTOCOL"] = self.headers.get("Git-Protocol", "")
        backend = [shutil.which("git") or "git", "http-backend"]
        return subprocess.run(backend, input=body, env=environment, capture_output=True, check=False).stdout

    def _send(self, answer: bytes) -> None:
        head, _, content = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        state = self.server_state
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if state.cut_requests and self.command == "POST" and b"PACK" in content:
            state.cut_requests -= 1
            content = content[: state.cut_after]
            self.close_connection = True
        state.sent += len(content)
        self.wfile.write(content)
