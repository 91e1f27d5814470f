"""nvcc's device steps (cicc, ptxas) as things that are kept: who runs them, where they lie, how many were taken over.

steps.py runs them, behind ccache, in each unit that ccache has not: an object is for one list of archs, a step is for
one arch. See docs/caching.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.compile.standalone.steps import SETTINGS
from scripts.core.files import write_changed

STANDALONE = Path(__file__).parent / "standalone"
PROGRAMS = ("launcher.py", "reach.py", "steps.py", "step_plan.py", "step_sharing.py", "step_store.py", "unit_names.h")
SOCKET = "shared-steps"  # in the build tree, while steps are shared
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class DeviceSteps:
    """How a build tree's units are compiled step by step."""

    program: Path
    """steps.py under the name that compilers see, with an interpreter in its first line."""
    store: Path
    """The folder of the results; it holds at most as much as the objects' cache."""
    identity: str
    """What the toolkit's programs contain."""

    def variables(self, *, shared: bool = False, behind: Sequence[str] = ()) -> dict[str, str]:
        """Return what has ccache call steps.py before nvcc.

        `shared`: steps of other machines are asked for (shared_steps.py). `behind`: what to put before each call that
        is not taken apart: units of C++, and of nvcc as a whole.
        """
        settings: dict[str, object] = {"store": str(self.store), "identity": self.identity}
        if shared:
            settings["shared"] = str(self.program.with_name(SOCKET))
        if behind:
            settings["behind"] = list(behind)
        return {"CCACHE_PREFIX": str(self.program), SETTINGS: json.dumps(settings)}

    def counts(self, events: Path, begin: int) -> dict[str, float]:
        """Return what steps.py said after the first `begin` bytes of the event file; {} when it said nothing."""
        found = [event for event in read_events(events, begin) if event.get("event") == "steps"]
        if not found:
            return {}
        totals = {name: float(sum(event.get(name, 0) for event in found)) for name in ("hits", "misses")}
        saved = round(sum(event.get("saved", 0.0) for event in found), 1)
        return {**totals, "saved_seconds": saved, "whole": float(sum("whole" in event for event in found))}

    def prune(self, size: str) -> int:
        """Delete the entries that were not used for longest until `size` (`10G`) holds all; return the bytes left."""
        entries = []
        for path in self.store.glob("??/*"):
            with suppress(OSError):
                about = path.stat()
                entries.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, taken, path in sorted(entries):
            if total <= bytes_of(size):
                break
            with suppress(OSError):
                path.unlink()
                total -= taken
        return total


def bytes_of(size: str) -> float:
    """Return what ccache understands by a size (`10G`, `500M`, `2.5 GiB`); 10 GB when it is none, as is its default."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])?(i?)B?\s*", size, re.IGNORECASE)
    if not match:
        return 10e9
    unit = (match[2] or "G").upper()
    return float(match[1]) * (1024 ** (1 + "KMGT".index(unit)) if match[3] else _UNITS[unit])


def put_programs(tree: Path, python: Path) -> None:
    """Give a build tree today's launcher and steps.py: how units are run may change, what they compile does not.

    `python` is the interpreter under the name that compilers see. A file that is as it should be keeps its time: each
    CUDA unit reads unit_names.h, and ninja would compile all of them again.
    """
    for name in PROGRAMS:
        data = (STANDALONE / name).read_bytes()
        if name == "steps.py":  # ccache calls it as a program; the kernel passes one word to an interpreter
            write_changed(tree / name, f"#!{python} -SE\n".encode() + data, mode=0o755)
        else:
            write_changed(tree / name, data)


def read_events(events: Path, begin: int) -> Iterator[dict]:  # type: ignore[type-arg]
    """Yield what launchers wrote after the first `begin` bytes of their file; torn lines are left out."""
    if not events.exists():
        return
    with events.open("rb") as file:
        file.seek(begin)
        for line in file:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event
