"""Read the GPU code inside host files: which kernels, for which archs, as SASS or PTX, compiled by which CUDA.

    from pathlib import Path
    from scripts.formats.fatbin import read_device_code

    code = read_device_code(Path("libfoo.so"))
    for container in code.containers:
        print(container.unit, [entry.target for entry in container.entries])

nvcc puts one *container* per translation unit into the section `.nv_fatbin` (`__nv_relfatbin` for relocatable device
code), and a 24-byte *wrapper* that points at it into `.nvFatBinSegment`. A container is a row of *entries*: an ELF
cubin (SASS, machine code of one arch), PTX text or LTO-IR. All that is needed to judge them is in their headers;
nothing is decompressed but small PTX, to see whether it has a kernel. NVIDIA does not document the format:
docs/fatbin.md tells how it was found out and checked.

Sizes are bytes, offsets count from the start of the file, addresses are virtual ones of the ELF file.
All functions raise AuditError for input that is damaged or of an unknown version, after bounded time and memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from scripts.formats.elf import (
    BLOCK,
    ET_REL,
    PT_LOAD,
    RELA,
    RELEASE,
    SHT_RELA,
    STT_FILE,
    SYM,
    Blob,
    Elf,
    Section,
    open_elf,
)
from scripts.formats.fatbin_types import (
    CONTAINER,
    CONTAINER_MAGIC,
    ENTRY,
    ENTRY_VERSION,
    SECTIONS,
    WRAPPER,
    WRAPPER_MAGIC,
    WRAPPERS,
    Compression,
    Container,
    DeviceCode,
    FatbinEntry,
    Flag,
    Kind,
    Wrapper,
)
from scripts.formats.payload import cubin_entry, kernel_headers, ptx_kernels

MAX_CONTAINERS = 50_000  # libtorch_cuda.so has about 700
MAX_ENTRIES = 100_000  # cuBLASLt has 5,449, onnxruntime's CUDA provider some 10,000
MAX_SMALL_PTX = 2_000  # of one file are looked into for kernels
_MAGIC = CONTAINER.pack(CONTAINER_MAGIC, 1, CONTAINER.size, 0)[:8]
_NOT_ZERO = re.compile(rb"[^\0]")
_UNIT = re.compile(r"tmpxft_[0-9a-f]+_[0-9a-f]+-\d+_(.+?)(?:\.compute_\w+)?\.cudafe1\.(?:cpp|c|gpu|stub\.c)$")


def read_device_code(path: Path, name: str = "") -> DeviceCode:
    """Read all GPU code of a shared object, executable or object file; `name` is used in messages."""
    with open_elf(path, name) as elf:
        return device_code(elf)


def device_code(elf: Elf) -> DeviceCode:
    """Read all GPU code of an ELF file that is open: a host file's containers, or a cubin as it is."""
    if cubin := cubin_entry(elf):
        return DeviceCode(elf.name, (Container("cubin", 0, 0, elf.size, (cubin,)),), ())
    containers = _checked(elf, [item for section in _sections(elf) for item in _containers(elf, section)])
    wrappers = _wrappers(elf, {container.address for container in containers})
    versions = {wrapper.container: wrapper.version for wrapper in wrappers}
    units = _units(elf)
    named = tuple(
        replace(
            container,
            unit=units.get(container.address, "") if container.address else "",
            wrapper=versions.get(container.address, 0),
        )
        for container in containers
    )
    return DeviceCode(elf.name, named, wrappers, loadable=elf.type != ET_REL)


def container_units(elf: Elf) -> list[str]:
    """Return the unit of each container, "" where the symbols do not tell; the entries in them are not read."""
    if cubin_entry(elf):
        return [""]
    units = _units(elf)
    places = (_address(section, offset) for section in _sections(elf) for offset, _ in _headers(elf, section))
    return [units.get(address, "") if address else "" for address in places]


def fatbin_code(blob: Blob) -> DeviceCode:
    """Read a file that is a fat binary itself, as `nvcc --fatbin` writes it."""
    section = Section(0, SECTIONS[0], 1, 0, 0, 0, blob.size, 0, 0, 0)
    return DeviceCode(blob.name, tuple(_checked(blob, list(_containers(blob, section)))), ())


def _checked(blob: Blob, containers: list[Container]) -> list[Container]:
    entries = sum(len(container.entries) for container in containers)
    if len(containers) > MAX_CONTAINERS or entries > MAX_ENTRIES:
        raise blob.error(f"{len(containers):,} containers with {entries:,} entries: more than any real file has")
    return containers


def _sections(elf: Elf) -> list[Section]:
    """Return the sections with containers; of a file without section headers, where its segments hold containers."""
    found = sorted((item for item in elf.sections if item.name in SECTIONS), key=lambda item: item.offset)
    for one, two in pairwise(found):
        if one.end > two.offset:
            raise elf.error(f"two sections {one.name} overlap")
    return found or ([] if elf.sections else list(_scanned(elf)))


def _scanned(elf: Elf) -> Iterator[Section]:
    """Yield a section for each container that the segments of a file without section headers hold."""
    at = 0
    for segment in sorted((item for item in elf.segments if item.type == PT_LOAD), key=lambda item: item.offset):
        end = min(segment.offset + segment.file_size, elf.size)
        at = max(at, segment.offset)
        while (at := elf.data.find(_MAGIC, at, end)) >= 0:
            if at % 8 or at + CONTAINER.size > end:
                at += 1
                continue
            size = CONTAINER.unpack_from(elf.data, at)[3]
            stop = at + CONTAINER.size + size
            if stop > end:
                raise elf.error(f"the container at {at:#x} reaches beyond its segment")
            address = segment.address + at - segment.offset
            yield Section(0, SECTIONS[0], 1, 0, address, at, stop - at, 0, 0, 0)
            at = stop
        at = end


def _containers(elf: Blob, section: Section) -> Iterator[Container]:
    """Yield the containers of a section with all that is in them."""
    entries = 0
    for offset, size in _headers(elf, section):
        container = _container(elf, section, offset, size)
        entries += len(container.entries)
        if entries > MAX_ENTRIES:
            raise elf.error(f"more than {MAX_ENTRIES:,} entries in {section.name}")
        yield container


def _headers(elf: Blob, section: Section) -> Iterator[tuple[int, int]]:
    """Yield (offset, bytes behind the header) of a section's containers: back to back, 8-aligned, zeros between."""
    offset, count, released = section.offset, 0, section.offset
    while found := _NOT_ZERO.search(elf.data, offset, section.end):
        offset = section.offset + (found.start() - section.offset) // 8 * 8
        size, count = _size(elf, section, offset), count + 1
        if count > MAX_CONTAINERS:
            raise elf.error(f"more than {MAX_CONTAINERS:,} containers in {section.name}")
        yield offset, size
        offset += CONTAINER.size + size
        if offset - released > RELEASE * BLOCK:
            elf.release()
            released = offset


def _size(elf: Blob, section: Section, offset: int) -> int:
    where = f"the container at {offset:#x}"
    if offset + CONTAINER.size > section.end:
        raise elf.error(f"{where} is cut off by the end of {section.name}")
    magic, version, header_size, size = CONTAINER.unpack_from(elf.data, offset)
    if magic != CONTAINER_MAGIC:
        raise elf.error(f"{where} starts with {magic:#010x}, not with {CONTAINER_MAGIC:#010x}")
    if (version, header_size) != (1, CONTAINER.size):
        raise elf.error(f"{where} has version {version} and a header of {header_size} bytes; known: 1 and 16")
    if offset + CONTAINER.size + size > section.end:
        raise elf.error(f"{where} is {size:,} bytes long and reaches beyond the end of {section.name}")
    return int(size)


def _container(elf: Blob, section: Section, offset: int, size: int) -> Container:
    end = offset + CONTAINER.size + size
    entries: list[FatbinEntry] = []
    at = offset + CONTAINER.size
    while at < end:
        entry = _entry(elf, at, end)
        if len(entries) >= MAX_ENTRIES:
            raise elf.error(f"the container at {offset:#x} has more than {MAX_ENTRIES:,} entries")
        entries.append(entry)
        at = entry.end
    return Container(section.name, offset, _address(section, offset), size, tuple(entries))


def _address(section: Section, offset: int) -> int:
    return section.address + offset - section.offset if section.address else 0


def _entry(elf: Blob, at: int, end: int) -> FatbinEntry:
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
    entry = FatbinEntry(
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
        kernels=None,
    )
    return replace(entry, kernels=_kernels(elf, entry))


def _kernels(elf: Blob, entry: FatbinEntry) -> int | None:
    if entry.kind is Kind.ELF and entry.compression is Compression.NONE:
        return sum(1 for _ in kernel_headers(elf, entry.offset + entry.header_size, entry.payload_size))
    return ptx_kernels(elf, entry)


def _compression(flags: int) -> Compression:
    if flags & Flag.ZSTD:
        return Compression.ZSTD
    if flags & Flag.LZ4:
        return Compression.LZ4
    return Compression.OLD if flags & Flag.OLD_LZ else Compression.NONE


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
