"""Wheels as files: read members one at a time without trusting them, write deterministic ones.

A wheel from elsewhere can be damaged or hostile: names that leave the directory, sizes that lie, members that unpack
to far more than they say. Everything is checked before it is used; errors are AuditErrors.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath

from packaging.utils import parse_wheel_filename

from scripts.core.errors import AuditError

BLOCK = 1 << 20
MAX_MEMBERS = 100_000  # flashinfer-cubin has 16,000
MAX_DIRECTORY = 16 << 20  # bytes of the zip's table of contents: 100,000 names of 120 bytes
MAX_MEMBER = 64 << 30  # bytes; the largest shared object met was 1 GB
MAX_TEXT = 4 << 20  # bytes of a metadata file that is read into memory
MAX_HEADERS = 1 << 20  # bytes of the headers of METADATA and WHEEL; the description behind them is not read
MAX_HEADER_LINES = 10_000
MAX_LINE = 16_384  # bytes of a row of RECORD
MAX_TAGS = 1_000  # that a compressed tag set stands for
TAG = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*(-[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*){2}")
"""A compressed tag set: `cp38-abi3-manylinux_2_31_x86_64`, `py2.py3-none-any`."""
SHARED_OBJECT = re.compile(r"\.so(\.\d+)*$")
_DIST_INFO = re.compile(r"^[^/]+\.dist-info$")


@dataclass(frozen=True)
class Hash:
    """A file's digest as RECORD has it, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class WheelFile:
    """A wheel that is open for reading."""

    path: Path
    archive: zipfile.ZipFile
    members: tuple[zipfile.ZipInfo, ...]
    dist_info: str
    """Name of the .dist-info directory."""

    def error(self, what: str, why: str = "") -> AuditError:
        """Return the error for something in this wheel that cannot be right."""
        return AuditError(f"{self.path.name}: {what}", why=why, fix="download or build the wheel again")

    @property
    def shared_objects(self) -> list[zipfile.ZipInfo]:
        """Members that are shared objects by their name."""
        return [member for member in self.members if SHARED_OBJECT.search(member.filename)]

    def read(self, name: str) -> bytes | None:
        """Return a small member's content, None when the wheel has none of that name."""
        member = next((item for item in self.members if item.filename == name), None)
        if member is None:
            return None
        if member.file_size > MAX_TEXT:
            raise self.error(f"{name} is {member.file_size:,} bytes long; the limit is {MAX_TEXT:,}")
        return b"".join(self.blocks(member))

    def message(self, name: str) -> Message:
        """Return the headers of a metadata file (`METADATA`, `WHEEL`); what is behind the blank line is not read."""
        lines: list[bytes] = []
        size = 0
        for line in self.lines(self._metadata(name), MAX_HEADERS):
            if not line.strip():
                break
            size += len(line)
            lines.append(line)
            if size > MAX_HEADERS or len(lines) > MAX_HEADER_LINES:
                raise self.error(f"{name} has more than {MAX_HEADERS:,} bytes or {MAX_HEADER_LINES:,} lines of headers")
        return BytesParser().parsebytes(b"".join(lines), headersonly=True)

    def _metadata(self, name: str) -> zipfile.ZipInfo:
        full = f"{self.dist_info}/{name}"
        member = next((item for item in self.members if item.filename == full), None)
        if member is None:
            raise self.error(f"{full} is missing")
        return member

    def lines(self, member: zipfile.ZipInfo, longest: int) -> Iterator[bytes]:
        """Yield a text's lines as they are unpacked. Raises AuditError for a line of more than `longest` bytes."""
        rest = b""
        for block in self.blocks(member):
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > longest or any(len(line) > longest for line in whole):
                raise self.error(f"{member.filename} has a line of more than {longest:,} bytes")
            yield from (line + b"\n" for line in whole)
        if rest:
            yield rest

    def blocks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield a member's content in blocks of 1 MiB; more than its stated size is an error, checked as it comes."""
        done = 0
        try:
            with self.archive.open(member) as stream:
                while block := stream.read(BLOCK):
                    done += len(block)
                    if done > member.file_size:
                        raise self.error(
                            f"{member.filename} unpacks to more than the {member.file_size:,} bytes stated"
                        )
                    yield block
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
            raise self.error(f"{member.filename} cannot be unpacked", str(error)) from error
        except OSError as error:  # the disk's, or that of a seek to where a damaged table of contents points
            raise self.error(f"{member.filename} cannot be read", error.strerror or str(error)) from error
        if done != member.file_size:
            raise self.error(f"{member.filename} unpacks to {done:,} bytes, not the {member.file_size:,} stated")

    def digest(self, member: zipfile.ZipInfo) -> Hash:
        """Return the digest of a member's content."""
        sha = hashlib.sha256()
        for block in self.blocks(member):
            sha.update(block)
        return Hash(record_digest(sha.digest()), member.file_size)

    @contextmanager
    def unpacked(self, member: zipfile.ZipInfo) -> Iterator[tuple[Path, Hash]]:
        """Unpack one member to a temporary file, which is gone at the end; yield its path and digest."""
        with tempfile.TemporaryDirectory(prefix="wheelsmith-") as folder:
            yield self.spill(member, b"", self.blocks(member), Path(folder))

    def spill(self, member: zipfile.ZipInfo, first: bytes, blocks: Iterator[bytes], folder: Path) -> tuple[Path, Hash]:
        """Write a member, of which `first` was read already, to a file in `folder`; return its path and digest."""
        path = folder / PurePosixPath(member.filename).name
        free = shutil.disk_usage(folder).free
        if member.file_size > free:
            raise AuditError(
                f"{member.filename} needs {member.file_size:,} bytes to be unpacked; {folder} has {free:,}",
                fix="free space there, or point TMPDIR at a larger disk",
            )
        sha = hashlib.sha256()
        with path.open("wb") as file:
            for block in chain([first], blocks):
                sha.update(block)
                file.write(block)
        return path, Hash(record_digest(sha.digest()), member.file_size)


def record_digest(digest: bytes) -> str:
    """Return a digest as RECORD writes it: `sha256=` and base64 for URLs without padding."""
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@contextmanager
def open_wheel(path: Path) -> Iterator[WheelFile]:
    """Open a wheel and check its table of contents. Raises AuditError."""
    try:
        _check_directory(path)
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError) as error:
        raise AuditError(
            f"{path.name} is not a wheel", why=str(error), fix="a wheel is a zip file: download it again"
        ) from error
    except OSError as error:
        raise AuditError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    with archive:
        yield WheelFile(path, archive, *_checked(path, archive))


_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def _check_directory(path: Path) -> None:
    """Refuse a table of contents that is too long, before zipfile makes an object of each row. Raises AuditError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - (1 << 16) - 22, 0))
        tail = file.read()
        end = tail.rfind(_END)
        if end < 0 or end + 22 > len(tail):
            return  # zipfile says what is wrong
        length = struct.unpack_from("<I", tail, end + 12)[0]
        if length == 0xFFFFFFFF and (locator := tail.rfind(_LOCATOR, 0, end)) >= 0:
            file.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
            record = file.read(56)
            length = struct.unpack_from("<Q", record, 40)[0] if record[:4] == _END64 and len(record) == 56 else length
    if length > MAX_DIRECTORY or length > size:
        raise AuditError(
            f"{path.name} is not a wheel that can be trusted",
            why=f"its table of contents claims {length:,} bytes; the limit is {MAX_DIRECTORY:,}",
            fix="get it again elsewhere",
        )


def _checked(path: Path, archive: zipfile.ZipFile) -> tuple[tuple[zipfile.ZipInfo, ...], str]:
    members = tuple(member for member in archive.infolist() if not member.is_dir())
    problem = _problem(members)
    folders = {top for member in members if _DIST_INFO.match(top := member.filename.split("/")[0])}
    if not problem and len(folders) != 1:
        problem = f"it has {len(folders)} .dist-info directories"
    if problem:
        raise AuditError(f"{path.name} is not a wheel that can be trusted", why=problem, fix="get it again elsewhere")
    return members, folders.pop()


def _problem(members: tuple[zipfile.ZipInfo, ...]) -> str:
    if len(members) > MAX_MEMBERS:
        return f"it has {len(members):,} members; the limit is {MAX_MEMBERS:,}"
    names = Counter(member.filename for member in members)
    twice = next((name for name, count in names.items() if count > 1), "")
    if twice:
        return f"{twice!r} is in it twice"
    return next(filter(None, map(_member_problem, members)), "") or _overlap(members)


def _overlap(members: tuple[zipfile.ZipInfo, ...]) -> str:
    """Return a complaint about members that share their bytes: a small file could unpack to any size."""
    ordered = sorted(members, key=lambda item: item.header_offset)
    for one, two in pairwise(ordered):
        if one.header_offset + 30 + one.compress_size > two.header_offset:
            return f"{one.filename!r} and {two.filename!r} share their bytes"
    return ""


def _member_problem(member: zipfile.ZipInfo) -> str:
    name = member.filename
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or "\0" in name:
        return f"a member is called {name!r}"
    if member.header_offset < 0:
        return f"{name!r} begins before the file does"
    if member.flag_bits & 1 or member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return f"{name!r} is encrypted or compressed with method {member.compress_type}"
    if member.file_size > MAX_MEMBER or member.file_size > 1040 * member.compress_size + 64:
        return f"{name!r} claims to unpack from {member.compress_size:,} to {member.file_size:,} bytes"
    return ""


@dataclass(frozen=True)
class WheelName:
    """The parts of a wheel's file name."""

    name: str
    version: str
    build: str
    tags: str
    """Compressed tag set: `cp38-abi3-manylinux_2_31_x86_64`."""

    def __str__(self) -> str:
        """Return the file name."""
        build = f"-{self.build}" if self.build else ""
        return f"{self.name}-{self.version}{build}-{self.tags}.whl"


def wheel_name(path: Path) -> WheelName:
    """Take a wheel's file name apart. Raises AuditError when it is not one."""
    parts = path.name.removesuffix(".whl").split("-")
    tags, why = "-".join(parts[-3:]), ""
    try:
        if tag_count(tags) > MAX_TAGS:
            why = f"it stands for more than {MAX_TAGS:,} tags"
        else:
            parse_wheel_filename(path.name)
            why = "" if TAG.fullmatch(tags) else f"{tags!r} are no tags"
    except ValueError as error:  # InvalidWheelFilename, InvalidVersion, InvalidTag
        why = str(error)
    if why:
        raise AuditError(f"{path.name} is not the name of a wheel", why=why, fix="give it its old name")
    build = parts[2] if len(parts) == 6 else ""
    return WheelName(parts[0], parts[1], build, "-".join(parts[-3:]))


def tag_count(tags: str) -> int:
    """Return how many tags a compressed tag set stands for: 2 for `py2.py3-none-any`."""
    return math.prod(part.count(".") + 1 for part in tags.split("-"))


def read_record(wheel: WheelFile) -> dict[str, Hash]:
    """Return RECORD: path to digest and size; rows without digest (RECORD itself) have an empty one.

    It is read as a stream. Raises AuditError when it is damaged or has far more rows than the wheel has members.
    """
    name = f"{wheel.dist_info}/RECORD"
    member = next((item for item in wheel.members if item.filename == name), None)
    if member is None:
        raise wheel.error("RECORD is missing")
    limit = 2 * len(wheel.members) + 1_000
    record: dict[str, Hash] = {}
    try:
        text = (line.decode("utf-8") for line in wheel.lines(member, MAX_LINE))
        for count, row in enumerate(csv.reader(text), 1):
            if count > limit:
                raise wheel.error(f"RECORD has more than {limit:,} rows for {len(wheel.members):,} members")
            if row:
                record[row[0]] = Hash(row[1], int(row[2] or 0))
    except (UnicodeDecodeError, IndexError, ValueError, csv.Error) as error:
        raise wheel.error("RECORD cannot be read", str(error)) from error
    return record


class WheelWriter:
    """Writes a wheel beside its final name; the same members in the same order give the same bytes."""

    def __init__(self, path: Path, dist_info: str) -> None:
        self.path, self._dist_info = path, dist_info
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._rows: list[tuple[str, str, str]] = []
        self._date = (1980, 1, 1, 0, 0, 0)
        self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_DEFLATED)

    def add(self, like: zipfile.ZipInfo, name: str, content: Iterator[bytes], size: int) -> Hash:
        """Add a member with the date and the mode of another one; return its digest."""
        info = zipfile.ZipInfo(name, like.date_time)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = like.external_attr
        info.create_system = 3
        info.file_size = size  # decides whether zip64 is used, so it has to be known
        self._date = max(self._date, like.date_time)
        sha, done = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=size >= zipfile.ZIP64_LIMIT) as stream:
            for block in content:
                sha.update(block)
                done += len(block)
                stream.write(block)
        digest = Hash(record_digest(sha.digest()), done)
        self._rows.append((name, digest.sha256, str(done)))
        return digest

    def finish(self) -> Path:
        """Write RECORD, close the file, give it its name."""
        name = f"{self._dist_info}/RECORD"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*self._rows, (name, "", "")])
        info = zipfile.ZipInfo(name, self._date)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o100644 << 16
        info.create_system = 3
        self._zip.writestr(info, text.getvalue())
        self._zip.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)
        return self.path

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._zip.close()
        self._partial.unlink(missing_ok=True)


def file_blocks(path: Path) -> Iterator[bytes]:
    """Yield a file's content in blocks of 1 MiB."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def one_block(data: bytes) -> Iterator[bytes]:
    """Yield data that is in memory as the one block of a member."""
    yield data
