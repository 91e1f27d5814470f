"""Run a command in a real memory group of a given size and say what the group took: a small machine, measured.

`python -m tests.measure_memory --gb 8 -- nox -s wheel -- --recipe quickstart`. The group lies below this process's own
(cgroup version 1 or 2) and holds everything that the command starts, so the kernel kills when all of it together
exceeds the limit. Sizes are GB of 10^9 bytes. `peak` is memory that cannot be dropped (anonymous pages and tmpfs);
`with files` counts the page cache too, which the kernel drops when the limit is near.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.groups import real_limit

LOOK = 0.2  # seconds between two looks
FIXED = (("total_rss", "total_shmem"), ("anon", "shmem"))  # rows of memory.stat: version 1, version 2
MOST = ("memory.max_usage_in_bytes", "memory.peak")


@dataclass(frozen=True)
class Taken:
    """What a command took in its group."""

    code: int
    seconds: float
    peak: int
    """Bytes of anonymous memory and tmpfs at most."""
    with_files: int
    """The same with the page cache."""
    kills: int
    """Processes that the kernel killed because the limit was reached."""


def measure(command: Sequence[str], limit: int) -> Taken | None:
    """Run a command under a limit in bytes; None where this user may not make memory groups."""
    with real_limit("measure", limit) as group:
        if not group:
            return None

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        started = time.monotonic()
        peak = 0
        with subprocess.Popen(command, preexec_fn=enter) as process:  # noqa: PLW1509 - no threads here
            while process.poll() is None:
                rows = dict(_rows(group / "memory.stat"))
                peak = max(peak, *(sum(rows.get(name, 0) for name in names) for names in FIXED))
                time.sleep(LOOK)
        while (group / "cgroup.procs").read_text().strip():
            time.sleep(LOOK)  # the last of its children are still ending
        counted = [*_rows(group / "memory.oom_control"), *_rows(group / "memory.events")]
        usage = max(int((group / name).read_text()) for name in MOST if (group / name).exists())
        kills = sum(count for name, count in counted if name == "oom_kill")
        return Taken(process.returncode, time.monotonic() - started, peak, usage, kills)


def _rows(path: Path) -> list[tuple[str, int]]:
    text = path.read_text() if path.exists() else ""
    return [(name, int(count)) for name, count in (line.split() for line in text.splitlines())]


def main() -> int:
    """Run, print, and pass on the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, required=True)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    taken = measure(options.command, int(options.gb * 1e9))
    if taken is None:
        sys.exit("this user may not make memory groups here")
    if options.json:
        options.json.write_text(json.dumps(asdict(taken)) + "\n")
    sys.stdout.write(
        f"limit {options.gb} GB: exit code {taken.code}, {taken.seconds:.0f} s, peak {taken.peak / 1e9:.2f} GB "
        f"({taken.with_files / 1e9:.2f} with files), {taken.kills} killed\n"
    )
    return taken.code


if __name__ == "__main__":
    sys.exit(main())
