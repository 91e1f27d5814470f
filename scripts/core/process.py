"""Run tools: nothing of them outlives us, no wait is without an end, and being told to end is noticed within 0.1 s.

What may take long runs under guard.py, which ends it whole, also when this process is killed. Signals only set a flag
(interrupt.py): all waits here look at it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import selectors
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from scripts.core import interrupt

Command = Sequence[str | Path]
GUARD = Path(__file__).parent / "standalone" / "guard.py"
_PYTHON = sys.executable
GRACE = 1.2  # seconds that a command has to end after it was told to
SHORT = 60.0  # seconds: what may take longer is guarded
SAMPLE = 0.5  # seconds
TOO_LATE = 124  # exit code for a command that took longer than it may, as `timeout` has it
Sink = Callable[[bytes], object]
Look = Callable[[Sequence[psutil.Process], int], None]


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    code: int
    """128 + signal when it was killed."""
    seconds: float
    log: Path
    peak_bytes: int
    """Peak resident memory of the process and its descendants together, sampled twice a second."""
    begin: int = 0
    """Where this command's part of the log begins."""

    def tail(self, lines: int = 40) -> str:
        """Return the last lines that this command wrote to the log."""
        text = self.log.read_bytes()[self.begin :].decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True)
class Output:
    """What a command wrote, and how it ended."""

    code: int
    """124 when it took longer than it may; 127 when it is not there or cannot run; 128 + signal when it was killed."""
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Its stdout as text."""
        return self.out.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """Its stderr as text."""
        return self.err.decode("utf-8", "replace")


def run_logged(
    command: Command,
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    tick: Callable[[], None] = lambda: None,
    look: Look = lambda _processes, _rss: None,
    scratch: Path | None = None,
) -> Finished:
    """Run a command with its output appended to `log`; `tick` is called ten times a second, `look` twice.

    `look` is given all processes of the command and their resident memory in bytes. The folder `scratch` is made, and
    emptied when the command has ended, however that came about: the place for its temporary files.

    When we are told to end, the whole process tree is ended (SIGTERM, after 1.2 s SIGKILL) and Interrupted is raised.
    """
    with log.open("ab") as file:
        words = [str(word) for word in command]
        file.write(f"\n$ cd {shlex.quote(str(cwd))} && {shlex.join(words)}\n".encode())
        file.flush()
        begin = file.tell()
        started = time.monotonic()
        if scratch:
            scratch.mkdir(exist_ok=True)
        child = subprocess.Popen(
            _guarded(words, scratch),
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        memory = _MemoryPeak(child.pid, look)
        try:
            while (code := _poll(child)) is None:
                interrupt.check()
                memory.sample()
                tick()
        except BaseException:
            _end(child)
            raise
        return Finished(_shell_code(code), time.monotonic() - started, log, memory.peak, begin)


def _guarded(words: Sequence[str], scratch: Path | None = None) -> list[str]:
    """Return the command with guard.py before it."""
    options = ["--parent", str(os.getpid()), "--grace", str(GRACE)]
    options += ["--scratch", str(scratch)] if scratch else []
    return [_PYTHON, "-S", "-E", str(GUARD), *options, "--", *words]


class _MemoryPeak:
    """Samples the memory of a process tree, at most twice a second."""

    def __init__(self, pid: int, look: Look) -> None:
        self.pid, self.peak, self._last, self._look = pid, 0, 0.0, look

    def sample(self) -> None:
        if time.monotonic() - self._last < SAMPLE:
            return
        self._last = time.monotonic()
        total, family = 0, _family(self.pid)[1:]  # without the guard
        for process in family:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
        self.peak = max(self.peak, total)
        self._look(family, total)


def _poll(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(interrupt.POLL)
    except subprocess.TimeoutExpired:
        return None


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a guarded command: its guard does it in GRACE; should that hang, kill what there is. Waits 5 s at most."""
    family = _family(child.pid)
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE + 0.8)
    except subprocess.TimeoutExpired:
        for process in {*family, *_family(child.pid)}:
            with suppress(psutil.Error):
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1)


def _ask_to_end(child: subprocess.Popen[bytes]) -> None:
    """Give a short command's process group the time to remove its temporary files, as compilers do."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.3)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def call(
    command: Command,
    *,
    environment: Mapping[str, str] | None = None,
    limit: float | None = SHORT,
    cwd: Path | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    merged: bool = False,
    terminal: bool = False,
    on_output: Sink | None = None,
    on_error: Sink | None = None,
    tick: Callable[[], None] = lambda: None,
    scratch: Path | None = None,
) -> Output:
    """Run a command for at most `limit` seconds (None: as long as it takes) and return what it wrote.

    `stdout` takes its output instead of us; `merged` has its stderr there too, and with `terminal` both are a terminal,
    for programs that tell their progress only there. `on_output` and `on_error` hear it as it comes, and it is not
    returned. `tick` is called ten times a second.
    With a limit of more than a minute it runs under the guard, which empties the folder `scratch` afterwards. Whatever
    it leaves running in its session is killed.
    Raises Interrupted when we are told to end; the command is ended first.
    """
    words = [str(word) for word in command]
    guarded = limit is None or limit > SHORT
    ours, theirs = _open_terminal() if terminal else (None, None)
    try:
        child = subprocess.Popen(
            _guarded(words, scratch) if guarded else words,
            cwd=cwd,
            env=None if environment is None else dict(environment),
            stdin=stdin or subprocess.DEVNULL,
            stdout=theirs or stdout or subprocess.PIPE,
            stderr=subprocess.STDOUT if merged or terminal else subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Output(127, str(error).encode() if merged else b"", str(error).encode())
    finally:
        if theirs:
            theirs.close()
    out: list[bytes] = []
    err: list[bytes] = []
    pipes = [(ours or child.stdout, on_output or out.append), (child.stderr, on_error or err.append)]
    try:
        late = not _listen(child, pipes, limit, tick)
    finally:
        if child.poll() is None:
            _end(child) if guarded else _ask_to_end(child)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            child.wait(1)
        for pipe, _ in pipes:
            if pipe:
                pipe.close()
    code = TOO_LATE if late else _shell_code(child.returncode or 0)
    return Output(code, b"".join(out), b"".join(err))


def _open_terminal() -> tuple[IO[bytes], IO[bytes]]:
    """Return both ends of a terminal of 200 columns: ours, theirs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 200, 0, 0))
    return os.fdopen(ours, "rb", buffering=0), os.fdopen(theirs, "wb", buffering=0)


def _listen(
    child: subprocess.Popen[bytes],
    pipes: Sequence[tuple[IO[bytes] | None, Sink]],
    limit: float | None,
    tick: Callable[[], None],
) -> bool:
    """Read what a command writes until it has ended; return False when the limit comes first."""
    deadline = time.monotonic() + limit if limit is not None else float("inf")
    with selectors.DefaultSelector() as selector:
        for pipe, sink in pipes:
            if pipe:
                selector.register(pipe, selectors.EVENT_READ, sink)
        while selector.get_map():
            for key, _ in selector.select(interrupt.POLL):
                block = b""
                with suppress(OSError):  # a terminal that nobody has open any more
                    block = os.read(key.fd, 1 << 16)
                if block:
                    key.data(block)
                else:
                    selector.unregister(key.fileobj)
            interrupt.check()
            tick()
            if time.monotonic() > deadline:
                return False
    while _poll(child) is None:
        interrupt.check()
        if time.monotonic() > deadline:
            return False
    return True


def capture(
    command: Command,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = SHORT,
    scratch: Path | None = None,
) -> tuple[int, str]:
    """Run a short command; return (exit code, stdout and stderr together). Codes as in `Output`."""
    done = call(command, environment=environment, limit=timeout, merged=True, scratch=scratch)
    return done.code, done.text if done.code != TOO_LATE else f"no answer within {timeout:.0f} s"


class Daemon:
    """A program that runs beside us until it is stopped, or we end, however we do."""

    def __init__(self, command: Command, *, environment: Mapping[str, str], folder: Path, log: str) -> None:
        """Start it in a folder of its own, which is emptied when it has ended; `log` is a file there."""
        with (folder / log).open("wb") as said:
            self._child = subprocess.Popen(
                _guarded([str(word) for word in command]),
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id of its guard: the program and all that it starts are below."""
        return self._child.pid

    def stop(self) -> None:
        """Kill it and all that it has started; waits 1 s at most."""
        for process in reversed(_family(self._child.pid)):
            with suppress(psutil.Error):
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
