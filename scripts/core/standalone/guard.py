"""Run a command of which nothing is left when it ends: `guard.py --parent PID [--grace S] [--scratch DIR] -- COMMAND…`.

SIGTERM, SIGINT and SIGHUP are passed on to the command; what still runs when the grace is over is killed, whatever
process groups and sessions it has made and whoever its parents were: this process adopts all its descendants
(PR_SET_CHILD_SUBREAPER). When the parent PID dies, even by SIGKILL, the kernel sends SIGTERM and the same happens. The
scratch folder is emptied at the end, when nobody is left to write into it.

No signal handlers: the signals are blocked and waited for, so nothing is interrupted half-way. Exit code: the
command's; 128 + signal when a signal ended it or the run; 127 when there is no such command.

Standard library only, run by path with `-S -E`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE = 1.2  # seconds between being told to end and SIGKILL
SWEEP = 1.0  # seconds at most until killed processes are gone; what hangs in the kernel is left to it
IDLE = 60.0  # seconds between looks at a command that nobody wants to end
_libc = ctypes.CDLL(None)


def die_with_parent(number: int) -> None:
    """Ask the kernel to send a signal when the parent process ends, however it ends (Linux only)."""
    _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def start(command: list[str], mask: set[int]) -> int:
    """Start the command with the signals as they were before; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.stderr.write("%s: %s\n" % (command[0], error.strerror))  # noqa: UP031
    os._exit(127)


def descendants(ancestor: int) -> list[int]:
    """Return the processes below `ancestor`."""
    parents = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib costs 20 ms of start-up)
        if name.isdigit():
            with suppress(OSError, IndexError), open("/proc/%s/stat" % name) as file:  # noqa: PTH123, UP031
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def kill_all() -> None:
    """Send SIGKILL to all descendants."""
    for pid in descendants(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def reap(child: int) -> int | None:
    """Collect all that have ended; return the wait status of `child` when it is among them."""
    ended = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == child:
                ended = status
    return ended


def sweep() -> None:
    """Kill what the command has left, and wait until it is gone."""
    deadline = time.monotonic() + SWEEP
    while time.monotonic() < deadline:
        kill_all()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # none left
            return
        time.sleep(0.01)


def watch(child: int, waited: set[int], grace: float) -> tuple[int, int]:
    """Wait for the command to end; return (its wait status, the signal that told us to end it or 0)."""
    told, deadline, last = 0, 0.0, 0.0
    while True:
        left = max(0.0, deadline - time.monotonic()) if told else IDLE
        received = signal.sigtimedwait(waited, left)
        number = received.si_signo if received else 0
        if number in ENDING:
            with suppress(ProcessLookupError):
                os.kill(child, number)
            if not told:
                told, deadline = number, time.monotonic() + grace
                last = deadline + SWEEP
        status = reap(child)
        if status is not None:
            return status, told
        if told and time.monotonic() >= deadline:
            if time.monotonic() >= last:
                return signal.SIGKILL, told
            kill_all()
            deadline = time.monotonic() + 0.1  # and again: they may have started others meanwhile


def empty(folder: str) -> None:
    """Remove what is in a folder, as far as that can be done."""
    import shutil  # noqa: PLC0415  (15 ms, only at the end)

    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)  # noqa: PTH108


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    place = arguments.index("--")
    options = dict(zip(arguments[:place:2], arguments[1:place:2], strict=True))
    command = arguments[place + 1 :]
    waited: set[int] = {number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    waited |= {signal.SIGCHLD, signal.SIGINT}  # shells ignore SIGINT for background jobs; nohup means SIGHUP
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(options["--parent"]):  # it died before we asked
        return 128 + signal.SIGTERM
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = start(command, mask)
    status, told = watch(child, waited, float(options.get("--grace", GRACE)))
    if told or os.WIFSIGNALED(status):
        sweep()
    if "--scratch" in options:
        empty(options["--scratch"])
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return 128 + told if told and code else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
