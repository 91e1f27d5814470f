"""What this machine has: cores and memory that a build may use, cgroup limits included."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.core import cgroup

RESERVE = 1.0  # GB left to the rest of the machine


@dataclass(frozen=True)
class Machine:
    """Cores and memory (GB, 10^9 bytes) available to this process."""

    cores: int
    memory_gb: float
    """Free now."""
    capacity_gb: float = float("inf")
    """What there is at all, free or not: memory and swap, or the cgroup's limit."""


def read_machine(proc: Path = cgroup.PROC) -> Machine:
    """Return cores (affinity and cgroup quota) and memory, now (MemAvailable) and at all, under all cgroup limits."""
    cores = len(os.sched_getaffinity(0))
    quota = cgroup.cpu_quota(proc)
    if quota:
        cores = max(1, min(cores, int(quota)))
    total = psutil.virtual_memory().total + psutil.swap_memory().total
    limit = cgroup.memory_limit(proc)
    capacity = total if limit is None else min(total, limit)
    return Machine(cores, memory_now(proc) / 1e9, capacity / 1e9)


def memory_now(proc: Path = cgroup.PROC) -> int:
    """Return the bytes of memory that this process could still take: MemAvailable under all cgroup limits."""
    free = int(psutil.virtual_memory().available)
    left = cgroup.memory_left(proc)
    return free if left is None else min(free, left)
