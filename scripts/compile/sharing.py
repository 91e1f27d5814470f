"""What machines share through one backend: device steps, and ccache's objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scripts.compile.backends import BackendError, open_backend
from scripts.compile.device_steps import SOCKET
from scripts.compile.exchange import Exchange
from scripts.compile.shared_objects import PLACE as OBJECTS
from scripts.compile.shared_objects import SharedObjects
from scripts.compile.shared_steps import PLACE as STEPS
from scripts.compile.shared_steps import SharedSteps
from scripts.core.errors import FetchError
from scripts.downloads.access import Access

OBJECT_SOCKET = "shared-objects"  # in the build tree


class Sharing:
    """Steps and objects of one build, open to its compiler calls."""

    def __init__(self, exchange: Exchange, store: Path) -> None:
        self._exchange = exchange
        self.steps, self.objects = SharedSteps(exchange, store), SharedObjects(exchange)

    def open(self, tree: Path) -> str:
        """Try the backend out and listen in the build tree; return what is wrong, "" when nothing."""
        why = self._exchange.open()
        if why:
            return why
        try:
            self.steps.open(tree / SOCKET)
            self.objects.open(tree / OBJECT_SOCKET)
        except OSError as error:
            return f"no socket can be made in {tree}: {error.strerror}"
        return ""

    def trouble(self) -> str:
        """Return why the backend is used no longer, "" while all is well."""
        return self._exchange.trouble()

    def drain(self) -> None:
        """Wait until what was made is sent, as long as something is."""
        self._exchange.drain()

    def counts(self) -> dict[str, int]:
        """Return what the report says of it."""
        counts, done = self._exchange.counts, (self.steps.counts, self.objects.counts)
        return {
            "step_hits": self.steps.counts.hits,
            "steps_sent": counts.sent.get(STEPS, 0),
            "objects_sent": counts.sent.get(OBJECTS, 0),
            "errors": counts.errors + counts.refused + sum(item.damaged for item in done),
        }

    def close(self) -> None:
        """Listen no more, and let those go that wait."""
        self.steps.close()
        self.objects.close()
        self._exchange.close()


def share(variables: Mapping[str, str], access: Access, *, store: Path, tree: Path) -> tuple[Sharing | None, str]:
    """Share the steps in the folder `store`, and objects, through the backend that SCCACHE_* variables name.

    Returns (sharing, ""), (None, why not), or (None, "") for a backend that only sccache speaks.
    """
    try:
        backend = open_backend(variables, access)
    except (BackendError, FetchError) as error:
        return None, str(error)
    if backend is None:
        return None, ""
    sharing = Sharing(Exchange(backend), store)
    why = sharing.open(tree)
    if why:
        sharing.close()
    return (None, why) if why else (sharing, "")
