"""Interrupt the real main job, through nox, at random moments, and see what is left.

`python -m tests.interruptions --count 200 --folder EMPTY [--seed N]`: each run gets SIGTERM, SIGINT or SIGHUP, or nox
alone is killed with SIGKILL. It must be gone within 5 s (more only where we get less than half a core), with the
right exit code, its locks free and its temporary files removed; every few runs one is let through to its end, and its
wheel must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from scripts.core.paths import ROOT
from tests.miniature import Miniature, make_miniature

MARK = "WHEELSMITH_TRIAL"
LIMIT = 5.0  # seconds
SHARE = 0.5  # of a core that we must get for LIMIT to hold; with less, the limit grows as ours shrinks
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


@dataclass
class Seen:
    """What came of one interruption."""

    number: signal.Signals
    after: float
    """Seconds from the start."""
    stage: str
    """The last stage that was announced."""
    code: int
    ran: float
    """Seconds that it ran before the signal, or altogether."""
    gone: float
    """Seconds until the last process had ended."""
    wrong: list[str] = field(default_factory=list)


def nox_command(*arguments: str | Path) -> list[str]:
    """Return the command line that a user types, without an environment of nox's own: a new one takes a minute."""
    options = ["--no-venv", "-f", f"{ROOT}/noxfile.py", "-s", "wheel"]
    return [sys.executable, "-m", "nox", *options, "--", *map(str, arguments)]


def processes(mark: str, cache: Path) -> list[psutil.Process]:
    """Return all that runs of a trial: what has its mark in its environment, or its cache in its command line."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if process.environ().get(MARK) == mark or str(cache) in " ".join(process.cmdline()):
                found.append(process)
    return found


def held_locks(cache: Path) -> list[str]:
    """Return the locks of a cache that somebody holds."""
    held = []
    for path in (cache / "locks").glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            held.append(path.name)
        else:
            lock.release()
    return held


def left_over(temporary: Path, cache: Path) -> list[str]:
    """Return temporary files: outside the cache, and of compilers in build trees."""
    places = [temporary, *(cache / "builds").glob("*/tmp")]
    return [str(path) for place in places if place.is_dir() for path in place.iterdir()]


def interrupt(
    command: Sequence[str], environment: Mapping[str, str], number: signal.Signals, after: float, folder: Path
) -> Seen:
    """Start a command, send it a signal after some seconds, and look at what is left.

    Exit code 0 is right only when the wheel was in its place before the signal.
    """
    mark, temporary, cache = uuid.uuid4().hex, folder / "tmp", Path(environment["WHEELSMITH_CACHE"])
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    said = folder / "said"
    with said.open("wb") as file:
        run = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, MARK: mark, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    begin = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        run.wait(after)
    ran = time.monotonic() - begin
    ended_before, made = run.poll() is not None, any((folder / "wheelhouse").glob("*.whl"))
    stage = _stage(said.read_text(errors="replace"))
    started = time.monotonic()
    with suppress(ProcessLookupError):
        run.send_signal(number)
    limit, wall, cpu = LIMIT, time.perf_counter(), time.process_time()
    while (left := processes(mark, cache)) and time.monotonic() - started < 2 * limit:
        limit = max(LIMIT, LIMIT * SHARE * (time.perf_counter() - wall) / (time.process_time() - cpu))  # we only scan
    gone = time.monotonic() - started
    with suppress(subprocess.TimeoutExpired):
        run.wait(1)  # its environment cannot be read while it ends
    seen = Seen(number, after, stage, run.poll() or 0, ran, gone)
    if left:
        seen.wrong.append(f"still there: {[' '.join(p.cmdline())[:120] for p in left if p.is_running()]}")
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        run.wait()
    if ended_before:
        seen.stage, wanted = "ended before", {0, seen.code}
    else:
        wanted = {-9} if number == signal.SIGKILL else {128 + number, -number}
        wanted |= {0} if made else set()
    if seen.code not in wanted:
        seen.wrong.append(f"exit code {seen.code}")
    if seen.gone > limit:
        seen.wrong.append(f"took {seen.gone:.1f} s of {limit:.1f}")
    seen.wrong += [f"lock held: {name}" for name in held_locks(cache)]
    seen.wrong += [f"left over: {name}" for name in left_over(temporary, cache)]
    text = said.read_text(errors="replace")
    if f"{ROOT}/" in text.partition("Traceback")[2]:  # nox's own, of its first second, is not ours
        seen.wrong.append("a traceback")
    return seen


def _stage(text: str) -> str:
    known = ("wheel", "fetch", "patch", "toolchain", "compile", "package", "prove", "audit", "ready")
    words = [line.split()[0] for line in text.splitlines() if line.split()[:1] and not line.startswith(" ")]
    return next((word for word in reversed(words) if word in known), "start")


def told(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


def experiment(folder: Path, *, count: int, seed: int, through: int = 20) -> list[Seen]:
    """Interrupt the main job on the miniature `count` times; let each `through`-th finish. Raises on a bad wheel."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would nox
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, which we respect
    source = random.Random(seed)
    miniature = make_miniature(folder / "miniature")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **miniature.environment(folder / "cache"), "CI": "1", "PATH": path}
    command = nox_command("--recipe", miniature.recipe, "--wheelhouse", folder / "wheelhouse")
    first, whole = _let_through(command, environment, folder)
    found = []
    for index in range(count):
        _forget(folder, miniature, source)
        number = SIGNALS[index % len(SIGNALS)]
        seen = interrupt(command, environment, number, source.uniform(0, 0.9 * whole), folder)
        found.append(seen)
        if seen.stage == "ended before":
            whole = min(whole, seen.ran)
        told(
            f"{index:4} {number.name:8} {seen.after:5.1f} s {seen.stage:9} {seen.code:4} {seen.gone:4.1f} {seen.wrong}"
        )
        if index % through == through - 1:
            miniature.slow(0)
            if _let_through(command, environment, folder)[0] != first:
                raise AssertionError("another wheel than without interruptions")
    return found


def _forget(folder: Path, miniature: Miniature, source: random.Random) -> None:
    """Have the next run begin at some stage: some of what the cache holds is gone, compilers take longer."""
    cache = folder / "cache"
    for group in source.choice([["builds"], ["builds", "compiler-cache"], ["toolchains"], ["sources", "dependencies"]]):
        shutil.rmtree(cache / group, ignore_errors=True)
    shutil.rmtree(folder / "wheelhouse", ignore_errors=True)
    miniature.slow(source.choice([0, 0, 1, 5]))


def _let_through(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> tuple[str, float]:
    """Run the command to its end; return (sha256 of the wheel, seconds)."""
    started = time.monotonic()
    shutil.rmtree(folder / "wheelhouse", ignore_errors=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise AssertionError(done.stderr[-3000:])
    [wheel] = (folder / "wheelhouse").glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest(), time.monotonic() - started


def main() -> int:
    """Run the experiment and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    options = parser.parse_args()
    found = experiment(options.folder.absolute(), count=options.count, seed=options.seed)
    wrong = [seen for seen in found if seen.wrong]
    told(str(Counter(f"{seen.number.name} {seen.code}" for seen in found)))
    told(str(Counter(seen.stage for seen in found)))
    told(f"{len(found)} interruptions, {len(wrong)} wrong, slowest {max(seen.gone for seen in found):.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
