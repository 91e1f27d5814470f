"""Unpacking archives from outside: no path leaves the target, no links out, no devices, no bombs."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.console import human_bytes
from scripts.errors import FetchError

MAX_FILES = 200_000
MAX_BYTES = 20 * 10**9
MAX_RATIO = 200  # unpacked bytes per byte of archive
_CORRUPT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def unpack_sdist(archive: Path, target: Path) -> None:
    """Unpack a `.tar.gz` (or .xz, .bz2) into `target`, without its single top folder. Raises FetchError."""
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member, path in _checked_tar(tar, archive, target):
                _extract_tar(tar, member, path, target)
    except _CORRUPT as error:
        raise _broken(archive, error) from error


def unpack_wheel(archive: Path, target: Path, *, folder: str = "") -> None:
    """Unpack the files of a wheel (zip) that are below `folder` into `target`. Raises FetchError."""
    prefix = f"{folder.strip('/')}/" if folder else ""
    try:
        with zipfile.ZipFile(archive) as wheel:
            wanted = [item for item in wheel.infolist() if item.filename.startswith(prefix) and not item.is_dir()]
            if not wanted:
                raise FetchError(f"{archive.name} holds no {prefix or 'files'}", fix="correct `path` in the recipe")
            budget = _Budget(archive)
            for item in wanted:
                path = _inside(target, item.filename.removeprefix(prefix), archive)
                mode = item.external_attr >> 16
                if mode and not (stat.S_ISREG(mode) or stat.S_IFMT(mode) == 0):
                    raise _hostile(archive, item.filename, "it is neither a file nor a folder")
                budget.spend(item.file_size)
                with wheel.open(item) as reader:
                    _write(reader, path, item.file_size, executable=bool(mode & 0o100))
    except _CORRUPT as error:
        raise _broken(archive, error) from error


class _Budget:
    """Limits on what an archive may unpack to."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.limit = min(MAX_BYTES, max(10**8, archive.stat().st_size * MAX_RATIO))
        self.files = self.bytes = 0

    def spend(self, size: int) -> None:
        self.files += 1
        self.bytes += size
        if self.files > MAX_FILES or self.bytes > self.limit:
            raise _hostile(
                self.archive,
                "the archive",
                f"it unpacks to more than {MAX_FILES} files or {human_bytes(self.limit)}",
            )


def _checked_tar(tar: tarfile.TarFile, archive: Path, target: Path) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    budget = _Budget(archive)
    for member in tar:
        relative = _without_top(member.name)
        if relative is None:
            continue
        path = _inside(target, relative, archive)
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise _hostile(archive, member.name, "it is a device, a pipe or of unknown type")
        budget.spend(max(0, member.size))
        yield member, path


def _without_top(name: str) -> str | None:
    """Drop the first part of a member's name; None for the top folder itself. Absolute names stay as they are."""
    if name.startswith("/"):
        return name
    parts = [part for part in name.split("/") if part not in {"", "."}]
    return "/".join(parts[1:]) if len(parts) > 1 else None


def _inside(target: Path, name: str, archive: Path) -> Path:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not parts.parts:
        raise _hostile(archive, name, "its path leads outside")
    path = target.joinpath(*parts.parts)
    if not path.parent.resolve().is_relative_to(target.resolve()):
        raise _hostile(archive, name, "its path leads outside through a link")
    return path


def _extract_tar(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, target: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if member.issym() or member.islnk():
        _link(tar, member, path, target)
        return
    reader = tar.extractfile(member)
    if reader is None:  # pragma: no cover  (isreg() said it has content)
        raise _hostile(Path(str(tar.name)), member.name, "it has no content")
    with reader:
        _write(reader, path, member.size, executable=bool(member.mode & 0o100))


def _link(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, target: Path) -> None:
    archive = Path(str(tar.name))
    if member.issym():
        goal = path.parent / member.linkname
        if member.linkname.startswith("/") or not goal.resolve().is_relative_to(target.resolve()):
            raise _hostile(archive, member.name, f"it links outside ({member.linkname})")
        path.symlink_to(member.linkname)
        return
    goal = _inside(target, _without_top(member.linkname) or "", archive)
    if goal.is_symlink() or not goal.is_file():
        raise _hostile(archive, member.name, f"it is a hard link to {member.linkname}, which is not an earlier file")
    shutil.copy2(goal, path)


def _write(reader: IO[bytes], path: Path, size: int, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = size
    with path.open("wb") as writer:
        while block := reader.read(min(1 << 20, left + 1)):
            left -= len(block)
            if left < 0:
                raise ValueError(f"{path.name} is larger than the archive's table says")
            writer.write(block)
    if left:
        raise ValueError(f"{path.name} is {left} bytes shorter than the archive's table says")
    path.chmod(0o755 if executable else 0o644)


def _hostile(archive: Path, member: str, why: str) -> FetchError:
    return FetchError(
        f"{archive.name} was not unpacked: {member!r} is not allowed",
        why=why,
        fix="take the archive from another place; an honest one has no such member",
    )


def _broken(archive: Path, error: Exception) -> FetchError:
    return FetchError(
        f"{archive.name} is corrupt and was not unpacked",
        why=f"{type(error).__name__}: {error}",
        fix="delete it and run again to fetch it anew",
    )
