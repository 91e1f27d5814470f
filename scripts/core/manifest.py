"""What a directory held when it was made, and what has been changed in it since.

Sizes and times are looked at always (30,000 files take a fifth of a second), contents only where these differ: a file
that was touched is no damage. Left out are Python's own caches, which appear when something is imported.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from scripts.core import interrupt

FORMAT = "wheelsmith manifest 1"
CACHES = "__pycache__"


class Damage(str, Enum):
    """What happened to a file."""

    CHANGED = "changed"
    MISSING = "missing"
    ADDED = "added"


@dataclass(frozen=True)
class Change:
    """A file that is not what it was."""

    path: str
    """Relative to the directory."""
    damage: Damage


@dataclass(frozen=True)
class _Entry:
    """A file or link as the file system describes it."""

    size: int
    modified: int
    """mtime in ns."""
    status: int
    """ctime in ns: it cannot be set back. 0 where a file has several names, because each new name changes it."""
    link: str = ""
    """A link's target."""

    def same(self, other: _Entry) -> bool:
        """Whether nothing speaks for a change."""
        plain = (self.size, self.modified, self.link) == (other.size, other.modified, other.link)
        return plain and (self.status == other.status or 0 in {self.status, other.status})


Digests = Mapping[tuple[int, int], str]
"""sha256 by device and inode: of files whose contents are known already."""


def record(root: Path, place: Path, *, changing: Sequence[str] = (), known: Digests | None = None) -> None:
    """Write down what is below `root`; `changing` are names at its top (patterns) that may come and go.

    Files are hashed, except those in `known`.
    """
    digests: dict[tuple[int, int], str] = dict(known or {})
    entries = dict(_scan(root, changing))
    rows = []
    for path, entry in entries.items():
        sha256 = "-"
        if not entry.link:
            identity = _identity(root / path)
            sha256 = digests.get(identity) or digests.setdefault(identity, _sha256(root / path))
        rows.append((path, entry, sha256))
    _write(place, rows)


def changes(root: Path, place: Path, *, changing: Sequence[str] = ()) -> list[Change]:
    """Return what has changed below `root` since it was recorded; a directory without a record is recorded now."""
    entries = dict(_scan(root, changing))
    try:
        text = place.read_bytes().decode("utf-8", "surrogateescape")
        head, _, rest = text.partition("\n")
        if head == f"{FORMAT} {_summary(entries)}":
            return []
        known = _parse(rest) if head.startswith(FORMAT) else None
    except (OSError, ValueError):
        known = None
    if known is None:
        record(root, place, changing=changing)
        return []
    found = [Change(path, Damage.MISSING) for path in known if path not in entries]
    for path, entry in entries.items():
        if path not in known:
            found.append(Change(path, Damage.ADDED))
            continue
        before, sha256 = known[path]
        if not entry.same(before) and not _is_content(root / path, entry, before, sha256):
            found.append(Change(path, Damage.CHANGED))
    if not found:  # touched only: the next look is quick again
        _write(place, [(path, entry, known[path][1]) for path, entry in entries.items()])
    return sorted(found, key=lambda change: change.path)


def summary(found: Sequence[Change]) -> str:
    """Return changes in words: `csrc/a.cpp is changed and 2 more files`."""
    first, more = found[0], len(found) - 1
    return f"{first.path} is {first.damage.value}" + (f", and {more} more" if more else "")


def _scan(root: Path, changing: Sequence[str]) -> Iterator[tuple[str, _Entry]]:
    """Yield all files and links below a directory, in no order that could be relied on."""
    folders = [("", str(root))]
    while folders:
        interrupt.check()
        prefix, folder = folders.pop()
        with os.scandir(folder) as items:
            for item in items:
                if not prefix and any(fnmatch.fnmatch(item.name, pattern) for pattern in changing):
                    continue
                if item.is_dir(follow_symlinks=False):
                    if item.name != CACHES:
                        folders.append((f"{prefix}{item.name}/", item.path))
                    continue
                about = item.stat(follow_symlinks=False)
                link = os.readlink(item.path) if stat.S_ISLNK(about.st_mode) else ""  # noqa: PTH115
                alone = about.st_ctime_ns if about.st_nlink == 1 else 0
                entry = _Entry(0, 0, 0, link) if link else _Entry(about.st_size, about.st_mtime_ns, alone)
                yield prefix + item.name, entry


def _is_content(path: Path, entry: _Entry, before: _Entry, sha256: str) -> bool:
    """Whether a file of another time or size holds what it held; a link leads where it led."""
    return entry.link == before.link if entry.link or before.link else _sha256(path) == sha256


def _identity(path: Path) -> tuple[int, int]:
    about = path.lstat()
    return about.st_dev, about.st_ino


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            interrupt.check()
            sha.update(block)
    return sha.hexdigest()


def _summary(entries: Mapping[str, _Entry]) -> str:
    rows = sorted(f"{path}\0{e.size}\0{e.modified}\0{e.status}\0{e.link}" for path, e in entries.items())
    return hashlib.blake2b("\n".join(rows).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _write(place: Path, rows: Sequence[tuple[str, _Entry, str]]) -> None:
    """Write the record beside its place and rename it."""
    head = f"{FORMAT} {_summary({path: entry for path, entry, _ in rows})}\n"
    text = "".join(f"{sha256} {e.size} {e.modified} {e.status} {path}\0{e.link}\0" for path, e, sha256 in sorted(rows))
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    partial.write_bytes((head + text).encode("utf-8", "surrogateescape"))
    partial.replace(place)


def _parse(text: str) -> dict[str, tuple[_Entry, str]]:
    """Return entry and sha256 by path. Raises ValueError."""
    words = text.split("\0")
    found = {}
    for name, link in zip(words[:-1:2], words[1::2], strict=True):
        sha256, size, modified, status, path = name.split(" ", 4)
        found[path] = _Entry(int(size), int(modified), int(status), link), sha256
    return found
