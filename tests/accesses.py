"""An Access for tests: the environment of the tests, no waiting between attempts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.downloads.access import Access
from scripts.downloads.indexes import Indexes, read_indexes
from scripts.downloads.mirrors import Mirror


@cache
def asked_indexes() -> Indexes:
    """Return the indexes of these tests' environment; pip is asked once."""
    return read_indexes(os.environ)


def make_access(
    cache: Cache,
    console: Console | None = None,
    *,
    mirrors: Sequence[Mirror] = (),
    offline: bool = False,
    environment: Mapping[str, str] = os.environ,
    indexes: Indexes | None = None,
) -> Access:
    """Return an Access to a cache, quiet unless a console is given; without `indexes` pip is asked for them."""
    shown = console or Console(quiet=True)
    return Access(cache, shown, mirrors, offline, environment, indexes, pause=lambda _seconds: None)
