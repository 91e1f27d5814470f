"""What every stage that may download needs: cache, console, mirrors, certificates, whether it is offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.core import interrupt
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.downloads.mirrors import Mirror


@dataclass(frozen=True)
class Access:
    """How repositories are reached."""

    cache: Cache
    console: Console
    mirrors: Sequence[Mirror]
    offline: bool
    ca_bundle: str = ""
    pause: Callable[[float], None] = interrupt.pause
