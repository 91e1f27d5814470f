"""A unit's connection to the steps of other machines, which wheelsmith's process holds (shared_steps.py).

Secrets and client libraries stay in that process: a unit says a key, and the entry then lies in the local folder or
not. Standard library only: it lies in the build tree.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes 10 ms to import
if TYPE_CHECKING or __package__:
    from scripts.compile.standalone.launcher import Turn
else:  # in a build tree
    from launcher import Turn

LIMIT = 30.0  # seconds that a unit waits for an answer; the other side gives up before


class Sharing:
    """What other machines made, as one unit asks for it. After one question without an answer it asks no more."""

    def __init__(self, path: str) -> None:
        self._turn = Turn(path)
        self._lost = self._turn.socket is None
        if self._turn.socket is not None:
            self._turn.socket.settimeout(LIMIT)

    def fetch(self, key: str) -> bool:
        """Whether an entry lies in the local folder now."""
        if self._lost:
            return False
        answer = self._turn.ask({"get": key}, alone="no")
        self._lost = answer not in {"have", "no"}  # a late answer would be taken for that to another question
        return answer == "have"

    def offer(self, key: str) -> None:
        """Say that an entry was made, which lies in the local folder."""
        if not self._lost:
            self._turn.tell({"put": key})

    def close(self) -> None:
        """Leave."""
        self._turn.close()
