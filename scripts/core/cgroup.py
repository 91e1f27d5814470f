"""Control groups of this process: memory and CPU limits along the whole path, and kills for want of memory.

Version 1 and 2, mounted wherever /proc/self/mountinfo says. A limit anywhere between the process's group and the root
binds, so all groups on that path are read; a container that sees its group as the root has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
_UNLIMITED = 1 << 60  # version 1 says "no limit" with a number near 2^63
_MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class _Mount:
    root: PurePosixPath
    """The group that is mounted, as named in /proc/self/cgroup."""
    point: Path
    controllers: frozenset[str]
    """Of version 1; empty for version 2, where one hierarchy has them all."""


def memory_left(proc: Path = PROC) -> int | None:
    """Return the bytes until the nearest memory limit on the path; None without one. Page cache counts as free."""
    left = [
        max(0, limit - used + _page_cache(folder))
        for folder in groups("memory", proc)
        for limit, used in _limits(folder)
    ]
    return min(left, default=None)


def memory_limit(proc: Path = PROC) -> int | None:
    """Return the lowest memory limit on the path in bytes; None without one."""
    return min((limit for folder in groups("memory", proc) for limit, _ in _limits(folder)), default=None)


def cpu_quota(proc: Path = PROC) -> float | None:
    """Return the lowest CPU quota on the path, in cores; None without one."""
    quotas = [quota for folder in groups("cpu", proc) if (quota := _quota(folder))]
    return min(quotas, default=None)


def oom_kills(proc: Path = PROC) -> int | None:
    """Return how many processes the kernel killed for want of memory: in this group, else on the whole machine.

    None where the kernel does not count them.
    """
    for folder in _innermost("memory", proc):
        for name in ("memory.events", "memory.oom_control"):
            if (count := _row(folder / name, "oom_kill")) is not None:
                return count
    return _row(proc / "vmstat", "oom_kill")


def groups(controller: str, proc: Path = PROC) -> list[Path]:
    """Return the folders of this process's groups that may limit a controller, innermost first in each hierarchy."""
    found = []
    for mount, inner in _placed(controller, proc):
        found += [mount.point / part for part in (inner, *inner.parents)]
    return found


def _innermost(controller: str, proc: Path) -> list[Path]:
    return [mount.point / inner for mount, inner in _placed(controller, proc)]


def _placed(controller: str, proc: Path) -> Iterator[tuple[_Mount, PurePosixPath]]:
    """Yield each hierarchy that has the controller, with this process's group relative to what is mounted of it."""
    paths = _paths(proc)
    for mount in _mounts(proc):
        name = controller if controller in mount.controllers else "" if not mount.controllers else None
        if name is None or name not in paths:
            continue
        path = paths[name]
        inside = path.is_relative_to(mount.root)
        yield mount, path.relative_to(mount.root) if inside else PurePosixPath()


def _paths(proc: Path) -> dict[str, PurePosixPath]:
    """Return this process's group by controller; under "" that of version 2."""
    paths = {}
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for name in controllers.split(","):
            paths[name] = PurePosixPath(path or "/")
    return paths


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _text(proc / "self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in {"cgroup", "cgroup2"}:
            continue
        controllers = frozenset(kinds[2].split(",")) if kinds[0] == "cgroup" else frozenset()
        yield _Mount(PurePosixPath(_plain(fields[3])), Path(_plain(fields[4])), controllers)


def _plain(field: str) -> str:
    """Undo the octal escapes of mountinfo (blanks, tabs, backslashes)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _limits(folder: Path) -> Iterator[tuple[int, int]]:
    for limit_name, used_name in _MEMORY_FILES:
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            yield limit, used


def _quota(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and quota > 0 and period else None


def _page_cache(folder: Path) -> int:
    total = _row(folder / "memory.stat", "total_inactive_file")
    return total if total is not None else _row(folder / "memory.stat", "inactive_file") or 0


def _row(path: Path, name: str) -> int | None:
    """Return the number of the row `name NUMBER` of a file; None without it."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path).split()[0])
    except (ValueError, IndexError):  # absent, or "max"
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
