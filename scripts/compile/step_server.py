"""The socket in a build tree over which units ask for device steps that other machines made (shared_steps.py)."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

_QUESTION = 4096  # bytes at most


class Steps(Protocol):
    """Who answers."""

    def fetch(self, key: str) -> bool:
        """Whether an entry lies in the local folder now."""
        ...

    def offer(self, key: str) -> None:
        """Hear that an entry was made, which lies in the local folder."""
        ...


class StepServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens; a thread per unit that compiles."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: str, path: Path, steps: Steps) -> None:
        self.steps, self._path = steps, path
        self._units: set[socket.socket] = set()
        super().__init__(address, _Unit)

    def serve(self) -> None:
        """Listen until `leave`."""
        self.serve_forever(poll_interval=0.05)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a unit's thread."""
        self._units.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Leave a unit that has gone."""
        self._units.discard(request)
        super().shutdown_request(request)

    def leave(self) -> None:
        """Leave everybody."""
        self.shutdown()
        self.server_close()
        self._path.unlink(missing_ok=True)
        for unit in list(self._units):
            with suppress(OSError):
                unit.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a unit that has ended is no error."""


class _Unit(socketserver.StreamRequestHandler):
    """A unit's questions, one after the other."""

    server: StepServer

    def handle(self) -> None:
        """Answer until the unit has gone, or asks what no unit of ours would."""
        while line := self.rfile.readline(_QUESTION):
            question = None
            with suppress(ValueError, RecursionError):
                question = json.loads(line)
            if not isinstance(question, dict):
                return
            if isinstance(question.get("get"), str):
                self.wfile.write(b"have\n" if self.server.steps.fetch(question["get"]) else b"no\n")
            elif isinstance(question.get("put"), str):
                self.server.steps.offer(question["put"])


def listen(path: Path, steps: Steps) -> StepServer:
    """Listen on a socket at `path`, for this user only. Raises OSError."""
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:  # an address has 108 bytes, a path may have more
        server = StepServer(f"/proc/self/fd/{folder}/{path.name}", path, steps)
    finally:
        os.close(folder)
    path.chmod(0o600)
    return server


def start_thread(target: Callable[[], object]) -> threading.Thread:
    """Start a thread that does not keep this process alive."""
    thread = threading.Thread(target=target, name="shared steps", daemon=True)
    thread.start()
    return thread
