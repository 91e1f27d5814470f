"""ccache's questions for objects that other machines made."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.compile import exchange, shared_objects
from scripts.compile.exchange import Exchange
from scripts.compile.shared_objects import SharedObjects, unwrap, wrap
from tests.unit.compile.test_shared_steps import Memory

KEY = bytes(range(20))
NAME = f"objects/{KEY.hex()[:2]}/{KEY.hex()[2:]}"
GET, PUT, REMOVE = (bytes([number, len(KEY)]) + KEY for number in range(3))


def heard(client: socket.socket, size: int) -> bytes:
    """Return the next bytes, fewer when the other side has left."""
    found = b""
    while len(found) < size and (more := client.recv(size - len(found))):
        found += more
    return found


@contextmanager
def asked(memory: Memory, folder: Path) -> Iterator[tuple[socket.socket, SharedObjects, Exchange]]:
    shared = Exchange(memory)
    assert shared.open() == ""
    objects = SharedObjects(shared)
    objects.open(folder / "socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / "socket"))
        assert heard(client, 3) == b"\x01\x01\x00"
        try:
            yield client, objects, shared
        finally:
            objects.close()
            shared.close()


def put(value: bytes) -> bytes:
    return PUT + b"\x01" + struct.pack("=Q", len(value)) + value


def test_what_is_put_is_got_and_nothing_else(tmp_path: Path) -> None:
    memory = Memory()
    with asked(memory, tmp_path) as (client, objects, shared):
        client.sendall(GET + REMOVE + put(b"object") + put(b""))
        assert heard(client, 4) == b"\x01\x01\x00\x00"
        shared.drain()
        assert memory.held[NAME] in {wrap(KEY, b""), wrap(KEY, b"object")}  # they are sent side by side
        memory.held[NAME] = wrap(KEY, b"object")
        client.sendall(GET)
        assert heard(client, 15) == b"\x00" + struct.pack("=Q", 6) + b"object"
        assert (objects.counts.hits, objects.counts.misses, shared.counts.sent) == (1, 1, {"objects": 2})
        client.sendall(b"\x03")
        assert heard(client, 2) == b"\x00"


@pytest.mark.parametrize(
    "found", [b"", b"object", wrap(KEY[::-1], b"object"), wrap(KEY, b"object")[:-1], wrap(KEY, b"object") + b"x"]
)
def test_what_is_not_the_keys_own_is_no_hit(found: bytes, tmp_path: Path) -> None:
    memory = Memory()
    memory.held[NAME] = found
    with asked(memory, tmp_path) as (client, objects, _):
        client.sendall(GET)
        assert heard(client, 1) == b"\x01"
        assert (objects.counts.hits, objects.counts.damaged) == (0, 1)


@given(key=st.binary(max_size=255), value=st.binary(max_size=200), at=st.integers(0, 400), change=st.integers(1, 255))
def test_a_changed_entry_is_never_taken(key: bytes, value: bytes, at: int, change: int) -> None:
    whole = bytearray(wrap(key, value))
    assert unwrap(bytes(whole), key) == value
    assert unwrap(bytes(whole), key + b"x") is None
    whole[at % len(whole)] ^= change
    assert unwrap(bytes(whole), key) is None


STRANGE = [PUT + b"\x00" + b"\xff" * 8, put(b"x" * 99)[:-1], GET[:9]]


def test_whatever_is_asked_ends_nothing(tmp_path: Path) -> None:
    memory = Memory()
    memory.held[NAME] = wrap(KEY, b"object")

    @settings(max_examples=40, deadline=None)
    @given(
        st.one_of(st.binary(max_size=60), st.sampled_from([PUT + b"\x00" + b"\xff" * 8, put(b"x" * 99)[:-1], GET[:9]]))
    )
    def ask(question: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(tmp_path / "socket"))
            other.sendall(question)

    with asked(memory, tmp_path) as (client, _, _):
        ask()
        client.sendall(GET)
        assert heard(client, 15).endswith(b"object")


def test_what_waits_to_be_sent_takes_so_much_memory_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "HELD_LIMIT", 10)
    monkeypatch.setattr(shared_objects, "LARGEST", 20)
    memory = Memory()
    with asked(memory, tmp_path) as (client, _, shared):
        client.sendall(put(b"x" * 11) + put(b"x" * 10))
        assert heard(client, 2) == b"\x00\x00"
        shared.drain()
        assert shared.counts.sent == {"objects": 1}
        client.sendall(put(b"x" * 21))
        assert heard(client, 1) == b""
