"""The scheduler's decisions, with sockets for launchers and made-up memory; then with real launchers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.compile.admission import Admission, family_memory, lookahead
from scripts.compile.standalone.launcher import ADMISSION, EVENTS, FAILURES, STOPPED, arch_count, was_killed
from scripts.compile.units import read_failures
from scripts.core.machine import RESERVE
from scripts.core.paths import ROOT
from scripts.recipe.costs import CostBook
from tests.unit.recipe.test_cost_model import NOWHERE, book

GB = 1_000_000_000
UNITS = book(
    {
        "_C/short.cu": {1: (10, 1000)},
        "_C/long.cu": {1: (100, 1000)},
        "_C/wide.cu": {1: (200, 6000)},
        "_C/other.cu": {1: (50, 1000)},
    }
)


class World:
    """A scheduler with memory and kills that a test sets, and what it said."""

    def __init__(
        self, path: Path, jobs: int = 2, *, expected: int = 0, keep_going: bool = False, known: CostBook = UNITS
    ) -> None:
        self.path = path
        self.free = 100 * GB
        self.kills: int | None = 0
        self.said: list[str] = []
        self.sockets: list[socket.socket] = []
        self.admission = Admission(
            known,
            jobs=jobs,
            expected=expected,
            keep_going=keep_going,
            say=self.said.append,
            free=lambda: self.free,
            kills=lambda: self.kills,
        )

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.sockets.append(client)
        client.connect(str(self.path))
        client.settimeout(0)
        return client

    def close(self) -> None:
        for client in self.sockets:
            client.close()

    def launch(self, name: str) -> socket.socket:
        client = self.connect()
        self.tell(client, unit=f"CMakeFiles/_C.dir/csrc/{name}.o", source=f"/t/csrc/{name}", archs=1)
        return client

    def tell(self, client: socket.socket, **message: object) -> None:
        client.sendall(json.dumps(message).encode() + b"\n")

    def words(self, *clients: socket.socket) -> list[str]:
        """Let the scheduler work, and return what each launcher hears: "" for nothing yet."""
        self.admission._next_look = 0.0
        self.admission.tick()
        heard = []
        for client in clients:
            try:
                heard.append(client.recv(16).decode().strip())
            except BlockingIOError:
                heard.append("")
        return heard


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "admission")
    with made.admission.listening(made.path):
        yield made
    made.close()


def test_the_longest_units_start_first_and_no_more_than_jobs(world: World) -> None:
    clients = [world.launch(name) for name in ("short.cu", "other.cu", "long.cu")]
    assert world.words(*clients) == ["", "go", "go"]
    world.tell(clients[2], code=0)
    assert world.words(*clients[:2]) == ["go", ""]


def test_a_launcher_that_dies_frees_its_turn(world: World) -> None:
    first, second, third = (world.launch(name) for name in ("long.cu", "other.cu", "short.cu"))
    assert world.words(first, second, third) == ["go", "go", ""]
    first.close()
    assert world.words(third) == ["go"]


def test_what_does_not_fit_waits_and_smaller_ones_go_before_it(world: World) -> None:
    world.free = int(RESERVE * GB) + 3 * GB
    wide, small = world.launch("wide.cu"), world.launch("short.cu")
    assert world.words(wide, small) == ["", "go"]
    world.free = int(RESERVE * GB) + 6 * GB  # of which the small one will still take 1
    assert world.words(wide) == [""]
    world.tell(small, code=0)
    assert world.words(wide) == ["go"]


def test_a_unit_that_never_fits_starts_when_nothing_else_runs(world: World) -> None:
    world.free = 0
    clients = [world.launch(name) for name in ("wide.cu", "long.cu", "short.cu")]
    assert world.words(*clients) == ["", "go", ""]  # of those that need least, the first by name
    world.tell(clients[1], code=0)
    assert world.words(clients[0], clients[2]) == ["", "go"]
    world.tell(clients[2], code=0)
    assert world.words(clients[0]) == ["go"]


def test_memory_that_running_units_have_already_taken_is_not_counted_twice(world: World) -> None:
    script = "import sys, time; x = bytearray(400_000_000); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            resident = family_memory([child.pid, 999_999_999])
            assert 400_000_000 < resident[child.pid] < 600_000_000
            assert resident[999_999_999] == 0
            assert family_memory([os.getpid()])[os.getpid()] > resident[child.pid]  # descendants count
            first = world.launch("long.cu")
            assert world.words(first) == ["go"]
            [running] = world.admission._clients
            running.pid = child.pid
            world.free = int(RESERVE * GB) + GB + 650_000_000  # the first still grows by 0.6 GB at most
            assert world.words(world.launch("short.cu")) == ["go"]
        finally:
            child.kill()


def test_a_killed_unit_waits_until_nothing_runs_and_then_runs_alone(world: World) -> None:
    clients = [world.launch(name) for name in ("long.cu", "other.cu", "short.cu")]
    assert world.words(*clients) == ["go", "go", ""]
    world.kills = 1
    world.tell(clients[0], killed=True)
    assert world.words(*clients) == ["", "", ""]  # the third does not start either
    assert "long.cu: the kernel killed it because memory ran out; it is compiled again, alone" in world.said
    world.tell(clients[1], code=0)
    assert world.words(clients[0], clients[2]) == ["go", ""]
    world.tell(clients[0], code=0)
    assert world.words(clients[2]) == ["go"]
    assert world.admission.retried == ["/t/csrc/long.cu"]


@pytest.mark.parametrize("kills", [0, None])
def test_a_kill_that_the_kernel_did_not_count_is_called_what_it_is(world: World, kills: int | None) -> None:
    world.kills = kills
    client = world.launch("long.cu")
    assert world.words(client) == ["go"]
    world.tell(client, killed=True)
    assert world.words(client) == ["go"]
    assert "its compiler was killed (SIGKILL)" in world.said[0]


def test_a_unit_killed_alone_has_failed_and_ends_the_run(world: World) -> None:
    client = world.launch("long.cu")
    world.words(client)
    world.tell(client, killed=True)
    assert world.words(client) == ["go"]
    world.tell(client, killed=True)
    assert world.words(client) == ["stop"]
    world.tell(client, code=137)
    assert world.words(world.launch("short.cu")) == ["stop"]


def test_after_a_kill_units_are_taken_to_need_more(world: World) -> None:
    world.free = int(RESERVE * GB) + GB
    first, second = world.launch("long.cu"), world.launch("other.cu")
    world.free += GB
    assert world.words(first, second) == ["go", "go"]
    world.tell(first, killed=True)
    world.words()
    world.tell(second, code=0)
    assert world.words(first) == ["go"]
    world.tell(first, code=0)
    third, fourth = world.launch("long.cu"), world.launch("other.cu")
    assert world.words(third, fourth) == ["go", ""]


def test_a_failure_stops_what_waits_unless_told_to_keep_going(tmp_path: Path, world: World) -> None:
    patient = World(tmp_path / "patient", jobs=1, keep_going=True)
    with patient.admission.listening(patient.path):
        for scheduler, word in ((world, "stop"), (patient, "go")):
            scheduler.admission.jobs = 1
            first, second = scheduler.launch("long.cu"), scheduler.launch("short.cu")
            assert scheduler.words(first, second) == ["go", ""]
            scheduler.tell(first, code=1)
            assert scheduler.words(second) == [word]
    patient.close()


@given(st.lists(st.binary(max_size=60), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_strangers_on_the_socket_do_not_stop_a_build(world: World, sent: list[bytes]) -> None:
    stranger = world.connect()
    for part in sent:
        with suppress(BrokenPipeError):  # it has hung up already
            stranger.sendall(part + b"\n")
        world.words()
    stranger.close()
    world.words()
    assert world.admission.running == 0


@pytest.mark.parametrize("message", [b"[]\n", b"7\n", b"null\n", b'{"unit": 1}\n', b"x" * 70_000])
def test_a_stranger_is_hung_up_on(world: World, message: bytes) -> None:
    stranger = world.connect()
    stranger.sendall(message)
    for _ in range(5):
        world.words()
    assert not world.admission._clients


def test_small_machines_hold_few_launchers_back() -> None:
    assert (lookahead(100 * GB, 2), lookahead(2 * GB, 2), lookahead(0, 2)) == (64, 16, 1)


def test_more_cores_see_more_launchers_so_that_long_units_late_in_the_manifest_start_in_time() -> None:
    assert [lookahead(500 * GB, jobs) for jobs in (8, 16, 32)] == [64, 128, 256]
    assert lookahead(16 * GB, 32) == 128


def test_no_unit_starts_before_all_launchers_have_asked_so_that_the_longest_is_the_first(tmp_path: Path) -> None:
    world = World(tmp_path / "admission", expected=3)
    with world.admission.listening(world.path):
        short, other = world.launch("short.cu"), world.launch("other.cu")
        assert world.words(short, other) == ["", ""]
        wide = world.launch("wide.cu")
        assert world.words(short, other, wide) == ["", "go", "go"]
        world.tell(wide, code=0)
        assert world.words(short) == ["go"]  # what comes later waits for nobody
        world.tell(other, code=0)
        assert world.words(world.launch("long.cu")) == ["go"]
    world.close()


def test_launchers_that_never_come_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.compile.admission._GATHERING", 0.2)
    world = World(tmp_path / "admission", expected=9)
    with world.admission.listening(world.path):
        first = world.launch("short.cu")
        assert world.words(first) == [""]
        time.sleep(0.25)
        assert world.words(first) == ["go"]
    world.close()


def launcher(folder: Path, script: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "scripts/compile/standalone/launcher.py"), "sh", "-c", script, "x.cu"]
    given = {**os.environ, EVENTS: str(folder / "events"), FAILURES: str(folder), **environment}
    return subprocess.Popen(command, env=given, cwd=folder, stdout=subprocess.PIPE)


def serve(world: World, *processes: subprocess.Popen[bytes]) -> list[int]:
    deadline = time.monotonic() + 20
    while any(process.poll() is None for process in processes):
        world.admission.tick()
        time.sleep(0.01)
        assert time.monotonic() < deadline
    for process in processes:
        assert process.stdout
        process.stdout.close()
    return [process.returncode for process in processes]


def events(folder: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    return [(row["event"], row.get("code", 0)) for row in rows]


def test_a_real_unit_killed_once_is_compiled_again_and_its_run_goes_on(world: World, tmp_path: Path) -> None:
    script = "[ -e again ] && exit 0; touch again; kill -9 $$"
    assert serve(world, launcher(tmp_path, script, **{ADMISSION: str(world.path)})) == [0]
    assert events(tmp_path) == [("start", 0), ("killed", 137), ("start", 0), ("end", 0)]
    assert read_failures(tmp_path) == []


def test_a_real_unit_killed_twice_is_a_failure_and_those_that_wait_do_not_start(world: World, tmp_path: Path) -> None:
    world.admission.jobs = 1
    said = "echo \"nvcc error   : 'cicc' died due to signal 9 (Kill signal)\"; exit 9"
    first = launcher(tmp_path, said, **{ADMISSION: str(world.path)})
    while not world.admission.running:
        world.admission.tick()
    second = launcher(tmp_path, "exit 0", **{ADMISSION: str(world.path)})
    assert serve(world, first, second) == [9, STOPPED]
    assert [failure.killed for failure in read_failures(tmp_path)] == [True]


@pytest.mark.parametrize("place", ["", "absent/admission"])
def test_without_a_scheduler_a_unit_is_compiled_at_once(tmp_path: Path, place: str) -> None:
    path = str(tmp_path / "nobody") if place else ""
    process = launcher(tmp_path, "exit 0", **({ADMISSION: path} if path else {}))
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_unit_does_not_outlive_its_scheduler(world: World, tmp_path: Path) -> None:
    world.admission.jobs = 0
    process = launcher(tmp_path, "exit 0", **{ADMISSION: str(world.path)})
    while not world.admission._clients:
        world.admission.tick()
    for client in world.admission._clients:
        client.socket.close()
    process.communicate(timeout=20)
    assert process.returncode == STOPPED
    assert not (tmp_path / "events").exists()


def test_the_socket_s_path_may_be_longer_than_an_address(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    scheduler = World(folder / "admission", known=CostBook(None, NOWHERE))
    with scheduler.admission.listening(scheduler.path):
        assert serve(scheduler, launcher(tmp_path, "exit 3", **{ADMISSION: str(scheduler.path)})) == [3]
    assert list(folder.iterdir()) == []


def test_compilers_are_the_kernel_s_first_choice_when_memory_runs_out(tmp_path: Path) -> None:
    launcher(tmp_path, "cat /proc/self/oom_score_adj > score").communicate(timeout=20)
    assert int((tmp_path / "score").read_text()) >= 500


@pytest.mark.parametrize(
    ("code", "output", "killed"),
    [
        (137, b"", True),
        (1, b"g++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n", True),
        (9, b"nvcc error   : 'cicc' died due to signal 9 (Kill signal)\n", True),
        (137, b"Killed\n", True),
        (0, b"warning: Killed\n", False),
        (1, b"error: no member Killed\n", True),
        (1, b"error: 'Killed' is not declared", False),
        (139, b"Segmentation fault", False),
    ],
)
def test_a_kill_is_told_from_other_ends(*, code: int, output: bytes, killed: bool) -> None:
    assert was_killed(code, output) == killed


def test_archs_are_counted_in_the_command() -> None:
    words = "nvcc -gencode arch=compute_90,code=sm_90 -gencode=arch=compute_120,code=sm_120 -c x.cu"
    assert arch_count(words.split()) == 2
    assert arch_count(["g++", "-c", "x.cpp"]) == 1
