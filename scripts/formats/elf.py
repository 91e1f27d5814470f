"""A bounded reader of 64-bit little-endian ELF files: headers, sections, segments, strings, symbols.

It works on bytes or an mmap and touches only the pages it needs. Every offset, size and count of the file is checked
against the file's end and against fixed limits before it is used, so that a truncated or hostile file gives an
AuditError after bounded time and memory. (pyelftools builds an object per symbol, 40 µs each, and reads strings
up to the next NUL wherever that is; its tables of constants are used here.)

Layouts: System V ABI, Edition 4.1 and the ELF-64 Object File Format; GNU hash: as in glibc's dl-lookup.c.
"""

from __future__ import annotations

import bisect
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.constants import SH_FLAGS
from elftools.elf.enums import ENUM_P_TYPE_BASE, ENUM_SH_TYPE_BASE

from scripts.core.errors import AuditError

Data = bytes | mmap.mmap

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
PHDR = struct.Struct("<IIQQQQQQ")
SYM = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QQq")

ET_REL, ET_DYN, EM_X86_64, EM_AARCH64, EM_CUDA = 1, 3, 62, 183, 190
SHT_NOBITS: int = ENUM_SH_TYPE_BASE["SHT_NOBITS"]
SHT_SYMTAB: int = ENUM_SH_TYPE_BASE["SHT_SYMTAB"]
SHT_DYNSYM: int = ENUM_SH_TYPE_BASE["SHT_DYNSYM"]
SHT_RELA: int = ENUM_SH_TYPE_BASE["SHT_RELA"]
SHF_ALLOC: int = SH_FLAGS.SHF_ALLOC
SHF_EXECINSTR: int = SH_FLAGS.SHF_EXECINSTR
PT_LOAD: int = ENUM_P_TYPE_BASE["PT_LOAD"]
STT_FILE = 4
SHN_XINDEX = 0xFFFF

BLOCK = 1 << 20
RELEASE = 6  # blocks after which the pages read are released
MAX_SECTIONS = 100_000  # libtorch_cuda.so has 40; relocatable objects with -ffunction-sections some 10,000
MAX_SEGMENTS = 1_000
MAX_NAME = 65_536  # bytes; CUTLASS kernels have mangled names of several thousand
MAX_TABLES = 160 << 20  # bytes of table rows read from one file: 7 million symbols
MAX_STRINGS = 64 << 20  # bytes of names decoded from one file, 64 more for each


@dataclass(frozen=True)
class Section:
    """A section header; `offset` and `size` are bytes in the file, `address` is where it is loaded."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    entry_size: int

    @property
    def end(self) -> int:
        """File offset behind its last byte."""
        return self.offset + (0 if self.type == SHT_NOBITS else self.size)


@dataclass(frozen=True)
class Segment:
    """A program header; sizes and offsets in bytes."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    align: int


@dataclass(frozen=True)
class Symbol:
    """A symbol table entry."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int

    @property
    def type(self) -> int:
        """STT_*: 1 object, 2 function, 4 file."""
        return self.info & 0xF

    @property
    def binding(self) -> int:
        """STB_*: 0 local, 1 global, 2 weak."""
        return self.info >> 4


class Blob:
    """Bytes of a file under a name, read with checks and within a budget.

    Tables that overlap and strings that share their tails make reading cost more than the file is long. So whatever
    reads rows or names counts them (`spend_rows`, `string`), and a file that wants more than it can hold is refused.
    """

    def __init__(self, data: Data, name: str) -> None:
        self.data, self.name, self.size = data, name, len(data)
        self._rows_left = min(4 * self.size + BLOCK, MAX_TABLES)
        self._strings_left = min(4 * self.size + BLOCK, MAX_STRINGS)

    def error(self, why: str) -> AuditError:
        """Return the error for something in this file that cannot be right."""
        return AuditError(
            f"{self.name}: cannot be read as a shared object",
            why=why,
            fix="the file is damaged or not what its name says: download or build it again",
        )

    def spend_rows(self, size: int) -> None:
        """Count `size` bytes of tables. Raises AuditError when the budget is used up."""
        self._rows_left -= size
        if self._rows_left < 0:
            raise self.error("its tables are larger than the file, or than any real one: they overlap or repeat")

    def unpack(self, layout: struct.Struct, offset: int, what: str) -> tuple[int, ...]:
        """Unpack a structure at a file offset. Raises AuditError when it lies beyond the file's end."""
        self.check_range(offset, layout.size, what)
        return layout.unpack_from(self.data, offset)

    def check_range(self, offset: int, size: int, what: str) -> None:
        """Raise AuditError unless `size` bytes at `offset` are inside the file."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.error(f"{what} ({size:,} bytes at {offset:#x}) lies beyond the end of the file ({self.size:,})")

    def string(self, offset: int, end: int) -> str:
        """Return the NUL-terminated string at a file offset that ends before `end`; "" when there is none."""
        if not 0 <= offset < min(end, self.size):
            return ""
        stop = self.data.find(b"\0", offset, min(end, offset + MAX_NAME))
        self._strings_left -= max(stop - offset, 0) + 64
        if self._strings_left < 0:
            raise self.error("its names are longer than the file, or than any real ones: they share their bytes")
        return self.data[offset:stop].decode("utf-8", "replace") if stop > offset else ""

    def release(self) -> None:
        """Give the pages read so far back to the system: they stay in its cache, not in this process."""
        if isinstance(self.data, mmap.mmap):
            self.data.madvise(mmap.MADV_DONTNEED)

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end` in blocks of 1 MiB, in bounded memory."""
        for number, at in enumerate(range(start, end, BLOCK)):
            yield self.data[at : min(at + BLOCK, end)]
            if number % RELEASE == RELEASE - 1:
                self.release()


class Elf(Blob):
    """An ELF file in `data`. Raises AuditError when it is not one that can be understood."""

    def __init__(self, data: Data, name: str) -> None:
        super().__init__(data, name)
        self.check_range(0, EHDR.size, "the ELF header")
        header = EHDR.unpack_from(data)
        ident = header[0]
        if ident[:4] != b"\x7fELF":
            raise self.error("it does not start with the ELF magic")
        if ident[4:6] != b"\x02\x01":
            raise self.error("it is not a 64-bit little-endian ELF file (CUDA has no others)")
        self.type: int = header[1]
        self.machine: int = header[2]
        self.program_headers_at: int = header[5]
        self.section_headers_at: int = header[6]
        self.segments = self._read_segments(entry_size=header[9], count=header[10])
        self.sections = self._read_sections(entry_size=header[11], count=header[12], names=header[13])
        self._by_name = {section.name: section for section in reversed(self.sections)}
        self._loads = sorted((s for s in self.segments if s.type == PT_LOAD), key=lambda s: s.address)
        self._load_starts = [segment.address for segment in self._loads]

    def _read_segments(self, *, entry_size: int, count: int) -> tuple[Segment, ...]:
        if not count:
            return ()
        if entry_size != PHDR.size or count > MAX_SEGMENTS:
            raise self.error(f"{count} program headers of {entry_size} bytes")
        self.check_range(self.program_headers_at, count * PHDR.size, "the program header table")
        view = self.data[self.program_headers_at : self.program_headers_at + count * PHDR.size]
        return tuple(
            Segment(kind, flags, offset, address, file_size, memory_size, align)
            for kind, flags, offset, address, _, file_size, memory_size, align in PHDR.iter_unpack(view)
        )

    def _read_sections(self, *, entry_size: int, count: int, names: int) -> tuple[Section, ...]:
        at = self.section_headers_at
        if not at:
            return ()
        if entry_size != SHDR.size:
            raise self.error(f"section headers of {entry_size} bytes")
        first = self.unpack(SHDR, at, "the first section header")
        count = count or first[5]  # more than 65,279 sections: the real numbers are in the first header
        names = first[6] if names == SHN_XINDEX else names
        if count > MAX_SECTIONS:
            raise self.error(f"{count:,} sections; the limit is {MAX_SECTIONS:,}")
        self.check_range(at, count * SHDR.size, "the section header table")
        headers = list(SHDR.iter_unpack(self.data[at : at + count * SHDR.size]))
        if names >= count:
            raise self.error(f"the section with the section names is number {names} of {count}")
        start, size = headers[names][4], headers[names][5]
        self.check_range(start, size, "the table of section names")
        sections = tuple(
            Section(index, self.string(start + h[0], start + size), h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[9])
            for index, h in enumerate(headers)
        )
        for section in sections:
            if section.type not in {0, SHT_NOBITS}:
                self.check_range(section.offset, section.size, f"section {section.name}")
        return sections

    def section(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return self._by_name.get(name)

    def linked(self, section: Section) -> Section:
        """Return the section that `sh_link` names: the strings of a symbol table."""
        if section.link >= len(self.sections):
            raise self.error(f"section {section.name} names a string table that does not exist")
        return self.sections[section.link]

    def rows(self, section: Section, layout: struct.Struct) -> Iterator[tuple[int, ...]]:
        """Yield the rows of a table section, reading it in blocks of 1 MiB."""
        if section.entry_size not in {0, layout.size}:
            raise self.error(f"section {section.name} has rows of {section.entry_size} bytes, not {layout.size}")
        whole = section.end - (section.end - section.offset) % layout.size
        self.spend_rows(whole - section.offset)
        step = BLOCK // layout.size * layout.size
        for number, start in enumerate(range(section.offset, whole, step)):
            yield from layout.iter_unpack(self.data[start : min(start + step, whole)])
            if number % RELEASE == RELEASE - 1:
                self.release()

    def file_offset(self, address: int, size: int = 1) -> int:
        """Return where the byte loaded at `address` is in the file. Raises AuditError when it is not there."""
        index = bisect.bisect_right(self._load_starts, address) - 1
        segment = self._loads[index] if index >= 0 else None
        if segment is not None and address + size <= segment.address + segment.file_size:
            offset = segment.offset + address - segment.address
            self.check_range(offset, size, f"address {address:#x}")
            return offset
        raise self.error(f"no segment of the file holds address {address:#x}")


@contextmanager
def open_blob(path: Path, name: str = "") -> Iterator[Blob]:
    """Map a file; the map is closed at the end. Raises AuditError."""
    with _mapped(path, name) as data:
        yield Blob(data, name or path.name)


@contextmanager
def open_elf(path: Path, name: str = "") -> Iterator[Elf]:
    """Map a file and read its ELF headers; the map is closed at the end. Raises AuditError."""
    with _mapped(path, name) as data:
        yield Elf(data, name or path.name)


@contextmanager
def _mapped(path: Path, name: str) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except ValueError as error:  # an empty file cannot be mapped
        raise AuditError(f"{name or path}: cannot be read as a shared object", why=str(error)) from error
    except OSError as error:
        raise AuditError(f"{name or path}: cannot be read", why=error.strerror or str(error)) from error


def is_elf(path: Path) -> bool:
    """Whether a file starts with the ELF magic."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
