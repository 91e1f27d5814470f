"""What this machine has: cores and memory that a build may use, cgroup limits included."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
RESERVE = 1.0  # GB left to the rest of the machine


@dataclass(frozen=True)
class Machine:
    """Cores and memory (GB, 10^9 bytes) available to this process."""

    cores: int
    memory_gb: float


def read_machine(cgroup: Path = CGROUP) -> Machine:
    """Return cores (affinity and cgroup quota) and memory available now (MemAvailable and cgroup limit)."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(cgroup)
    if quota:
        cores = max(1, min(cores, int(quota)))
    free = psutil.virtual_memory().available
    limit = _memory_left(cgroup)
    return Machine(cores, (min(free, limit) if limit is not None else free) / 1e9)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # absent, or "max"
        return None


def _cpu_quota(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_us, period_us = _number(cgroup / "cpu/cpu.cfs_quota_us"), _number(cgroup / "cpu/cpu.cfs_period_us")
    return quota_us / period_us if quota_us and quota_us > 0 and period_us else None


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Return the cgroup's memory limit in bytes (v2, then v1); None without one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _number(cgroup / name)
        if limit is not None and limit < 1 << 60:
            return limit
    return None


def _memory_left(cgroup: Path) -> int | None:
    """Bytes until the cgroup's memory limit (v2, then v1); None without a limit. Page cache counts as free."""
    for limit_file, usage_file, stat_file in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        limit, used = _number(cgroup / limit_file), _number(cgroup / usage_file)
        if limit is not None and used is not None and limit < 1 << 60:
            return max(0, limit - used + _page_cache(cgroup / stat_file))
    return None


def _page_cache(stat_file: Path) -> int:
    try:
        rows = dict(line.split(maxsplit=1) for line in stat_file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("inactive_file", rows.get("total_inactive_file", 0)))


def default_jobs(machine: Machine, unit_memory_gb: float) -> int:
    """Return how many units fit at once: cores, and memory by the largest unit's peak. At least 1."""
    return max(1, min(machine.cores, int((machine.memory_gb - RESERVE) / unit_memory_gb)))
