"""Being told to end: SIGTERM, SIGINT and SIGHUP set a flag, and whoever waits or works in a loop looks at it.

A handler that raised would do so anywhere: inside a lock of the standard library, in the middle of tidying up. So none
does. `check()` raises where it is safe; where nobody looks (a library waits for a server that says nothing), a thread
ends the process when LIMIT is over. Nothing is lost: results get their names by rename, and locks are the kernel's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT = 2.0  # seconds until the process ends by force
POLL = 0.1  # seconds between looks at the flag


class Interrupted(KeyboardInterrupt):
    """We were told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Flag:
    """The first signal that told us to end, 0 before; and whether somebody is tidying up."""

    number = 0
    tidying = 0


_flag = _Flag()


def _note(number: int, _frame: FrameType | None) -> None:
    _flag.number = _flag.number or number


def take_over() -> None:
    """Have the signals set the flag from now on. SIGHUP stays ignored where it is (nohup)."""
    ours, kernels = os.pipe()
    os.set_blocking(kernels, False)
    signal.set_wakeup_fd(kernels, warn_on_full_buffer=False)
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)
    threading.Thread(target=_end_in_time, args=(ours,), name="end in time", daemon=True).start()


def told() -> int:
    """Return the signal that told us to end, 0 when none has."""
    return _flag.number


def check() -> None:
    """Raise Interrupted when we were told to end."""
    if _flag.number and not _flag.tidying:
        raise Interrupted(_flag.number)


@contextmanager
def tidying() -> Iterator[None]:
    """Let the block run though we were told to end: it tidies up, and LIMIT still holds."""
    _flag.tidying += 1
    try:
        yield
    finally:
        _flag.tidying -= 1


def pause(seconds: float) -> None:
    """Sleep; raises Interrupted as soon as we are told to end."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check()
        time.sleep(min(left, POLL))
    check()


def _end_in_time(pipe: int) -> None:
    """Wait for a signal that ends us; when LIMIT is over, kill all our descendants and end."""
    number = 0
    while number not in ENDING:
        number = os.read(pipe, 1)[0]
    time.sleep(LIMIT)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    show_cursor = b"\x1b[?25h\n" if os.isatty(2) else b""
    with suppress(OSError):
        os.write(2, show_cursor + b"interrupted: what was finished is kept; the same command goes on from there\n")
    os._exit(128 + number)
