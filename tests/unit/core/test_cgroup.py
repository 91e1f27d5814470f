from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core import cgroup
from tests.groups import fake_proc
from tests.measure_memory import measure


@pytest.mark.parametrize("version", [1, 2])
def test_all_groups_from_the_process_to_the_root_are_read(tmp_path: Path, version: int) -> None:
    proc = fake_proc(tmp_path, {}, version=version)
    mount = tmp_path / "cgroup mount"
    assert cgroup.groups("memory", proc) == [mount / "job/unit", mount / "job", mount]
    assert cgroup.groups("cpu", proc) == cgroup.groups("memory", proc)
    assert cgroup.groups("pids", proc) == ([] if version == 1 else cgroup.groups("memory", proc))


def test_a_container_that_sees_only_its_own_group_has_it_as_the_root(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, {"": {"memory.limit_in_bytes": "7000", "memory.usage_in_bytes": "5000"}}, version=1)
    info = proc / "self/mountinfo"
    info.write_text(info.read_text().replace("0:28 / ", "0:28 /job/unit "))
    assert cgroup.groups("memory", proc) == [tmp_path / "cgroup mount"]
    assert (cgroup.memory_left(proc), cgroup.memory_limit(proc)) == (2000, 7000)
    info.write_text(info.read_text().replace("0:28 /job/unit ", "0:28 /another/place "))
    assert cgroup.memory_limit(proc) == 7000


@pytest.mark.parametrize(
    ("version", "files", "kills"),
    [
        (2, {"memory.events": "low 0\noom 4\noom_kill 3\noom_group_kill 9\n"}, 3),
        (1, {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"}, 2),
        (1, {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 77),
        (2, {}, 77),
    ],
)
def test_kills_are_counted_in_the_process_s_own_group_or_on_the_machine(
    tmp_path: Path, version: int, files: dict[str, str], kills: int
) -> None:
    above = {"memory.events": "oom_kill 50\n", "memory.oom_control": "oom_kill 50\n"}
    proc = fake_proc(tmp_path, {"job": above, "job/unit": files}, version=version)
    (proc / "vmstat").write_text("pgfault 12\noom_kill 77\n")
    assert cgroup.oom_kills(proc) == kills


def test_without_any_group_or_counter_nothing_limits_and_nothing_is_known(tmp_path: Path) -> None:
    assert cgroup.groups("memory", tmp_path) == []
    assert cgroup.memory_left(tmp_path) is None
    assert cgroup.cpu_quota(tmp_path) is None
    assert cgroup.oom_kills(tmp_path) is None


@given(st.binary(max_size=80), st.binary(max_size=120), st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_no_contents_of_these_files_stop_a_build(tmp_path: Path, group: bytes, mounts: bytes, limit: bytes) -> None:
    folder = tmp_path / "x"
    (folder / "self").mkdir(parents=True, exist_ok=True)
    (folder / "self/cgroup").write_bytes(b"0::/\n" + group)
    mount = f"1 2 0:3 / {folder} rw - cgroup2 none rw\n".encode()
    (folder / "self/mountinfo").write_bytes(mount + mounts)
    for name in ("memory.max", "memory.current", "memory.stat", "cpu.max", "memory.events"):
        (folder / name).write_bytes(limit)
    left, quota = cgroup.memory_left(folder), cgroup.cpu_quota(folder)
    assert left is None or left >= 0
    assert quota is None or quota >= 0
    cgroup.oom_kills(folder)


HUNGRY = "import time; held = bytearray(b'x') * 80_000_000; time.sleep(0.5)"


def test_a_command_is_measured_in_a_real_group_and_killed_beyond_its_limit() -> None:
    taken = measure([sys.executable, "-c", HUNGRY], 200_000_000)
    if taken is None:
        pytest.skip("this user may not make memory groups here")
    assert (taken.code, taken.kills) == (0, 0)
    assert 80e6 < taken.peak < 120e6
    assert taken.peak <= taken.with_files + 1e6
    refused = measure([sys.executable, "-c", HUNGRY], 60_000_000)
    assert refused is not None
    assert (refused.code, refused.kills) == (-9, 1)
