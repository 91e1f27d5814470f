from __future__ import annotations

from pathlib import Path

import pytest

from scripts.machine import Machine, default_jobs, read_machine

V1_MEMORY = {"memory/memory.limit_in_bytes": "3000000", "memory/memory.usage_in_bytes": "1000000"}


def cgroup(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "gigabytes"),
    [
        ({"memory.max": "3000000\n", "memory.current": "1000000\n"}, 0.002),
        ({"memory.max": "3000000", "memory.current": "2900000", "memory.stat": "inactive_file 900000\n"}, 0.001),
        ({"memory.max": "3000000", "memory.current": "9000000", "memory.stat": "torn"}, 0.0),
        (V1_MEMORY, 0.002),
        ({**V1_MEMORY, "memory/memory.stat": "total_inactive_file 500000\n"}, 0.0025),
    ],
)
def test_memory_is_what_the_cgroup_leaves(tmp_path: Path, files: dict[str, str], gigabytes: float) -> None:
    assert read_machine(cgroup(tmp_path, files)).memory_gb == pytest.approx(gigabytes)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max", "memory.current": "1"},
        {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"},
    ],
)
def test_without_a_limit_the_machine_s_memory_counts(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_machine(cgroup(tmp_path, files)).memory_gb > 0.05


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_quota(
    tmp_path: Path, files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    assert read_machine(cgroup(tmp_path, files)).cores == cores


@pytest.mark.parametrize(("memory", "jobs"), [(0.5, 1), (4.0, 1), (7.1, 2), (1000, 8)])
def test_jobs_fit_into_cores_and_memory(memory: float, jobs: int) -> None:
    assert default_jobs(Machine(8, memory), 3.0) == jobs
