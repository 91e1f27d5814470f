"""Run tools: own process group, output to a log file, stopped whole on Ctrl-C, never left behind.

Nox terminates a child 0.3 s after Ctrl-C and cannot write a log and the terminal at once; compilers need more care.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

Command = Sequence[str | Path]
GRACE = 2.5  # seconds between SIGINT and SIGKILL
POLL = 0.1  # seconds
LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    code: int
    seconds: float
    log: Path
    peak_bytes: int
    """Peak resident memory of the process and its descendants together, sampled once a second."""
    begin: int = 0
    """Where this command's part of the log begins."""

    def tail(self, lines: int = 40) -> str:
        """Return the last lines that this command wrote to the log."""
        text = self.log.read_bytes()[self.begin :].decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])


def run_logged(
    command: Command,
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    tick: Callable[[], None] = lambda: None,
) -> Finished:
    """Run a command with its output appended to `log`; `tick` is called ten times a second.

    On Ctrl-C or SIGTERM the whole process tree is stopped (SIGINT, after 2.5 s SIGKILL) and KeyboardInterrupt goes on.
    When this process is killed, the kernel ends the command.
    """
    words = [str(word) for word in command]
    with log.open("ab") as file:
        file.write(f"\n$ cd {shlex.quote(str(cwd))} && {shlex.join(words)}\n".encode())
        file.flush()
        begin = file.tell()
        started = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-S", "-E", str(LAUNCHER), "--guard", *words],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        memory = _MemoryPeak(child.pid)
        try:
            while (code := _poll(child)) is None:
                memory.sample()
                tick()
        except BaseException:
            _stop_tree(child)
            raise
        return Finished(code, time.monotonic() - started, log, memory.peak, begin)


class _MemoryPeak:
    """Samples the memory of a process tree, at most once a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self._last = pid, 0, 0.0

    def sample(self) -> None:
        if time.monotonic() - self._last < 1:
            return
        self._last = time.monotonic()
        total = 0
        for process in _family(self.pid):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
        self.peak = max(self.peak, total)


def _poll(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(POLL)
    except subprocess.TimeoutExpired:
        return None


def _stop_tree(child: subprocess.Popen[bytes]) -> None:
    """Stop a process and all its descendants; a second Ctrl-C does not cut this short."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        family = _family(child.pid)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and (child.poll() is None or any(_alive(p) for p in family)):
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also what was reparented meanwhile
        for process in {*family, *_family(child.pid)}:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def capture(command: Command, *, environment: Mapping[str, str], timeout: float = 60) -> tuple[int, str]:
    """Run a short command; return (exit code, stdout and stderr together). 127 when it is not there or cannot run."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {timeout:.0f} s"
    return done.returncode, done.stdout.decode("utf-8", "replace")
