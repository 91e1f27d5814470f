"""Run one compiler call and record it: started when, took how long, how much memory, what it said when it failed.

CMake puts this file before every compile command (CMAKE_<LANG>_COMPILER_LAUNCHER); ninja does not say which units it is
running, and neither it nor the kernel keeps a unit's peak memory. It is copied into each build tree and run with
`python -S -E`, so it imports the standard library only and works on any Python 3.

Before the compiler starts it asks the scheduler (admission.py, in wheelsmith's own process) for its turn; without one,
as when a user repeats a command by hand, it compiles at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress

EVENTS = "WHEELSMITH_EVENTS"  # file that a line of JSON is appended to at each start and end
FAILURES = "WHEELSMITH_FAILURES"  # folder for the output and command of failed units
MAPS = "WHEELSMITH_MAPS"  # JSON object: directories, and the names that are written into objects instead of theirs
ADMISSION = "WHEELSMITH_ADMISSION"  # socket of the scheduler
COMPILER_CACHE = "WHEELSMITH_COMPILER_CACHE"  # file that says what to put before the compiler, read at each call
UNIT_NAME = "-DWHEELSMITH_UNIT="  # what unit_names.h names CUB's and Thrust's namespaces after
UNIT = re.compile(rb"unit_[0-9a-f]{16}")
REACH = "reach.json"  # beside this file: what each unit can read (reach.py)
CHECK = "CCACHE_COMPILERCHECK"
SYMBOL_TABLE, GLOBAL = 2, 1  # SHT_SYMTAB, STB_GLOBAL of ELF
PR_SET_PDEATHSIG = 1
STOPPED = 75  # exit code of a unit that the scheduler did not let start
_HITS = ("direct_cache_hit", "preprocessed_cache_hit")  # words of ccache's log of one call
_SHARED = "remote_storage_hit"
_told_to_stop: list[int] = []  # signals that came while a compiler was running
_KILLED = (b"died due to signal 9", b"Killed signal terminated program", b"Killed\n")  # nvcc; gcc; a shell


def die_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent process ends, however it ends (Linux only)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def unit_of(command: list[str]) -> tuple[str, str]:
    """Return (object file, source file) of a compile command, as far as it tells."""
    output = command[command.index("-o") + 1] if "-o" in command[:-1] else ""
    ends = (".cu", ".cpp", ".cc", ".cxx", ".c")
    sources = [word for word in command if word.endswith(ends) and not word.startswith("-")]
    return output, sources[-1] if sources else output


def with_stable_names(command: list[str]) -> list[str]:
    """Return a compile command whose object tells neither in which directory nor when it was made (stable_names.py).

    nvcc names what is in anonymous namespaces after the path of the source: cudafe++ is told another path. Where a unit
    has no name that others see, the working directory and the process's number go in as well, unless there is a seed.
    CUB and Thrust put the list of archs into their names: they are given the unit instead (unit_names.h).
    """
    text = os.environ.get(MAPS, "")
    if not text or "-c" not in command:
        return command
    maps = json.loads(text)
    _, source = unit_of(command)
    nvcc = os.path.basename(command[0]) == "nvcc"  # noqa: PTH119
    words = [("-Xcompiler=" if nvcc else "") + "-ffile-prefix-map=%s=%s" % pair for pair in maps.items()]  # noqa: UP031
    if nvcc:
        path = next((path for path in maps if source.startswith(path + "/")), "")
        name = maps.get(path, "") + source[len(path) :]
        words += ["-Xcudafe", "--orig_src_path_name=" + name] if path else []
        words.append("-frandom-seed=" + name)
        header = os.path.join(os.path.dirname(__file__), "unit_names.h")  # noqa: PTH118, PTH120
        words += ["-include", header, UNIT_NAME + "unit_" + hashlib.sha256(name.encode()).hexdigest()[:16]]
    return [command[0], *words, *command[1:]]


def reach_of(command: list[str], table: str) -> tuple[str, frozenset[str]]:
    """Return a digest of what a compile command's source can read, and the macros it can see nothing of.

    reach.py wrote `table`. ("", nothing) where it does not tell.
    """
    _, source = unit_of(command)
    try:
        with open(table) as file:  # noqa: PTH123
            known = json.load(file)[source]
        digest, unseen = known["digest"], known["unseen"]
    except (OSError, ValueError, LookupError, TypeError):
        return "", frozenset()
    whole = isinstance(digest, str) and isinstance(unseen, list) and all(isinstance(name, str) for name in unseen)
    return (digest, frozenset(unseen)) if whole and "-c" in command else ("", frozenset())


def without_macros(command: list[str], unseen: frozenset[str]) -> list[str]:
    """Return a command without the `-DNAME` of macros that its unit can see nothing of.

    So a flag for another arch leaves the command of a unit as it was, and caches have its object.
    """
    return [word for word in command if not (word[:2] == "-D" and word[2:].partition("=")[0] in unseen)]


def with_stock_headers(command: list[str]) -> list[str]:
    """Return a compile command without the lean headers (patch 0006) and our unit names, [] when it has neither."""
    lean = [word for word in command if word.startswith("-I") and word.endswith("/lean-headers")]
    if not lean or "-DVLLM_STOCK_TORCH_HEADERS" in command:
        return with_stock_names(command)
    plain = [word for word in command if word not in lean and word != "-DAT_PER_OPERATOR_HEADERS"]
    return with_stock_names(plain) or plain


def with_stock_names(command: list[str]) -> list[str]:
    """Return a compile command without unit_names.h, [] when it has none."""
    names = [number for number, word in enumerate(command) if word.startswith(UNIT_NAME)]
    if not names:
        return []
    return command[: names[0] - 2] + command[names[0] + 1 :]  # `-include HEADER -DWHEELSMITH_UNIT=…`


def crosses_units(path: str) -> bool:
    """Whether an object calls, or has for others, a function with the name of one unit in it: it would not link.

    A signature with a type of Thrust or CUB is named after its namespace, which unit_names.h names after the unit.
    What only this unit uses is local, weak or unique. Reads symbol tables of ELF64; anything else has no such name.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":
        return False
    start, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    tables = [struct.unpack_from("<IIQQQQIIQQ", data, start + number * size) for number in range(count)]
    for table in tables:
        if table[1] == SYMBOL_TABLE:
            offset, length, strings = table[4], table[5], tables[table[6]][4]
            for name, info, *_ in struct.iter_unpack("<IBBHQQ", data[offset : offset + length]):
                if info >> 4 == GLOBAL and UNIT.search(data, strings + name, data.index(b"\0", strings + name)):
                    return True
    return False


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


def arch_count(command: list[str]) -> int:
    """Return for how many archs a compile command compiles; 1 for host code."""
    return max(1, sum(1 for word in command if word.startswith(("-gencode", "--generate-code"))))


class Turn:
    """This unit's connection to the scheduler; the kernel closes it, and so frees the turn, however we end."""

    def __init__(self, path: str) -> None:
        self.socket: socket.socket | None = None
        if path:
            folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)  # noqa: PTH120
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:  # a socket's address is 108 bytes at most, a path may be longer
                connection.connect("/proc/self/fd/%d/%s" % (folder, os.path.basename(path)))  # noqa: PTH119, UP031
                self.socket = connection
            except OSError:
                connection.close()
            os.close(folder)

    def ask(self, question: dict[str, object], *, alone: str) -> str:
        """Send a question and return the scheduler's word, however long it takes; `alone` without a scheduler."""
        if self.socket is None:
            return alone
        try:
            self.socket.sendall((json.dumps(question) + "\n").encode())
            return self.socket.recv(16).decode().strip() or "stop"
        except OSError:  # it has gone: this run is over
            return "stop"

    def close(self) -> None:
        """Give the turn back."""
        if self.socket is not None:
            self.socket.close()

    def tell(self, message: dict[str, object]) -> None:
        """Send something that needs no answer."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.sendall((json.dumps(message) + "\n").encode())


def prefer_as_victim() -> None:
    """Let the kernel, when memory runs out, end the compiler rather than whoever else is on the machine."""
    die_with_parent()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("500")


def read_switch() -> dict[str, object]:
    """Return what the compiler cache's switch says now: {} for plain compilation.

    wheelsmith rewrites the file while ninja runs, when a cache dies: it is read again for every unit.
    """
    try:
        with open(os.environ.get(COMPILER_CACHE, "")) as file:  # noqa: PTH123
            switch = json.load(file)
        return switch if isinstance(switch, dict) and switch.get("command") else {}
    except (OSError, ValueError):
        return {}


def call_cached(
    command: list[str], known: dict[str, object], reach: str = ""
) -> tuple[int, bytes, resource.struct_rusage]:
    """Run a compile command through the compiler cache, plainly when there is none or when it is the cache that fails.

    `reach` says what the unit can read of the sources, "" for all of them. Returns what `call` returns; known["cache"]
    becomes "hit", "miss", "failed" (compiled plainly after all) or "off".
    """
    switch = read_switch()
    known["cache"] = "off"
    if not switch:
        return call(command)
    stats = os.path.join(str(switch["folder"]), "%d.stats" % os.getpid())  # noqa: PTH118, UP031
    environment = {**os.environ, **switch["environment"], "CCACHE_STATSLOG": stats}  # type: ignore[dict-item]
    if reach and switch.get("outside"):
        environment[CHECK] = "string:%s-%s" % (switch["outside"], reach)  # noqa: UP031
    try:
        code, output, usage = call([*switch["command"], *command], environment)  # type: ignore[misc]
    except OSError:  # the cache's program is not there
        known["cache"] = "failed"
        return call(command)
    counted = _take_stats(stats)
    known["cache"] = "hit" if any(word in counted for word in _HITS) else "miss"
    if _SHARED in counted and known["cache"] == "hit":
        known["shared"] = True
    if code and not _told_to_stop and (switch != read_switch() or cache_failed(code, output)):
        known["cache"] = "failed"
        return call(command)
    return code, output, usage


def cache_failed(code: int, output: bytes) -> bool:
    """Whether a failed call failed in the cache's programs, as far as exit code and output tell."""
    crashed = code - 128 in {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL}
    return crashed or any(line.startswith((b"sccache: ", b"ccache: ")) for line in output.splitlines())


def _take_stats(path: str) -> str:
    """Return ccache's log of one call, "" without one; removes it."""
    try:
        with open(path) as file:  # noqa: PTH123
            words = file.read()
        os.unlink(path)  # noqa: PTH108
    except OSError:
        return ""
    return words


def call(command: list[str], environment: dict[str, str] | None = None) -> tuple[int, bytes, resource.struct_rusage]:
    """Run a command; return its exit code (128 + signal when killed), what it said and its resource usage."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    child = subprocess.Popen(command, stdout=pipe, stderr=both, preexec_fn=prefer_as_victim, env=environment)  # noqa: PLW1509

    output = listen(child)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return child.returncode, output, usage


def listen(child: subprocess.Popen[bytes]) -> bytes:
    """Return what a command writes until it has ended; signals that are to end us are passed on to it.

    The handler only notes the signal; the pipe that the interpreter writes its number to wakes us.
    """
    ours, interpreters = os.pipe()
    os.set_blocking(interpreters, False)
    signal.set_wakeup_fd(interpreters)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    blocks: list[bytes] = []
    said = child.stdout.fileno() if child.stdout else ours
    while blocks[-1:] != [b""]:
        ready, _, _ = select.select([said, ours], [], [])
        if ours in ready:
            with suppress(ProcessLookupError):  # not send_signal: it would reap a child that has ended
                os.kill(child.pid, os.read(ours, 1)[0])
        if said in ready:
            blocks.append(os.read(said, 1 << 16))
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)
    for pipe in (ours, interpreters):
        os.close(pipe)
    if child.stdout:
        child.stdout.close()
    return b"".join(blocks)


def note(number: int, _frame: object) -> None:
    """Remember that we were told to stop."""
    _told_to_stop.append(number)


def may_be_headers(code: int, output: bytes) -> bool:
    """Whether a failed compilation can be due to what headers declare: not a signal, not a full disk, not our end."""
    return 0 < code < 128 and not _told_to_stop and b"No space left" not in output


def first_error(output: bytes) -> str:
    """Return the first line of a compiler's output that speaks of an error."""
    said = [line for line in output.decode("utf-8", "replace").splitlines() if "error" in line]
    return said[0][:500] if said else ""


def was_killed(code: int, output: bytes) -> bool:
    """Whether the compiler, or a program it started, was ended by SIGKILL: what the kernel does without memory."""
    return code == 128 + signal.SIGKILL or (code != 0 and any(word in output for word in _KILLED))


def run(command: list[str]) -> int:
    """Run a compile command in its turn and record it. Returns its exit code (128 + signal when killed)."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while waiting for a turn, Ctrl-C ends us without a traceback
    table = os.path.join(os.path.dirname(os.path.abspath(__file__)), REACH)  # noqa: PTH100, PTH118, PTH120
    reach, unseen = reach_of(command, table)
    command = with_stable_names(without_macros(command, unseen))
    unit, source = unit_of(command)
    known: dict[str, object] = {"unit": unit, "source": source, "archs": arch_count(command)}
    turn = Turn(os.environ.get(ADMISSION, ""))
    word = turn.ask(known, alone="go")
    while word == "go":
        started = time.time()
        append({"event": "start", **known, "pid": os.getpid(), "time": started})
        code, output, usage = call_cached(command, known, reach)
        if was_killed(code, output):
            word = turn.ask({"killed": True}, alone="stop")
            if word == "go":
                append({"event": "killed", **known, "time": time.time(), "code": code})
                continue
        stock = with_stock_headers(command) if may_be_headers(code, output) else []
        if stock:  # torch's own headers decide whether the source is wrong; theirs is the failure that is shown
            append({"event": "stock", **known, "time": time.time(), "code": code, "output": first_error(output)})
            command, known["headers"] = stock, "stock"
            continue
        plain = with_stock_names(command) if code == 0 and unit else []
        if plain and crosses_units(unit):
            append({"event": "names", **known, "time": time.time()})
            command, known["headers"] = plain, "stock"
            continue
        finish(known, started, code, usage)
        turn.tell({"code": code})
        sys.stdout.buffer.write(output)
        sys.stdout.flush()
        if code and code not in {128 + signal.SIGINT, 128 + signal.SIGTERM}:
            keep_failure(unit, command, output)
        return code
    print("not compiled: another unit failed first, or the run has ended")  # noqa: T201
    return STOPPED


def finish(known: dict[str, object], started: float, code: int, usage: resource.struct_rusage) -> None:
    """Record the end of a compiler call."""
    now = time.time()
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss
    record = {"event": "end", **known, "time": now, "code": code, "seconds": round(now - started, 3)}
    append({**record, "cpu_seconds": round(cpu, 3), "peak_kb": peak})


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
