"""The shared level of the compiler cache: an sccache daemon of this build's own, started, tried out, watched, ended.

With a scheduler (`--dist`) the same daemon hands compile steps to other machines (sccache-dist).

A daemon whose backend is down fails every compiler call at its start; one whose backend dies later stalls each of them
for 30 s per operation (measured: docs/caching.md). So it is only used after it has reached its backend, and given up,
with the calls that wait for it, when one of them has done nothing for 20 s.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from scripts.core import interrupt
from scripts.core.cache import Cache
from scripts.core.errors import UsageError
from scripts.core.files import remove_tree
from scripts.core.process import Daemon, capture
from scripts.downloads.indexes import redacted

DIST_TOKEN = "SCCACHE_DIST_TOKEN"  # noqa: S105  (the name of the variable with the token of --dist's scheduler)
START_LIMIT = 20.0  # seconds for the daemon to reach its backend; sccache's client would give it 10
STALL_LIMIT = 20.0  # seconds that a call may do nothing
LOST_LIMIT = 60.0  # seconds per job that calls may wait in all, beyond the first 3 s each
DRAIN_LIMIT = 10.0  # seconds without an object stored, at the end
GRACE = 3.0  # seconds of a call's waiting that are not counted: hashing, a normal read
INTERVAL = 1.0  # seconds between looks at the processes

_BACKENDS = (
    (r"SCCACHE_WEBDAV_\w+", "WebDAV"),
    (r"SCCACHE_BUCKET", "S3"),
    (r"SCCACHE_GHA_(ENABLED|CACHE_URL|RUNTIME_TOKEN)", "GitHub Actions"),
    (r"SCCACHE_REDIS\w*", "Redis"),
    (r"SCCACHE_MEMCACHED\w*", "memcached"),
    (r"SCCACHE_GCS_BUCKET", "Google Cloud Storage"),
    (r"SCCACHE_AZURE_\w+", "Azure"),
    (r"SCCACHE_(OSS|COS)_BUCKET", "object store"),
    (r"SCCACHE_CONF", "SCCACHE_CONF"),
)
# Ours to decide: where the daemon listens, what it logs (its trace log prints the environment, passwords included).
_OURS = re.compile(
    r"SCCACHE_(SERVER_\w+|DIST_\w+|NO_DAEMON|START_SERVER|LOG|ERROR_LOG|IDLE_TIMEOUT|STARTUP_NOTIFY|DIR|CLIENT\w*)"
)
_PASSED = re.compile(r"(SCCACHE|ACTIONS|AWS|GOOGLE|AZURE|OSS|COS|TENCENTCLOUD|ALIBABA_CLOUD)_\w+")
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL|USERNAME|CONNECTION_STRING", re.IGNORECASE)


@dataclass(frozen=True)
class Shared:
    """A backend as the user's SCCACHE_* variables describe it."""

    name: str
    variables: Mapping[str, str] = field(repr=False)
    """For the daemon only: there are passwords among them."""
    scheduler: str = ""
    """URL of an sccache-dist scheduler, "" to compile here."""
    token: str = field(default="", repr=False)
    """What the scheduler's `client_auth` asks for."""

    @classmethod
    def read(cls, environment: Mapping[str, str], scheduler: str = "") -> Shared | None:
        """Return the backend that the environment names, the scheduler or both; None when there is neither.

        Raises UsageError for a scheduler that cannot be one.
        """
        backend = cls._backend(environment)
        if not scheduler:
            return backend
        _check_scheduler(scheduler, backend)
        name = f"{backend.name}, " if backend else ""
        variables = backend.variables if backend else {}
        return cls(f"{name}distributed by {scheduler}", variables, scheduler, environment.get(DIST_TOKEN, ""))

    @classmethod
    def _backend(cls, environment: Mapping[str, str]) -> Shared | None:
        for pattern, name in _BACKENDS:
            if any(value and re.fullmatch(pattern, key) for key, value in environment.items()):
                kept = {k: v for k, v in environment.items() if _PASSED.fullmatch(k) and not _OURS.fullmatch(k)}
                return cls(name, kept)
        return None

    def hide(self, text: str) -> str:
        """Return text of the daemon without the secrets among the variables, and without user:password in URLs."""
        for key, value in self.variables.items():
            if _SECRET.search(key) and len(value) > 2:
                text = text.replace(value, "***")
        if self.token:
            text = text.replace(self.token, "***")
        return re.sub(r"(\w+://)[^/\s@\"]+@", r"\1***@", text)


@dataclass
class _Call:
    """A compiler call that goes through the daemon."""

    process: psutil.Process
    stem: str
    """Of its source file: the compiler's steps have it in their file names."""
    active: float
    """When one of its steps was last seen running."""


class SharedCache:
    """A running daemon that has reached its backend."""

    def __init__(self, shared: Shared, program: Path, folder: Path, daemon: Daemon) -> None:
        self.shared, self.program, self.folder, self._daemon = shared, program, folder, daemon
        self._calls: dict[int, _Call] = {}
        self._looked = time.monotonic()
        self._lost = 0.0
        self._jobs = 1

    @property
    def client(self) -> dict[str, str]:
        """Variables with which ccache puts sccache before the compiler; no secrets.

        SCCACHE_DIR is for a client that finds no daemon: it starts its own, and that one must not be a user's.
        """
        return {"CCACHE_PREFIX": str(self.program), **_places(self.folder), "SCCACHE_IDLE_TIMEOUT": "60"}

    def trouble(self) -> str:
        """Return why the daemon can be used no longer, "" while all is well."""
        if not self._daemon.runs:
            return f"sccache has ended: {_last_words(self.folder, self.shared)}"
        if self.shared.scheduler:
            return ""  # a call whose steps run elsewhere looks like one that waits; sccache itself gives up after 30 s
        now = time.monotonic()
        if now - self._looked < INTERVAL:
            return ""
        step, self._looked = now - self._looked, now
        if step > 5 * INTERVAL:  # we were suspended, or the machine was: nobody has waited for the cache
            self._calls.clear()
        self._look(now)
        waiting = [now - call.active for call in self._calls.values()]
        self._jobs = max(self._jobs, len(waiting))
        self._lost += sum(step for seconds in waiting if seconds > GRACE)
        if max(waiting, default=0.0) > STALL_LIMIT:
            return f"a compiler call has waited {STALL_LIMIT:.0f} s for it"
        if self._lost / self._jobs > LOST_LIMIT:
            return f"compiler calls have waited {LOST_LIMIT:.0f} s for it altogether"
        return ""

    def _look(self, now: float) -> None:
        """Find the calls that go through the daemon, and which of them have a step running."""
        texts = list(_command_lines(self._daemon.pid))
        seen = set()
        for process in _clients(self.program, besides=self._daemon.pid):
            seen.add(process.pid)
            if process.pid not in self._calls:
                self._calls[process.pid] = _Call(process, _stem(process), now)
            call = self._calls[process.pid]
            if any(call.stem in text for text in texts):
                call.active = now
        self._calls = {pid: call for pid, call in self._calls.items() if pid in seen}

    def drain(self) -> None:
        """Wait until everything compiled is stored: sccache answers a call first and stores its object afterwards."""
        deadline, before = time.monotonic() + DRAIN_LIMIT, -1
        while time.monotonic() < deadline and self._daemon.runs and not interrupt.told():
            counts = read_counts(self._stats())
            stored = counts["stored"] + counts["errors"]
            if stored >= counts["misses"]:
                return
            if stored > before:
                deadline, before = time.monotonic() + DRAIN_LIMIT, stored
            interrupt.pause(0.1)

    def counts(self) -> dict[str, int]:
        """Return sccache's hits, misses, stores and errors (of steps: nvcc has several); zeros when it says nothing."""
        return read_counts(self._stats())

    def _stats(self) -> str:
        code, text = capture(
            [self.program, "--show-stats", "--stats-format=json"],
            environment={**_places(self.folder), "HOME": str(self.folder)},
            timeout=5,
        )
        return text if code == 0 else ""

    def stop(self) -> None:
        """End the daemon and the calls that wait for it; their launchers then compile plainly."""
        for call in self._calls.values():
            with suppress(psutil.NoSuchProcess):
                call.process.kill()
        self._daemon.stop()
        if _answers(self.folder / "socket"):  # a client has started one of its own meanwhile
            with interrupt.tidying():
                capture(
                    [self.program, "--stop-server"],
                    environment={**_places(self.folder), "HOME": str(self.folder)},
                    timeout=1 if interrupt.told() else 5,
                )
        remove_tree(self.folder)


def start_shared(
    shared: Shared, program: Path, *, enter: Sequence[str | Path], environment: Mapping[str, str], cache: Cache
) -> tuple[SharedCache | None, str]:
    """Start a daemon of our own and wait until it has reached its backend. Returns (daemon, "") or (None, why not).

    It listens on a socket in a private folder and has its own configuration: a user's daemon is not touched.
    """
    folder = Path(tempfile.mkdtemp(prefix="wheelsmith-sccache-"))
    (folder / "sccache.conf").write_text(_configuration(shared, cache.place("compiler-cache", "dist-toolchains")))
    values = {**environment, **_places(folder), "SCCACHE_DIR": str(cache.place("compiler-cache", "shared"))}
    values.update(shared.variables)
    values.update(SCCACHE_NO_DAEMON="1", SCCACHE_START_SERVER="1", SCCACHE_IDLE_TIMEOUT="0")
    daemon = Daemon([*enter, program], environment=values, folder=folder, log="said")
    try:
        why = _wait(daemon, shared, program, folder)
    except BaseException:
        daemon.stop()
        remove_tree(folder)
        raise
    if not why:
        return SharedCache(shared, program, folder, daemon), ""
    daemon.stop()
    remove_tree(folder)
    return None, why


def _wait(daemon: Daemon, shared: Shared, program: Path, folder: Path) -> str:
    """Wait until the daemon answers, and knows a builder where it needs one; return what is wrong, "" for nothing."""
    deadline = time.monotonic() + START_LIMIT
    why = f"no answer within {START_LIMIT:.0f} s"
    while daemon.runs and time.monotonic() < deadline:
        if _answers(folder / "socket"):
            why = _scheduler_trouble(program, folder) if shared.scheduler else ""
            if not why or "NotConnected" not in why:  # it connects in the background
                return why
        interrupt.pause(0.05)
    return why if daemon.runs else _last_words(folder, shared)


def _places(folder: Path) -> dict[str, str]:
    return {
        "SCCACHE_SERVER_UDS": str(folder / "socket"),
        "SCCACHE_CONF": str(folder / "sccache.conf"),
        "SCCACHE_DIR": str(folder / "disk"),
    }


def _check_scheduler(url: str, backend: Shared | None) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise UsageError(
            f"--dist {redacted(url)} is not the URL of a scheduler",
            fix=f"--dist http://host:10600, and its token in {DIST_TOKEN}",
        )
    if backend and "SCCACHE_CONF" in backend.variables:
        raise UsageError(
            "--dist and SCCACHE_CONF cannot be combined",
            why="sccache reads one configuration file",
            fix="name the backend with sccache's other variables: SCCACHE_WEBDAV_ENDPOINT, SCCACHE_BUCKET",
        )


def _configuration(shared: Shared, toolchains: Path) -> str:
    """Return the daemon's configuration (TOML); the folder it is written to is ours alone (0700)."""
    if not shared.scheduler:
        return ""
    lines = ["[dist]", f"scheduler_url = {json.dumps(shared.scheduler)}", f"cache_dir = {json.dumps(str(toolchains))}"]
    lines += ["[dist.auth]", 'type = "token"', f"token = {json.dumps(shared.token)}"]
    return "\n".join([*lines, ""])


def _scheduler_trouble(program: Path, folder: Path) -> str:
    """Return why the scheduler cannot be used, "" when it has a builder."""
    environment = {**_places(folder), "HOME": str(folder)}
    code, text = capture([program, "--dist-status"], environment=environment, timeout=10)
    with suppress(ValueError, KeyError, TypeError, IndexError):
        status = json.loads(text)
        if "SchedulerStatus" in status:
            builders = status["SchedulerStatus"][1]["num_servers"]
            return "" if builders else "the scheduler has no builder"
    return " ".join(text.split())[:200] or f"sccache --dist-status ended with {code}"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _last_words(folder: Path, shared: Shared) -> str:
    """Return the last lines that the daemon wrote, on one line and without secrets."""
    try:
        text = (folder / "said").read_bytes().decode("utf-8", "replace")
    except OSError:
        text = ""
    lines = [re.sub(r"^sccache: (error: )?", "", line).strip() for line in text.splitlines()]
    return shared.hide("; ".join(line for line in lines if line)[-400:]) or "without a word"


def _command_lines(pid: int) -> list[str]:
    """Return the command lines of all that the daemon below the guard `pid` has started: the steps that run now."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.ppid() != pid and process.status() != psutil.STATUS_STOPPED:
                    found.append(" ".join(process.cmdline()))
    return found


def _clients(program: Path, *, besides: int) -> list[psutil.Process]:
    """Return our descendants that run sccache as clients: not the daemon, the child of the guard `besides`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.ppid() != besides and process.cmdline()[:1] == [str(program)]:
                found.append(process)
    return found


def _stem(process: psutil.Process) -> str:
    """Return the stem of the source file that a client compiles, or a word that no command line has."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        sources = [word for word in process.cmdline()[1:] if word.endswith((".cu", ".cpp", ".cc", ".cxx", ".c"))]
        if sources:
            return Path(sources[-1]).stem
    return "\0"


def read_counts(text: str) -> dict[str, int]:
    """Read `sccache --show-stats --stats-format=json`: hits, misses, stores and errors over all languages."""
    counts = {"hits": 0, "misses": 0, "stored": 0, "errors": 0, "distributed": 0, "not_distributed": 0}
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        stats = json.loads(text)["stats"]
        counts["hits"] = sum(stats["cache_hits"]["counts"].values())
        counts["misses"] = sum(stats["cache_misses"]["counts"].values())
        counts["stored"] = stats["cache_writes"]
        counts["errors"] = sum(stats["cache_errors"]["counts"].values()) + stats["cache_write_errors"]
        counts["distributed"] = sum(stats.get("dist_compiles", {}).values())
        counts["not_distributed"] = stats.get("dist_errors", 0)
    return counts
