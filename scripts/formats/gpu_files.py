"""Files that can hold GPU code, told by their first bytes: ELF files, fat binaries, archives of object files."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from scripts.formats.elf import Blob, Elf
from scripts.formats.fatbin import device_code, fatbin_code
from scripts.formats.fatbin_types import CONTAINER_MAGIC, Container, DeviceCode

START = 8  # bytes that `form` needs
MAX_OBJECT = 64 << 20  # bytes of an object file in an archive: it is copied into memory
MAX_OBJECTS = 20_000
_ARCHIVE, _HEADER = b"!<arch>\n", 60


class Form(str, Enum):
    """What a file is."""

    ELF = "elf"
    FATBIN = "fatbin"
    ARCHIVE = "archive"


def form(start: bytes) -> Form | None:
    """Return what a file with these first bytes is, None for anything else."""
    if start[:4] == b"\x7fELF":
        return Form.ELF
    if start[:4] == CONTAINER_MAGIC.to_bytes(4, "little"):
        return Form.FATBIN
    return Form.ARCHIVE if start[:8] == _ARCHIVE else None


def file_code(blob: Blob, kind: Form) -> DeviceCode:
    """Return the GPU code of a fat binary or an archive. Raises AuditError."""
    return fatbin_code(blob) if kind is Form.FATBIN else archive_code(blob)


def archive_code(blob: Blob) -> DeviceCode:
    """Return the GPU code of all object files of an archive: it is linked into programs, not loaded."""
    containers: list[Container] = []
    for elf in archive_objects(blob):
        containers += device_code(elf).containers
    return DeviceCode(blob.name, tuple(containers), (), loadable=False)


def archive_objects(blob: Blob) -> Iterator[Elf]:
    """Yield the ELF files of an archive, one at a time. Raises AuditError when it is damaged or too large."""
    at = len(_ARCHIVE)
    for _ in range(MAX_OBJECTS):
        if at + _HEADER > blob.size:
            return
        header = blob.data[at : at + _HEADER]
        try:
            size = int(header[48:58].strip() or b"0")
        except ValueError as error:
            raise blob.error(f"the archive's member at {at:#x} has no readable size") from error
        start = at + _HEADER
        blob.check_range(start, size, "a member of the archive")
        if header[58:60] != b"`\n" or size < 0:
            raise blob.error(f"the archive's member at {at:#x} has a damaged header")
        if blob.data[start : start + 4] == b"\x7fELF" and blob.data[start + 4 : start + 6] == b"\x02\x01":
            if size > MAX_OBJECT:
                raise blob.error(f"the archive's member at {at:#x} is {size:,} bytes long")
            yield Elf(blob.data[start : start + size], f"{blob.name}({_member_name(header)})")
        at = start + size + size % 2
    raise blob.error(f"the archive has more than {MAX_OBJECTS:,} members")


def _member_name(header: bytes) -> str:
    return header[:16].decode("ascii", "replace").strip(" /")
