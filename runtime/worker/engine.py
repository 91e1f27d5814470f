"""The engine as a supervised child: started, waited for, watched, stopped. The worker never outlives it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is not for a proxy
_PROGRESS = re.compile(rb"(?:Loading|Fetching|Capturing|Compil|Downloading|Graph captur).*", re.IGNORECASE)
_KV_BLOCKS = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class EngineError(RuntimeError):
    """The engine ended, or did not get ready in time; the text says which, with the end of its log."""


class Engine:
    """`vllm serve` on loopback, in a process group of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, port: int) -> None:
        self.command = list(command)
        self.url = f"http://127.0.0.1:{port}"
        self.stopping = False
        self._environment = dict(environment)
        self._child: subprocess.Popen[bytes] | None = None
        self._tail: deque[bytes] = deque(maxlen=40)
        self._doing = ""
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the child and pass its output on. Raises EngineError when it cannot be started."""
        parent = os.getpid()
        libc = ctypes.CDLL(None)

        def end_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # the parent ended before the call
                os._exit(1)

        try:
            self._child = subprocess.Popen(
                self.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - no threads run yet
            )
        except OSError as error:
            raise EngineError(f"{self.command[0]} could not be started: {error.strerror}") from error
        self._reader = threading.Thread(target=self._pass_on, name="engine-log", daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        child = self._child
        if child is None or child.stdout is None:
            return
        with child.stdout as output:
            for line in output:
                self._tail.append(line)
                if progress := _PROGRESS.search(line):
                    self._doing = progress.group().rsplit(b"\r", 1)[-1].decode("utf-8", "replace").strip()[:120]
                with suppress(OSError, ValueError, AttributeError):  # a closed or replaced stdout
                    sys.stdout.buffer.write(line)
                    sys.stdout.buffer.flush()

    @property
    def code(self) -> int | None:
        """The child's exit code; None while it runs or before it was started."""
        return self._child.poll() if self._child else None

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._child is not None and self._child.poll() is None

    def wait_ready(self, timeout: float, *, tell: Callable[[str], None], every: float = 10.0) -> None:
        """Wait until GET /health answers 200, telling what the engine does. Raises EngineError."""
        started = told = time.monotonic()
        while not (self._healthy() and self.alive):
            now = time.monotonic()
            if not self.alive:
                raise EngineError(f"the engine ended with {self.code} while it loaded\n{self.log_tail()}")
            if now - started > timeout:
                raise EngineError(f"the engine was not ready after {timeout:.0f} s\n{self.log_tail()}")
            if now - told >= every:
                told = now
                tell(f"loading for {now - started:.0f} s: {self._doing or 'starting'}")
            time.sleep(0.2)
        tell(f"ready after {time.monotonic() - started:.1f} s")

    def _healthy(self) -> bool:
        try:
            with _DIRECT.open(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return False
        except (OSError, ValueError):
            return False

    def kv_tokens(self) -> int | None:
        """Return how many tokens the KV cache holds, from the engine's metrics; None when they do not say."""
        try:
            with _DIRECT.open(f"{self.url}/metrics", timeout=10) as answer:
                return kv_tokens(answer.read(16 << 20).decode("utf-8", "replace"))
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return None
        except (OSError, ValueError):
            return None

    def log_tail(self) -> str:
        """Return the last lines that the engine wrote."""
        return b"".join(self._tail).decode("utf-8", "replace")

    def watch(self, died: Callable[[int], None]) -> None:
        """Call `died(exit code)` from a thread of its own when the child ends without having been stopped."""

        def wait() -> None:
            code = self._child.wait() if self._child else 1
            if not self.stopping:
                died(code)

        threading.Thread(target=wait, name="engine-watch", daemon=True).start()

    def stop(self, grace: float) -> None:
        """End the child and what it started: SIGTERM, after `grace` seconds SIGKILL. Returns when it is gone."""
        self.stopping = True
        child = self._child
        if child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # engine cores that outlived the server
        child.wait()
        if self._reader:
            self._reader.join(1)  # to the end of its output


def kv_tokens(metrics: str) -> int | None:
    """Return blocks times block size of all engines in Prometheus text; None when they are not told."""
    total = 0
    for found in _KV_BLOCKS.finditer(metrics):
        labels = dict(_LABEL.findall(found.group(1)))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if blocks.isdecimal() and size.isdecimal():
            total += int(blocks) * int(size)
    return total or None


def concurrency(tokens: int | None, *, per_request: int, most: int) -> int:
    """Return how many jobs to take at once: what the KV cache holds, at least 1; `most` when it is not known."""
    return most if tokens is None else max(1, min(most, tokens // per_request))
