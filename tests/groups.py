"""Control groups as a process sees them: a made-up /proc and hierarchy, and real ones where this user may make them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scripts.core import cgroup


def fake_proc(
    root: Path, folders: Mapping[str, Mapping[str, str]], *, version: int = 2, group: str = "/job/unit"
) -> Path:
    """Write a /proc whose process is in `group`, and the files of the groups (path below the root: name: text)."""
    mount, proc = root / "cgroup mount", root / "proc"
    (proc / "self").mkdir(parents=True)
    (mount / "job/unit").mkdir(parents=True)
    for folder, files in folders.items():
        (mount / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (mount / folder / name).write_text(text)
    point = str(mount).replace(" ", "\\040")
    line = f"0::{group}" if version == 2 else f"7:name=systemd:/\n4:cpu,memory:{group}"
    kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpu,memory"
    (proc / "self/cgroup").write_text(line + "\n")
    other = "22 1 8:1 / / rw,noatime - ext4 /dev/root rw\n"
    (proc / "self/mountinfo").write_text(f"{other}31 23 0:28 / {point} rw,relatime shared:4 - {kind}\n")
    return proc


@contextmanager
def real_limit(name: str, limit: int) -> Iterator[Path | None]:
    """Make a memory group of `limit` bytes below this process's own; None where that cannot be done.

    Whatever is started in it must have ended by the end of the block.
    """
    for parent in cgroup.groups("memory")[:1]:
        folder = parent / f"wheelsmith-test-{name}-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            break
        try:
            limits = [folder / file for file in ("memory.limit_in_bytes", "memory.max") if (folder / file).exists()]
            if limits:
                limits[0].write_text(str(limit))
                yield folder
                return
        except OSError:
            break
        finally:
            folder.rmdir()
    yield None
