"""Run one compiler call and record it: started when, took how long, how much memory, what it said when it failed.

CMake puts this file before every compile command (CMAKE_<LANG>_COMPILER_LAUNCHER); ninja does not say which units it is
running, and neither it nor the kernel keeps a unit's peak memory. It is copied into each build tree and run with
`python -S -E`, so it imports the standard library only and works on any Python 3.

Also `launcher.py --guard COMMAND…`: become COMMAND, ended by the kernel when the parent dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

EVENTS = "WHEELSMITH_EVENTS"  # file that a line of JSON is appended to at each start and end
FAILURES = "WHEELSMITH_FAILURES"  # folder for the output and command of failed units
MAPS = "WHEELSMITH_MAPS"  # JSON object: directories, and the names that are written into objects instead of theirs
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent process ends, however it ends (Linux only)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def unit_of(command: list[str]) -> tuple[str, str]:
    """Return (object file, source file) of a compile command, as far as it tells."""
    output = command[command.index("-o") + 1] if "-o" in command[:-1] else ""
    sources = [word for word in command if word.endswith((".cu", ".cpp", ".cc", ".cxx", ".c"))]
    return output, sources[-1] if sources else output


def with_stable_names(command: list[str]) -> list[str]:
    """Return a compile command whose object does not tell in which directory it was made (stable_names.py).

    nvcc names what is in anonymous namespaces after the path of the source: cudafe++ is told another path.
    """
    maps = json.loads(os.environ.get(MAPS, "{}"))
    if not maps or "-c" not in command:
        return command
    _, source = unit_of(command)
    nvcc = os.path.basename(command[0]) == "nvcc"  # noqa: PTH119
    words = [("-Xcompiler=" if nvcc else "") + "-ffile-prefix-map=%s=%s" % pair for pair in maps.items()]  # noqa: UP031
    for path, name in maps.items():
        if nvcc and source.startswith(path + "/"):
            words += ["-Xcudafe", "--orig_src_path_name=" + name + source[len(path) :]]
    return [command[0], *words, *command[1:]]


def append(record: dict[str, object]) -> None:
    """Append one line to the event file; a single write of this size does not mix with another process's."""
    path = os.environ.get(EVENTS)
    if path:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, (json.dumps(record) + "\n").encode())
        os.close(handle)


def keep_failure(unit: str, command: list[str], output: bytes) -> None:
    """Write what a failed unit said, and the command that repeats it."""
    folder = os.environ.get(FAILURES)
    if folder:
        path = os.path.join(folder, f"{os.getpid()}.json")  # noqa: PTH118  (pathlib costs 20 ms of start-up)
        with open(path, "w") as file:  # noqa: PTH123
            text = output.decode("utf-8", "replace")
            json.dump({"unit": unit, "command": command, "directory": os.getcwd(), "output": text}, file)  # noqa: PTH109


def run(command: list[str]) -> int:
    """Run a compile command and record it. Returns its exit code (128 + signal when killed)."""
    die_with_parent()
    command = with_stable_names(command)
    unit, source = unit_of(command)
    started = time.time()
    append({"event": "start", "unit": unit, "source": source, "pid": os.getpid(), "time": started})
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)  # noqa: PLW1509

    def stop(number: int, _frame: object) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    output = child.stdout.read() if child.stdout else b""
    _, status, usage = os.wait4(child.pid, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    sys.stdout.buffer.write(output)
    sys.stdout.flush()
    record: dict[str, object] = {"event": "end", "unit": unit, "source": source, "time": time.time(), "code": code}
    record.update(
        seconds=round(time.time() - started, 3),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
        peak_kb=usage.ru_maxrss,
    )
    append(record)
    if code and code not in {128 + signal.SIGINT, 128 + signal.SIGTERM}:
        keep_failure(unit, command, output)
    return code


def guard(command: list[str]) -> None:
    """Replace this process by `command`, which the kernel ends when our parent dies."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:  # died before the request
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    if sys.argv[1] == "--guard":
        guard(sys.argv[2:])
    sys.exit(run(sys.argv[1:]))
