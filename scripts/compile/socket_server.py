"""Sockets in a build tree over which compiler calls ask this process (shared_steps.py, shared_objects.py)."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class SocketServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens; a thread per connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: str, path: Path, handler: type[socketserver.BaseRequestHandler], owner: object) -> None:
        self.owner, self._path = owner, path
        self._clients: set[socket.socket] = set()
        super().__init__(address, handler)

    def serve(self) -> None:
        """Listen until `leave`."""
        self.serve_forever(poll_interval=0.05)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a connection's thread."""
        self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Leave a client that has gone."""
        self._clients.discard(request)
        super().shutdown_request(request)

    def leave(self) -> None:
        """Leave everybody."""
        self.shutdown()
        self.server_close()
        self._path.unlink(missing_ok=True)
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a compiler call that has ended is no error."""


def listen(path: Path, handler: type[socketserver.BaseRequestHandler], owner: object) -> SocketServer:
    """Listen on a socket at `path`, for this user only, in a thread. Raises OSError."""
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:  # an address has 108 bytes, a path may have more
        server = SocketServer(f"/proc/self/fd/{folder}/{path.name}", path, handler, owner)
    finally:
        os.close(folder)
    path.chmod(0o600)
    start_thread(server.serve)
    return server


def start_thread(target: Callable[[], object]) -> threading.Thread:
    """Start a thread that does not keep this process alive."""
    thread = threading.Thread(target=target, name="shared level", daemon=True)
    thread.start()
    return thread
