"""Run a command of wheelsmith in a process of its own and measure it: CPU seconds, and memory at its peak.

The process limits and measures itself: what the kernel tells the parent about a child's memory begins with the
parent's own, from before the child's exec. It runs without coverage, which would be measured along, and SECONDS are
seconds of the machine on which a fixed loop takes `_RULER`: a slower machine, or one whose cores are shared, has more.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.core.paths import ROOT

SECONDS, MEGABYTES = 5.0, 300
_KILL = 20  # CPU seconds after which the kernel ends it: the test fails instead of running for minutes
_ADDRESSES = 3 << 30  # bytes of address space
_RULER = 0.25  # CPU seconds of `pace`'s loop where the limits were set


@dataclass(frozen=True)
class Run:
    """What a command did."""

    code: int
    text: str
    seconds: float
    """CPU seconds, Python's start (0.6 s) among them; all that were allowed when it was killed."""
    megabytes: float
    pace: float
    """How many times as long as where the limits were set this process took for a fixed loop; at least 1."""

    def check(self) -> None:
        """Fail unless it stayed within the bounds and ended as a command should."""
        allowed = SECONDS * self.pace
        assert self.seconds < allowed, f"{self.seconds:.1f} CPU seconds of {allowed:.1f}\n{self.text[-500:]}"
        assert self.megabytes < MEGABYTES, f"{self.megabytes:.0f} MB\n{self.text[-500:]}"
        assert self.code in {0, 2, 9}, f"exit code {self.code}\n{self.text[-2000:]}"
        assert "did not foresee" not in self.text


def run_bounded(module: str, *arguments: object) -> Run:
    """Run `python -m MODULE ARGUMENTS` within limits that the kernel enforces; return what it took."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "tests.bounded", file.name, module, *map(str, arguments)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        text = Path(file.name).read_text()
    took = json.loads(text) if text else {"seconds": float(_KILL), "megabytes": 0.0, "pace": 1.0}
    return Run(done.returncode, done.stdout, **took)


def pace() -> float:
    """Return how many times as long as where the limits were set this process takes for a fixed loop; at least 1."""
    started, value = time.process_time(), 0
    for number in range(2_000_000):
        value = (value * 31 + number) & 0xFFFFFFFF
    return max(1.0, (time.process_time() - started) / _RULER)


def peak_megabytes() -> float:
    """Return the most memory that this process had at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def _measure(target: Path) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    target.write_text(json.dumps({"seconds": seconds, "megabytes": peak_megabytes(), "pace": pace()}))


def _main(arguments: Sequence[str]) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_KILL, _KILL))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    atexit.register(_measure, Path(arguments[0]))
    sys.argv = list(arguments[1:])
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
