from __future__ import annotations

from pathlib import Path

import pytest

from scripts.core.machine import memory_now, read_machine
from tests.groups import fake_proc

V1_MEMORY = {"memory.limit_in_bytes": "3000000", "memory.usage_in_bytes": "1000000"}


@pytest.mark.parametrize(
    ("files", "gigabytes"),
    [
        ({"memory.max": "3000000\n", "memory.current": "1000000\n"}, 0.002),
        ({"memory.max": "3000000", "memory.current": "2900000", "memory.stat": "inactive_file 900000\n"}, 0.001),
        ({"memory.max": "3000000", "memory.current": "9000000", "memory.stat": "torn"}, 0.0),
        (V1_MEMORY, 0.002),
        ({**V1_MEMORY, "memory.stat": "inactive_file 1\ntotal_inactive_file 500000\n"}, 0.0025),
    ],
)
def test_memory_is_what_the_cgroup_leaves(tmp_path: Path, files: dict[str, str], gigabytes: float) -> None:
    machine = read_machine(fake_proc(tmp_path, {"job/unit": files}))
    assert machine.memory_gb == pytest.approx(gigabytes)
    assert machine.capacity_gb == pytest.approx(0.003)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max", "memory.current": "1"},
        {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "1"},
    ],
)
def test_without_a_limit_the_machine_s_memory_counts(tmp_path: Path, files: dict[str, str]) -> None:
    machine = read_machine(fake_proc(tmp_path, {"job/unit": files}))
    assert 0.05 < machine.memory_gb < machine.capacity_gb < 100_000


def test_the_tightest_limit_on_the_way_to_the_root_binds(tmp_path: Path) -> None:
    folders = {
        "": {"memory.max": "9000000", "memory.current": "2000000"},
        "job": {"memory.max": "5000000", "memory.current": "4000000"},
        "job/unit": {"memory.max": "4000000", "memory.current": "1000000"},
        "job/unit/below": {"memory.max": "1", "memory.current": "1"},
    }
    proc = fake_proc(tmp_path, folders)
    assert memory_now(proc) == 1_000_000
    assert read_machine(proc).capacity_gb == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("folders", "cores"),
    [
        ({}, 8),
        ({"job/unit": {"cpu.max": "max 100000"}}, 8),
        ({"job/unit": {"cpu.max": "250000 100000"}}, 2),
        ({"job/unit": {"cpu.max": "50000 100000"}}, 1),
        ({"job/unit": {"cpu.max": "400000 100000"}, "job": {"cpu.max": "300000 100000"}}, 3),
        ({"job/unit": {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}}, 3),
        ({"job/unit": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}, 8),
        ({"job/unit": {"cpu.max": "100000 0"}}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_quota(
    tmp_path: Path, folders: dict[str, dict[str, str]], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    assert read_machine(fake_proc(tmp_path, folders)).cores == cores
