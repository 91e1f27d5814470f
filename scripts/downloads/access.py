"""What a stage needs of the outside: cache, console, package indexes, mirrors, the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from scripts.core import interrupt
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.downloads.indexes import Indexes, read_indexes
from scripts.downloads.mirrors import Mirror


@dataclass(frozen=True, eq=False)
class Access:
    """How a stage reaches what is outside it; a command makes one and hands it down.

    Environment and index URLs may hold credentials: they are left out of its repr, and no one logs them.
    """

    cache: Cache
    console: Console
    mirrors: Sequence[Mirror]
    """Where git repositories are taken from instead."""
    offline: bool
    """Whether the network must not be used."""
    environment: Mapping[str, str] = field(repr=False)
    """The user's environment variables: what tools are started with, and where their settings come from."""
    given_indexes: Indexes | None = field(default=None, repr=False)
    """Package indexes to use instead of those that pip is configured with."""
    pause: Callable[[float], None] = interrupt.pause
    """Waits before the network is tried again."""

    @cached_property
    def indexes(self) -> Indexes:
        """The package indexes; pip is asked once, when they are first needed. Raises FetchError."""
        return self.given_indexes or read_indexes(self.environment)

    @property
    def ca_bundle(self) -> str:
        """Certificates that git shall trust, "" for the system's."""
        return self.environment.get("PIP_CERT") or self.environment.get("SSL_CERT_FILE", "")
