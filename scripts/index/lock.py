"""One publisher at a time in a directory: a lock of the kernel that is shown to work, with its holder's name in it.

Network file systems may have no locks, locks that do nothing, or locks that other machines do not see. The first two
are noticed when the lock is taken, the third when a second publisher has put its name over ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from scripts.core.console import Console, human_seconds
from scripts.core.errors import PublishError

NAME = ".publish.lock"
_PAUSE = 0.1  # seconds between two tries
_TAKEN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


@dataclass(frozen=True)
class Held:
    """A lock that this process holds."""

    path: Path
    holder: str

    def check(self) -> None:
        """Raise PublishError when another publisher got the same lock, as on file systems that machines share."""
        found = _holder(self.path)
        if found != self.holder:
            raise PublishError(
                f"{found} works on {self.path.parent} at the same time",
                why="it got the same lock: the file system's locks are not seen by other machines",
                fix="publish from one machine, or into a bucket; then run this command again, nothing is lost",
            )


@contextmanager
def publish_lock(root: Path, console: Console, *, wait: float) -> Iterator[Held]:
    """Hold the lock of a folder, which the kernel releases when the process dies; wait at most `wait` seconds.

    Raises PublishError when another one keeps it longer, or when the file system has no working locks; OSError.
    """
    path = root / NAME
    with path.open("a+b") as file:
        _acquire(file, path, console, wait)
        _prove(path)
        held = Held(path, _ourselves())
        file.truncate(0)
        file.write(held.holder.encode())
        file.flush()
        try:
            yield held
        finally:
            if _holder(path) == held.holder:
                file.truncate(0)


def _acquire(file: BinaryIO, path: Path, console: Console, wait: float) -> None:
    started, told = time.monotonic(), False
    while not _try(file, path):
        if time.monotonic() - started >= wait:
            raise PublishError(
                f"{_holder(path)} is still working on {path.parent}",
                why=f"it has held the lock for all of the {human_seconds(wait)} we waited",
                fix="wait for it, or end it; --wait SECONDS waits longer",
            )
        if not told:
            console.note(f"waiting for {_holder(path)}, which works on {path.parent} (at most {human_seconds(wait)})")
            told = True
        time.sleep(_PAUSE)


def _try(file: BinaryIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise _no_locks(path, f"flock says: {error.strerror}") from error
    return True


def _prove(path: Path) -> None:
    """Ask for the lock a second time, which must be refused."""
    with path.open("rb") as second:
        if _try(second, path):
            raise _no_locks(path, "it gives the same lock to two at once")


def _no_locks(path: Path, why: str) -> PublishError:
    return PublishError(
        f"the file system of {path.parent} has no working locks",
        why=f"{why}; two publishers at once would lose each other's wheels",
        fix=["mount it with locks (NFS: version 4, without nolock)", "or publish on the machine that has the disk"],
    )


def _ourselves() -> str:
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {os.getpid()} on {socket.gethostname()} (since {when})"


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:200].strip() or "another publisher"
    except OSError:
        return "another publisher"
