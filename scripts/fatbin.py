"""Read the GPU code inside host files: which kernels, for which archs, as SASS or PTX, compiled by which CUDA.

    from pathlib import Path
    from scripts.fatbin import read_device_code

    code = read_device_code(Path("libfoo.so"))
    for container in code.containers:
        print(container.unit, [entry.target for entry in container.entries])

nvcc puts one *container* per translation unit into the section `.nv_fatbin` (`__nv_relfatbin` for relocatable device
code), and a 24-byte *wrapper* that points at it into `.nvFatBinSegment`. A container is a row of *entries*: an ELF
cubin (SASS, machine code of one arch), PTX text or LTO-IR. All that is needed to judge them is in their headers, so
nothing is decompressed. NVIDIA does not document the format: docs/fatbin.md tells how it was found out and checked.

Sizes are bytes, offsets count from the start of the file, addresses are virtual ones of the ELF file.
All functions raise AuditError for input that is damaged or of an unknown version, after bounded time and memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path

from scripts.elf import BLOCK, EHDR, RELA, RELEASE, SHDR, SHF_EXECINSTR, SHT_RELA, STT_FILE, SYM, Elf, Section, open_elf
from scripts.errors import AuditError

WRAPPER = struct.Struct("<IIQQ")  # magic, version, address of the container, file name or prelinked containers
CONTAINER = struct.Struct("<IHHQ")  # magic, version, header size, bytes that follow
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
WRAPPER_MAGIC, CONTAINER_MAGIC = 0x466243B1, 0xBA55ED50
ENTRY_VERSION = 0x0101
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
WRAPPERS = ".nvFatBinSegment"

MAX_CONTAINERS = 100_000  # libtorch_cuda.so has about 700
MAX_ENTRIES = 400_000
_NOT_ZERO = re.compile(rb"[^\0]")
_UNIT = re.compile(r"tmpxft_[0-9a-f]+_[0-9a-f]+-\d+_(.+?)(?:\.compute_\w+)?\.cudafe1\.(?:cpp|c|gpu|stub\.c)$")


class Kind(IntEnum):
    """What an entry holds."""

    OTHER = 0
    """A kind that this reader does not know; it is listed, and never judged or rewritten."""
    PTX = 1
    ELF = 2
    LTO_IR = 8


class Compression(str, Enum):
    """How an entry's payload is stored."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    OLD = "lz"
    """The LZ variant of CUDA 11 and before."""


class Flag(IntEnum):
    """Bits of an entry's flag word."""

    BITS_64 = 0x1
    DEBUG = 0x2
    LINUX = 0x10
    OLD_LZ = 0x1000
    LZ4 = 0x2000
    ZSTD = 0x8000
    OBFUSCATED = 0x10000
    ARCH_SPECIFIC = 0x100000
    FAMILY_SPECIFIC = 0x200000


@dataclass(frozen=True)
class Entry:
    """One image in a container."""

    offset: int
    """Where its header starts in the file; the payload follows `header_size` bytes later."""
    header_size: int
    payload_size: int
    """Bytes of payload with padding, a multiple of 8."""
    kind: Kind
    arch: int
    """Compute capability without the dot: 90."""
    suffix: str
    """`a` for arch-specific, `f` for family-specific code, else empty."""
    version: tuple[int, int]
    """PTX: the PTX ISA version, (8, 8). ELF: version of the cubin's code."""
    compression: Compression
    stored_size: int
    """Bytes of compressed payload; `payload_size` when it is not compressed."""
    size: int
    """Bytes of payload when decompressed."""
    flags: int
    kernels: int | None
    """Kernels inside, counted for cubins that are stored uncompressed; None when that is not known."""

    @property
    def end(self) -> int:
        """File offset behind the payload."""
        return self.offset + self.header_size + self.payload_size

    @property
    def label(self) -> str:
        """Arch with suffix: `90a`."""
        return f"{self.arch}{self.suffix}"

    @property
    def target(self) -> str:
        """Name as nvcc writes it: `sm_90a` for SASS, `compute_80` for PTX, `lto_90` for LTO-IR."""
        names = {Kind.ELF: "sm", Kind.PTX: "compute", Kind.LTO_IR: "lto", Kind.OTHER: "other"}
        return f"{names[self.kind]}_{self.label}"

    @property
    def cc(self) -> tuple[int, int]:
        """Compute capability: (9, 0)."""
        return divmod(self.arch, 10)


@dataclass(frozen=True)
class Container:
    """The GPU code of one translation unit."""

    section: str
    offset: int
    address: int
    """Where it is loaded; 0 in relocatable objects."""
    size: int
    """Bytes behind its 16-byte header: all entries."""
    entries: tuple[Entry, ...]
    unit: str = ""
    """Source file, when the symbol table still tells: `marlin.cu`."""
    wrapper: int = 0
    """Version of the wrapper that points here: 1 usual, 2 device-linked (-rdc), 0 none."""

    @property
    def end(self) -> int:
        """File offset behind it."""
        return self.offset + CONTAINER.size + self.size

    @property
    def relocatable(self) -> bool:
        """Whether it holds code before device linking, which the driver does not load as it is."""
        return self.section != SECTIONS[0]

    @property
    def kernels(self) -> int | None:
        """Kernels of the unit: the largest count of its cubins, None when none could be counted."""
        counts = [entry.kernels for entry in self.entries if entry.kernels is not None]
        return max(counts) if counts else None

    @property
    def empty(self) -> bool:
        """Whether it is certain that no kernel is inside."""
        known = self.kernels == 0 and all(entry.kernels in {0, None} for entry in self.entries)
        return not self.entries or known

    def archs(self, kind: Kind) -> list[str]:
        """Return its archs of one kind, in file order: `["80", "90a"]`."""
        return [entry.label for entry in self.entries if entry.kind is kind]


@dataclass(frozen=True)
class Wrapper:
    """A row of `.nvFatBinSegment`: what host code registers with the CUDA runtime."""

    offset: int
    address: int
    version: int
    container: int
    """Address of its container as written in the file; 0 when only a relocation knows it."""


@dataclass(frozen=True)
class DeviceCode:
    """All GPU code of one host file."""

    name: str
    containers: tuple[Container, ...]
    wrappers: tuple[Wrapper, ...]

    @property
    def entries(self) -> Iterator[Entry]:
        """All entries in file order."""
        for container in self.containers:
            yield from container.entries

    def count(self, kind: Kind) -> dict[str, int]:
        """Return how many entries of a kind there are per arch, in ascending order: `{"80": 53, "90a": 21}`."""
        counts: dict[str, int] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.arch, entry.suffix)):
            if entry.kind is kind:
                counts[entry.label] = counts.get(entry.label, 0) + 1
        return counts


def read_device_code(path: Path, name: str = "") -> DeviceCode:
    """Read all GPU code of a shared object, executable or object file; `name` is used in messages."""
    with open_elf(path, name) as elf:
        return device_code(elf)


def device_code(elf: Elf) -> DeviceCode:
    """Read all GPU code of an ELF file that is open."""
    containers = [
        container for section in elf.sections if section.name in SECTIONS for container in _containers(elf, section)
    ]
    if len(containers) > MAX_CONTAINERS:
        raise elf.error(f"{len(containers):,} containers; the limit is {MAX_CONTAINERS:,}")
    wrappers = _wrappers(elf, {container.address for container in containers})
    versions = {wrapper.container: wrapper.version for wrapper in wrappers}
    units = _units(elf)
    named = tuple(
        replace(
            container,
            unit=units.get(container.address, ""),
            wrapper=versions.get(container.address, 0),
        )
        for container in containers
    )
    return DeviceCode(elf.name, named, wrappers)


def _containers(elf: Elf, section: Section) -> Iterator[Container]:
    """Yield the containers of a section: back to back, 8-aligned, zeros between."""
    offset, count, entries, released = section.offset, 0, 0, section.offset
    while found := _NOT_ZERO.search(elf.data, offset, section.end):
        offset = section.offset + (found.start() - section.offset) // 8 * 8
        container = _container(elf, section, offset)
        count, entries = count + 1, entries + len(container.entries)
        if count > MAX_CONTAINERS or entries > MAX_ENTRIES:
            raise elf.error(f"more than {MAX_CONTAINERS:,} containers or {MAX_ENTRIES:,} entries in {section.name}")
        yield container
        offset = container.end
        if offset - released > RELEASE * BLOCK:
            elf.release()
            released = offset


def _container(elf: Elf, section: Section, offset: int) -> Container:
    where = f"the container at {offset:#x}"
    if offset + CONTAINER.size > section.end:
        raise elf.error(f"{where} is cut off by the end of {section.name}")
    magic, version, header_size, size = CONTAINER.unpack_from(elf.data, offset)
    if magic != CONTAINER_MAGIC:
        raise elf.error(f"{where} starts with {magic:#010x}, not with {CONTAINER_MAGIC:#010x}")
    if (version, header_size) != (1, CONTAINER.size):
        raise elf.error(f"{where} has version {version} and a header of {header_size} bytes; known: 1 and 16")
    end = offset + CONTAINER.size + size
    if end > section.end:
        raise elf.error(f"{where} is {size:,} bytes long and reaches beyond the end of {section.name}")
    entries: list[Entry] = []
    at = offset + CONTAINER.size
    while at < end:
        entry = _entry(elf, at, end)
        if len(entries) >= MAX_ENTRIES:
            raise elf.error(f"{where} has more than {MAX_ENTRIES:,} entries")
        entries.append(entry)
        at = entry.end
    address = section.address + offset - section.offset if section.address else 0
    return Container(section.name, offset, address, size, tuple(entries))


def _entry(elf: Elf, at: int, end: int) -> Entry:
    where = f"the entry at {at:#x}"
    if at + ENTRY.size > end:
        raise elf.error(f"{where} is cut off by the end of its container")
    fields = ENTRY.unpack_from(elf.data, at)
    kind, version, header_size, payload_size, stored_size, _, minor, major, arch, _, _, flags, _, size = fields
    if version != ENTRY_VERSION:
        raise elf.error(f"{where} has version {version:#06x}; known: {ENTRY_VERSION:#06x}")
    if header_size < ENTRY.size or header_size % 8 or payload_size % 8 or at + header_size + payload_size > end:
        raise elf.error(f"{where} claims {header_size:,} + {payload_size:,} bytes, which its container does not hold")
    if stored_size > payload_size or not 1 <= arch <= 999:
        raise elf.error(f"{where} claims {stored_size:,} compressed bytes and arch {arch}")
    compression = _compression(flags)
    known = Kind(kind) if kind in {Kind.PTX, Kind.ELF, Kind.LTO_IR} else Kind.OTHER
    countable = known is Kind.ELF and compression is Compression.NONE
    return Entry(
        offset=at,
        header_size=header_size,
        payload_size=payload_size,
        kind=known,
        arch=arch,
        suffix="a" if flags & Flag.ARCH_SPECIFIC else "f" if flags & Flag.FAMILY_SPECIFIC else "",
        version=(major, minor),
        compression=compression,
        stored_size=stored_size or payload_size,
        size=size or payload_size,
        flags=flags,
        kernels=sum(1 for _ in _kernel_headers(elf, at + header_size, payload_size)) if countable else None,
    )


def _compression(flags: int) -> Compression:
    if flags & Flag.ZSTD:
        return Compression.ZSTD
    if flags & Flag.LZ4:
        return Compression.LZ4
    return Compression.OLD if flags & Flag.OLD_LZ else Compression.NONE


def _kernel_headers(elf: Elf, start: int, size: int) -> Iterator[int]:
    """Yield, for each `.text.NAME` section of the cubin at `start`, the file offset of its name."""
    if size < EHDR.size or elf.data[start : start + 6] != b"\x7fELF\x02\x01":
        raise elf.error(f"the payload at {start:#x} is not a cubin, though its header says so")
    header = EHDR.unpack_from(elf.data, start)
    table, row, count, names = header[6], header[11], header[12], header[13]
    if not table:
        return
    if row != SHDR.size or table + SHDR.size > size:
        raise elf.error(f"the cubin at {start:#x} has no readable section table")
    first = SHDR.unpack_from(elf.data, start + table)
    count, names = count or first[5], first[6] if names == 0xFFFF else names
    if table + count * SHDR.size > size or names >= count:
        raise elf.error(f"the cubin at {start:#x} claims {count:,} sections, which it does not hold")
    text = start + SHDR.unpack_from(elf.data, start + table + names * SHDR.size)[4]
    rows = elf.data[start + table : start + table + count * SHDR.size]
    for name, _, flags, *_ in SHDR.iter_unpack(rows):
        at = text + name
        if flags & SHF_EXECINSTR and at + 6 <= start + size and elf.data[at : at + 6] == b".text.":
            yield at


def kernel_names(elf: Elf, entry: Entry) -> list[str]:
    """Return the mangled names of a cubin's kernels. Raises AuditError unless it is stored uncompressed."""
    if entry.kind is not Kind.ELF or entry.compression is not Compression.NONE:
        raise AuditError(
            f"{elf.name}: the kernels of {entry.target} at {entry.offset:#x} cannot be listed without "
            f"decompressing it ({entry.kind.name}, {entry.compression.value})"
        )
    start = entry.offset + entry.header_size
    return [elf.string(at + 6, entry.end) for at in _kernel_headers(elf, start, entry.payload_size)]


def _wrappers(elf: Elf, containers: set[int]) -> tuple[Wrapper, ...]:
    section = elf.section(WRAPPERS)
    if section is None or not section.address:
        return ()
    if section.size > MAX_CONTAINERS * WRAPPER.size:
        raise elf.error(f"{WRAPPERS} is {section.size:,} bytes long")
    wrappers = []
    for index, (magic, version, container, _) in enumerate(elf.rows(replace(section, entry_size=0), WRAPPER)):
        if magic != WRAPPER_MAGIC:
            raise elf.error(f"wrapper {index} in {WRAPPERS} starts with {magic:#010x}, not {WRAPPER_MAGIC:#010x}")
        at = index * WRAPPER.size
        wrappers.append(Wrapper(section.offset + at, section.address + at, version, container))
    if all(wrapper.container in containers for wrapper in wrappers):
        return tuple(wrappers)
    # Some linkers leave the pointer to the relocation alone.
    addends = relative_addends(elf, section.address, section.address + section.size)
    return tuple(replace(item, container=addends.get(item.address + 8, item.container)) for item in wrappers)


def relative_addends(elf: Elf, start: int, end: int) -> dict[int, int]:
    """Return {address: addend} of the dynamic relocations that write to addresses in [start, end)."""
    return {
        where: addend
        for section in elf.sections
        if section.type == SHT_RELA and section.address
        for where, _, addend in elf.rows(section, RELA)
        if start <= where < end
    }


def _units(elf: Elf) -> dict[int, str]:
    """Return {container address: source file} from the symbol table: `fatbinData` follows its FILE symbol."""
    table = elf.section(".symtab")
    indices = {section.index for section in elf.sections if section.name in SECTIONS}
    if table is None or not indices:
        return {}
    strings = elf.linked(table)
    units, unit = {}, 0
    for name, info, _, section, value, _ in elf.rows(table, SYM):
        if info & 0xF == STT_FILE:
            unit = name
        elif section in indices and unit:
            units[value] = unit
    return {address: _source(elf.string(strings.offset + at, strings.end)) for address, at in units.items()}


def _source(symbol: str) -> str:
    match = _UNIT.match(symbol)
    return match[1] if match else symbol
