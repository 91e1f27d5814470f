"""Fixtures that several tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.downloads.access import Access
from tests.accesses import make_access

# A shell starts background jobs with SIGINT ignored, and whatever tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline of the clock fails on a machine that is busy, and says nothing about the code.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Return an empty cache."""
    return Cache.open(tmp_path / "cache")


@pytest.fixture
def console() -> Console:
    """Return a console that writes where capsys reads."""
    return Console()


@pytest.fixture
def access(cache: Cache, console: Console) -> Access:
    """Return an Access with them, and the tests' environment."""
    return make_access(cache, console)
