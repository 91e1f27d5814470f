"""Whole objects that machines share: what ccache calls a remote storage helper, in this process.

ccache asks over a socket in the build tree (doc/remote_storage_helper_spec.md of ccache 4.14: integers of the host, a
byte for each question and answer). It gets and gives its own entries, which have a checksum inside; we put their key
and a sha256 of both around them, so that a damaged or misplaced one is none.
"""

from __future__ import annotations

import hashlib
import socketserver
import struct
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from scripts.compile.backends import LARGEST
from scripts.compile.exchange import Exchange
from scripts.compile.socket_server import SocketServer, listen

PLACE = "objects"  # folder in the backend
_FORM = b"wheelsmith object 1\n"
_GREETING = b"\x01\x01\x00"  # version 1 of the protocol, one capability: get, put and remove
_GET, _PUT, _REMOVE, _STOP = range(4)
_DONE, _NOT_DONE = b"\x00", b"\x01"
_SAVES = 10.0  # seconds that an object saves, for want of a better figure: a light unit takes as long


@dataclass
class ObjectCounts:
    """Entries of ccache that were taken over, asked for in vain, damaged."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0


class SharedObjects:
    """A backend behind ccache's folder of objects."""

    def __init__(self, exchange: Exchange) -> None:
        self.counts = ObjectCounts()
        self._exchange = exchange
        self._server: SocketServer | None = None

    def open(self, path: Path) -> None:
        """Listen on a socket at `path`. Raises OSError."""
        self._server = listen(path, _Client, self)

    def get(self, key: bytes) -> bytes | None:
        """Return an entry, None when the backend has none that is whole and this key's."""
        found = self._exchange.get(_name(key))
        value = None if found is None else unwrap(found, key)
        with self._exchange.lock:
            self.counts.misses += found is None
            self.counts.damaged += found is not None and value is None
            self.counts.hits += value is not None
        if value is not None:
            self._exchange.saved(_SAVES)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Send an entry, soon."""
        self._exchange.send(_name(key), lambda: wrap(key, value), held=len(value))

    def close(self) -> None:
        """Listen no more."""
        if self._server:
            self._server.leave()


class _Client(socketserver.StreamRequestHandler):
    """A ccache's questions, one after the other."""

    server: SocketServer

    def handle(self) -> None:
        """Answer until it has gone, or asks what it should not."""
        objects = self.server.owner
        assert isinstance(objects, SharedObjects)  # noqa: S101
        self.wfile.write(_GREETING)
        while question := self.rfile.read(1):
            if question[0] not in {_GET, _PUT, _REMOVE}:
                self.wfile.write(_DONE if question[0] == _STOP else b"")
                return
            key = _exactly(self.rfile, _exactly(self.rfile, 1)[0])
            if question[0] == _GET:
                value = objects.get(key)
                answer = _NOT_DONE if value is None else _DONE + struct.pack("=Q", len(value)) + value
            elif question[0] == _PUT:
                size = struct.unpack("=xQ", _exactly(self.rfile, 9))[0]
                if size > LARGEST:
                    return
                objects.put(key, _exactly(self.rfile, size))
                answer = _DONE
            else:
                answer = _NOT_DONE
            self.wfile.write(answer)


def _exactly(file: BufferedIOBase, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def wrap(key: bytes, value: bytes) -> bytes:
    """Return what lies in the backend for an entry of ccache."""
    rest = key.hex().encode() + b"\n" + value
    return _FORM + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def unwrap(data: bytes, key: bytes) -> bytes | None:
    """Return the entry of ccache, None when it is not whole or not this key's."""
    head, digest, rest = data[: len(_FORM)], data[len(_FORM) : len(_FORM) + 65], data[len(_FORM) + 65 :]
    if head != _FORM or digest != hashlib.sha256(rest).hexdigest().encode() + b"\n":
        return None
    named, _, value = rest.partition(b"\n")
    return value if named == key.hex().encode() else None


def _name(key: bytes) -> str:
    text = key.hex() or "none"
    return f"{PLACE}/{text[:2]}/{text[2:]}"
