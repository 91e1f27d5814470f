"""Device steps that machines share: what is taken, what is sent, and when no more is asked."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.compile import exchange
from scripts.compile.backends import BackendError, RefusedError
from scripts.compile.exchange import Counts, Exchange
from scripts.compile.shared_steps import SharedSteps
from scripts.compile.sharing import Sharing as SharedLevel
from scripts.compile.standalone import step_sharing
from scripts.compile.standalone.step_sharing import Sharing
from scripts.compile.standalone.step_store import Store, pack, unpack
from tests.support import wait_for

KEY = "ab" + "0" * 62
OTHER = "cd" + "1" * 62


class Memory:
    """A backend in memory; `fault` is raised by what `faulty` names."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.faulty: dict[str, Exception] = {}
        self.wait: Callable[[], object] = lambda: None
        self.closed = False

    def get(self, name: str) -> bytes | None:
        self.wait()
        if "get" in self.faulty:
            raise self.faulty["get"]
        return self.held.get(name)

    def put(self, name: str, data: bytes) -> None:
        if "put" in self.faulty:
            raise self.faulty["put"]
        self.held[name] = data

    def close(self) -> None:
        self.closed = True


def entry(key: str = KEY, seconds: float = 7.0) -> bytes:
    return pack(key, [[b"cubin"]], b"said", seconds)


def place(key: str) -> str:
    return f"steps/{key[:2]}/{key[2:]}"


class Level(SharedSteps):
    """Steps with their exchange."""

    def __init__(self, memory: Memory, folder: Path) -> None:
        self.exchange = Exchange(memory)
        super().__init__(self.exchange, folder / "store")


@contextmanager
def shared(memory: Memory, folder: Path) -> Iterator[Level]:
    steps = Level(memory, folder)
    assert steps.exchange.open() == ""
    steps.open(folder / "socket")
    try:
        yield steps
    finally:
        steps.close()
        steps.exchange.close()


def test_an_entry_goes_from_one_folder_to_the_other_through_unit_and_socket(tmp_path: Path) -> None:
    memory = Memory()
    (tmp_path / "made").write_bytes(b"cubin")
    with shared(memory, tmp_path) as steps, closing(Sharing(str(tmp_path / "socket"))) as sharing:
        store = Store(str(tmp_path / "store"), sharing)
        assert store.get(KEY, [str(tmp_path / "target")]) is None
        store.put(KEY, [str(tmp_path / "made")], b"said", 7.0)
        wait_for(lambda: place(KEY) in memory.held)
        steps.exchange.drain()
        assert (steps.counts.hits, steps.exchange.counts.sent) == (0, {"steps": 1})
    (tmp_path / "two").mkdir()
    with shared(memory, tmp_path / "two") as steps, closing(Sharing(str(tmp_path / "two" / "socket"))) as sharing:
        store = Store(str(tmp_path / "two" / "store"), sharing)
        assert store.get(KEY, [str(tmp_path / "target")]) == (b"said", 7.0)
        assert (tmp_path / "target").read_bytes() == b"cubin"
        assert store.get(KEY, [str(tmp_path / "target")]) == (b"said", 7.0)  # out of the folder
        assert steps.counts.hits == 1
    assert memory.closed
    assert not (tmp_path / "two" / "socket").exists()


@pytest.mark.parametrize("found", [b"", b"x", entry(OTHER), entry()[:-1], entry() + b"x", b"wheelsmith step 1\n"])
def test_what_is_not_the_keys_own_entry_is_not_taken(found: bytes, tmp_path: Path) -> None:
    memory = Memory()
    memory.held[place(KEY)] = found
    with shared(memory, tmp_path) as steps:
        assert not steps.fetch(KEY)
        assert steps.counts.damaged == 1
        assert steps.exchange.trouble() == ""
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.parametrize("key", ["", "ab", "../../../etc/passwd", "AB" + "0" * 62, KEY + "\n", "é" * 64])
def test_what_is_no_key_is_not_asked_for(key: str, tmp_path: Path) -> None:
    memory = Memory()
    with shared(memory, tmp_path) as steps:
        memory.faulty["get"] = AssertionError("asked")
        assert not steps.fetch(key)
        steps.offer(key)
        steps.exchange.drain()
        assert set(memory.held) == {"trial"}


def test_three_faults_in_a_row_end_it_and_fewer_do_not(tmp_path: Path) -> None:
    memory = Memory()
    with shared(memory, tmp_path) as steps:
        for _ in range(2):
            memory.faulty["get"] = BackendError("broken pipe")
            assert [steps.fetch(KEY), steps.fetch(KEY)] == [False, False]
            memory.faulty.clear()
            assert not steps.fetch(KEY)
            assert steps.exchange.trouble() == ""
        memory.faulty["get"] = BackendError("broken pipe")
        for _ in range(3):
            steps.fetch(KEY)
        assert steps.exchange.trouble() == "3 faults in a row, the last one: broken pipe"
        memory.faulty["get"] = AssertionError("asked again")
        assert not steps.fetch(KEY)


def test_a_lookup_that_hangs_ends_it_and_the_unit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STALL_LIMIT", 0.2)
    memory, ended, answers = Memory(), threading.Event(), []
    with shared(memory, tmp_path) as steps, closing(Sharing(str(tmp_path / "socket"))) as sharing:
        memory.wait = lambda: ended.wait(20)
        unit = threading.Thread(target=lambda: answers.append(sharing.fetch(KEY)))
        unit.start()
        wait_for(lambda: steps.exchange.trouble() != "")
        assert steps.exchange.trouble() == "a lookup has taken 0 s"
        steps.close()
        unit.join(5)
        assert answers == [False]
        assert not sharing.fetch(KEY)
        assert not memory.closed  # it is in use
        ended.set()


def test_a_unit_waits_only_so_long_and_asks_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_sharing, "LIMIT", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "socket"))
        silent.listen()
        with closing(Sharing(str(tmp_path / "socket"))) as sharing:
            assert [sharing.fetch(KEY), sharing.fetch(KEY)] == [False, False]
            sharing.offer(KEY)
        connection, _ = silent.accept()
        assert connection.recv(1000).count(b"\n") == 1
        connection.close()
    assert not Sharing(str(tmp_path / "nobody")).fetch(KEY)


def test_lookups_that_cost_more_than_they_save_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "GRACE", 0.0)
    monkeypatch.setattr(exchange, "LOST_LIMIT", 0.1)
    memory = Memory()
    memory.held[place(KEY)] = entry(seconds=0.2)
    with shared(memory, tmp_path) as steps:
        memory.wait = lambda: time.sleep(0.15)
        assert steps.fetch(KEY)
        assert steps.exchange.trouble() == ""  # it has saved as much
        assert not steps.fetch(OTHER)
        assert not steps.fetch(OTHER)
        assert "saved 0" in steps.exchange.trouble()


def test_a_backend_that_only_gives_is_read(tmp_path: Path) -> None:
    memory = Memory()
    memory.held[place(KEY)] = entry()
    memory.faulty["put"] = RefusedError("HTTP 403")
    with shared(memory, tmp_path) as steps:
        assert steps.fetch(KEY)
        steps.offer(KEY)
        steps.exchange.drain()
        assert (steps.counts.hits, steps.exchange.counts) == (1, Counts())


@pytest.mark.parametrize(
    ("fault", "trouble", "refused"), [(RefusedError("HTTP 413"), "", 5), (BackendError("reset"), "reset", 0)]
)
def test_faults_while_sending_end_it_and_what_is_too_large_does_not(
    tmp_path: Path, fault: Exception, trouble: str, refused: int
) -> None:
    memory = Memory()
    with shared(memory, tmp_path) as steps:
        memory.faulty["put"] = fault
        Store(str(tmp_path / "store")).keep(KEY, entry())
        for _ in range(5):
            steps.offer(KEY)
        steps.exchange.drain()  # waits for no more than the faults that end it
        assert trouble in steps.exchange.trouble()
        assert bool(steps.exchange.trouble()) is bool(trouble)
        assert steps.exchange.counts.refused == refused


def test_entries_that_are_gone_or_damaged_here_are_not_sent(tmp_path: Path) -> None:
    memory = Memory()
    with shared(memory, tmp_path) as steps:
        Store(str(tmp_path / "store")).keep(OTHER, entry())
        steps.offer(KEY)
        steps.offer(OTHER)
        steps.exchange.drain()
        assert set(memory.held) == {"trial"}


@pytest.mark.parametrize(
    ("faulty", "why"),
    [({"get": BackendError("HTTP 401")}, "HTTP 401"), ({"put": BackendError("HTTP 500")}, "HTTP 500")],
)
def test_a_backend_that_fails_the_trial_is_not_used(faulty: dict[str, Exception], why: str) -> None:
    memory = Memory()
    memory.faulty = faulty
    tried = Exchange(memory)
    assert tried.open() == why
    tried.close()
    assert memory.closed


def test_a_backend_that_forgets_or_hangs_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Memory):
        def put(self, name: str, data: bytes) -> None:
            pass

    assert "does not give back" in Exchange(Forgetful()).open()
    monkeypatch.setattr(exchange, "TRIAL_LIMIT", 0.1)
    memory = Memory()
    memory.wait = lambda: time.sleep(1)
    tried = Exchange(memory)
    assert "no answer" in tried.open()
    tried.close()
    assert not memory.closed  # the trial is in it


def test_no_socket_can_be_made(tmp_path: Path) -> None:
    sharing = SharedLevel(Exchange(Memory()), tmp_path)
    assert "no socket" in sharing.open(tmp_path / "nowhere")
    sharing.close()


STRANGE = [b"{}", b"[]", b'{"get": 1}', b'{"put": null}', b"[" * 4000, b'{"get": "' + b"x" * 9000]


def test_whatever_comes_over_the_socket_ends_nothing(tmp_path: Path) -> None:
    memory = Memory()
    memory.held[place(KEY)] = entry()

    @settings(max_examples=40)
    @given(st.lists(st.one_of(st.binary(max_size=50), st.sampled_from(STRANGE))))
    def ask(lines: list[bytes]) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            client.sendall(b"\n".join(lines) + b"\n")
        with closing(Sharing(str(tmp_path / "socket"))) as sharing:
            assert sharing.fetch(KEY)

    with shared(memory, tmp_path):
        ask()


NUMBERS = st.one_of(st.integers(-5, 60), st.floats(), st.text(max_size=2), st.none(), st.booleans())


@settings(max_examples=50)
@given(
    head=st.fixed_dictionaries(
        {},
        optional={
            "key": st.sampled_from([KEY, OTHER, None]),
            "sizes": st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
            "said": NUMBERS,
            "seconds": NUMBERS,
        },
    ),
    rest=st.binary(max_size=60),
)
def test_an_entry_with_a_right_digest_is_its_keys_and_whole_or_refused(head: dict[str, object], rest: bytes) -> None:
    """Who can write to the backend can write a digest as well."""
    packed = zlib.compress(json.dumps(head).encode() + b"\n" + rest)
    try:
        said, seconds, files = unpack(
            b"wheelsmith step 1\n" + hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed, KEY
        )
    except ValueError:
        return
    assert head["key"] == KEY
    assert said + b"".join(piece for pieces in files for piece in pieces) == rest
    assert 0 <= seconds <= 1e7


@given(
    files=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=3), max_size=3),
    said=st.binary(max_size=40),
    seconds=st.floats(0, 1e6),
)
def test_an_entry_is_read_as_it_was_written(files: list[list[bytes]], said: bytes, seconds: float) -> None:
    whole = pack(KEY, files, said, seconds)
    assert (unpack(whole, KEY)[0], unpack(whole, KEY)[2]) == (said, files)
    assert unpack(whole, KEY)[1] == pytest.approx(seconds, abs=0.001)
    with pytest.raises(ValueError, match="another entry"):
        unpack(whole, OTHER)
