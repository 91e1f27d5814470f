"""Unpacking archives from outside: no path leaves the target, no links out, no devices, no bombs."""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.core import interrupt
from scripts.core.console import human_bytes
from scripts.core.errors import FetchError
from scripts.core.files import file_sha256

MAX_FILES = 200_000
MAX_BYTES = 20 * 10**9
MAX_MEMBER = 10**8  # bytes of a file that is taken alone
MAX_RATIO = 200  # unpacked bytes per byte of archive
_CORRUPT = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, LookupError),  # zipfile: encrypted, odd and empty names
)
_IMPOSSIBLE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def unpack_sdist(archive: Path, target: Path) -> None:
    """Unpack a `.tar.gz` (or .xz, .bz2) into `target`, without its single top folder. Raises FetchError."""
    with _explained(archive), tarfile.open(archive, "r:*") as tar:
        budget = _Budget(archive)
        links = []
        for member, path in _checked_tar(tar, archive, target, budget):
            _extract_tar(tar, member, path, target, budget)
            if member.issym():
                links.append((member, path))
        if not budget.files:
            raise FetchError(f"{archive.name} holds no files below a folder", fix="take the archive from another place")
        for member, path in links:  # again, now that all links are there: one may have turned another outward
            if path.is_symlink() and not path.resolve().is_relative_to(target.resolve()):
                raise _hostile(archive, member.name, f"it links outside ({member.linkname})")


def unpack_wheel(archive: Path, target: Path, *, folder: str = "") -> None:
    """Unpack the files of a wheel (zip) that are below `folder` into `target`. Raises FetchError."""
    prefix = f"{folder.strip('/')}/" if folder else ""
    with _explained(archive), zipfile.ZipFile(archive) as wheel:
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


def unpack_members(file: IO[bytes], name: str, wanted: Mapping[str, tuple[str, str]], target: Path) -> None:
    """Write some members of a wheel, each checked, into `target`: member -> (path below it, sha256).

    `name`: the wheel's, for messages. Raises FetchError, when a member is missing, twice, or not the pinned one.
    """
    archive = Path(name)
    with _explained(archive), zipfile.ZipFile(file) as wheel:
        counts = Counter(item.filename for item in wheel.infolist())
        for member, (place, sha256) in wanted.items():
            if counts[member] != 1:
                why = "it is twice in the archive" if counts[member] else "it is not in the archive"
                raise _hostile(archive, member, why)
            item = wheel.getinfo(member)
            if item.file_size > MAX_MEMBER:
                raise _hostile(archive, member, f"it is larger than {human_bytes(MAX_MEMBER)}")
            path = _inside(target, place, archive)
            with wheel.open(item) as reader:
                _write(reader, path, item.file_size, executable=False)
            found = file_sha256(path)
            if found != sha256:
                path.unlink()
                raise FetchError(
                    f"{member} of {name} is not the pinned file",
                    why=f"its sha256 is {found}, the list beside the recipe has {sha256}",
                    fix="the wheel or the list belongs to another version: do not build from it",
                )


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turn what damaged or impossible archives raise into FetchErrors; a full disk stays an OSError."""
    try:
        yield
    except _CORRUPT as error:
        raise _broken(archive, error) from error
    except OSError as error:
        if error.errno is None:  # bz2: "Invalid data stream"
            raise _broken(archive, error) from error
        if error.errno in _IMPOSSIBLE:
            raise _hostile(archive, Path(str(error.filename)).name, error.strerror or "its path cannot be") from error
        raise


class _Budget:
    """Limits on what an archive may unpack to."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.limit = min(MAX_BYTES, max(10**8, archive.stat().st_size * MAX_RATIO))
        self.files = self.bytes = 0

    def spend(self, size: int) -> None:
        interrupt.check()
        self.files += 1
        self.bytes += size
        if self.files > MAX_FILES or self.bytes > self.limit:
            raise _hostile(
                self.archive,
                "the archive",
                f"it unpacks to more than {MAX_FILES} files or {human_bytes(self.limit)}",
            )


def _checked_tar(
    tar: tarfile.TarFile, archive: Path, target: Path, budget: _Budget
) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    for member in tar:
        relative = _without_top(member.name)
        if relative is None:
            continue
        path = _inside(target, relative, archive)
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise _hostile(archive, member.name, "it is a device, a pipe or of unknown type")
        if not member.isdir():
            budget.spend(max(0, member.size))
        yield member, path


def _without_top(name: str) -> str | None:
    """Drop the first part of a member's name; None for the top folder itself. Names that lead outside stay."""
    if name.startswith("/") or ".." in name.split("/"):
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


def _extract_tar(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, target: Path, budget: _Budget) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if member.issym() or member.islnk():
        _link(member, path, target, budget)
        return
    reader = tar.extractfile(member)
    if reader is None:  # pragma: no cover  (isreg() said it has content)
        raise _hostile(Path(str(tar.name)), member.name, "it has no content")
    with reader:
        _write(reader, path, member.size, executable=bool(member.mode & 0o100))


def _link(member: tarfile.TarInfo, path: Path, target: Path, budget: _Budget) -> None:
    archive = budget.archive
    if member.issym():
        goal = path.parent / member.linkname
        if (
            not member.linkname
            or member.linkname.startswith("/")
            or not goal.resolve().is_relative_to(target.resolve())
        ):
            raise _hostile(archive, member.name, f"it links outside ({member.linkname})")
        path.symlink_to(member.linkname)
        return
    goal = _inside(target, _without_top(member.linkname) or "", archive)
    if goal.is_symlink() or not goal.is_file():
        raise _hostile(archive, member.name, f"it is a hard link to {member.linkname}, which is not an earlier file")
    budget.spend(goal.stat().st_size)
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
