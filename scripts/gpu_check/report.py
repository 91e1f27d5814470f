"""What is asked of a GPU check, and what is written of it after every step."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.core.console import Console
from scripts.core.errors import GpuError, WheelsmithError
from scripts.core.files import file_sha256, write_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Question:
    """What one run of gpu-check is to do."""

    wheel: Path
    json: Path | None = None
    """Where the report goes."""
    quick: bool = False
    family: Sequence[str] = ()
    """Operator families; none means all."""
    seed: int | None = None
    limit: int = 180
    """Seconds per family and engine run."""
    at_once: int = 1
    """Processes at a time."""


class Report:
    """What is written to --json after every step, and told at the end."""

    def __init__(self, options: Question, driver: str, console: Console) -> None:
        self.console, self._path = console, options.json
        self.problems: list[str] = []
        self.data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
            "wheel": {
                "name": options.wheel.name,
                "sha256": file_sha256(options.wheel),
                "size": options.wheel.stat().st_size,
            },
            "machine": {"driver": driver, "kernel": os.uname().release, "cores": len(os.sched_getaffinity(0))},
            "seed": secrets.randbelow(2**31) if options.seed is None else options.seed,
            "quick": options.quick,
            "seconds": {},
            "finished": False,
        }
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path:
            write_json(self._path, self.data)

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Run one part; whatever it meets is recorded, and the others still run."""
        self.console.stage(name)
        started = time.monotonic()
        try:
            work()
        except WheelsmithError as error:
            self.problems.append(f"{name}: {error.what} {error.why}".strip())
        except (OSError, ValueError, LookupError) as error:
            self.problems.append(f"{name}: {type(error).__name__}: {error}")
        self.data["seconds"][name] = round(time.monotonic() - started, 1)
        self.save()

    def finish(self) -> int:
        """Tell the result; raise GpuError when something is wrong."""
        self.data["problems"], self.data["ok"], self.data["finished"] = self.problems, not self.problems, True
        self.save()
        for line in self.data.get("summary", []):
            self.console.result(line)
        if self.problems:
            raise GpuError(
                f"the wheel fails on this machine: {len(self.problems)} findings",
                why=self.problems[0],
                fix="see --json for every figure; `nox -s audit -- WHEEL` says what the wheel holds for this GPU",
                detail="\n".join(self.problems),
                docs="docs/gpu-check.md",
            )
        return 0
