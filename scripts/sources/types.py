"""What fetching gives: archives, git trees, and both for a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """A file in the cache whose sha256 is the pinned one."""

    path: Path
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Fetched:
    """All that a recipe is built from: the source and each dependency's folder."""

    source: Archive | GitTree
    dependencies: dict[str, Path]
    received: dict[str, int]
    """Bytes taken off the wire in this run for each git source."""


@dataclass(frozen=True)
class GitTree:
    """A fetched tree. `received` is the bytes of packs this fetch took off the wire (0 when all was cached)."""

    path: Path
    commit: str
    received: int
    digest: str
    """sha256 over mode, sha256 and path of every file: see `tree_digest`."""
    files: int
    submodules: dict[str, str] = field(default_factory=dict)
