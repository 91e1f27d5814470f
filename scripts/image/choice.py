"""Which engine to use: the one that was asked for, else the first that works here."""

from __future__ import annotations

from pathlib import Path

from scripts.core.errors import ImageError, UsageError
from scripts.downloads.access import Access
from scripts.image.buildah import Buildah
from scripts.image.docker import Docker
from scripts.image.engine import Engine
from scripts.image.podman import Podman

ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (Docker, Podman, Buildah)}


def find_engine(wanted: str, log: Path, access: Access) -> Engine:
    """Return the engine that was asked for, or with `auto` the first that works. Raises ImageError, UsageError."""
    if wanted not in {*ENGINES, "auto"}:
        raise UsageError(f"there is no engine {wanted!r}", fix=f"choose from: {', '.join(ENGINES)}, auto")
    said = []
    for name in ENGINES if wanted == "auto" else (wanted,):
        engine = ENGINES[name](log, access)
        trouble = engine.trouble()
        if trouble is None:
            return engine
        said.append(f"{name}: {trouble}")
    raise ImageError(
        "no engine can build an image here" if wanted == "auto" else f"{wanted} cannot build an image here",
        why="; ".join(said),
        fix=["apt-get install buildah (needs no daemon, and works as root in a sandbox)", "start the docker daemon"],
    )
