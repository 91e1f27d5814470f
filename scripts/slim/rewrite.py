"""Cut a shared object down to the GPU code for some archs, without compiling and without guessing.

In each container the entries that the driver would choose for the archs stay; the containers are packed to the front
of `.nv_fatbin` and the pages that fall free are cut out of the file:

    before   | headers, code, .rodata | .nv_fatbin ................ | .eh_frame ... | data | symbols |
    after    | headers, code, .rodata | .nv_fatbin |  | .eh_frame ... | data | symbols |

All addresses stay as they are, except those of the containers: the read-only segment is split in two around the gap.
What points at a container moves with it: wrappers, dynamic relocations (RELA and RELR), symbols. The new program
header takes the slot of PT_GNU_PROPERTY, which repeats a PT_NOTE, or the table moves into the freed space.

A container is never zeroed: the driver takes a zeroed payload for a damaged image and fails. It gets smaller, down to
its 16-byte header. Whatever is not understood (an entry of unknown kind, a pointer into the middle of a container,
REL relocations, another machine) is refused with an AuditError, and nothing is written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from scripts.audit.coverage import choose
from scripts.formats.elf import PHDR, PT_LOAD, RELA, SHDR, SHT_RELA, SYM, Blob, Elf, Section, open_elf
from scripts.formats.fatbin import device_code
from scripts.formats.fatbin_types import CONTAINER, CONTAINER_MAGIC, Container, DeviceCode, FatbinEntry
from scripts.formats.payload import unpacked
from scripts.slim.layout import Layout, Placed, plan, refusal
from scripts.slim.recompress import MAX_PAYLOAD, recompressed

SHT_REL, SHT_RELR = 9, 19
R_X86_64_RELATIVE, R_X86_64_IRELATIVE = 8, 37
STT_SECTION = 3
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class Slimmed:
    """What slimming did to one shared object; sizes in bytes."""

    before: int
    after: int
    entries_before: int
    entries_after: int
    empty: bool
    """Whether it had GPU code and nothing of it is for the archs."""
    whole: int = 0
    """Containers that are kept as they are: device-linked, or not registered by host code."""
    recompressed: int = 0
    """Entries that are compressed otherwise than before."""


def slim_shared_object(
    source: Path, target: Path, archs: Sequence[tuple[int, int]], *, name: str = "", recompress: bool = False
) -> Slimmed:
    """Write `source` to `target` with GPU code for the compute capabilities `archs` only.

    `recompress`: what stays is compressed with zstd, where that makes it smaller.
    Raises AuditError, and leaves no `target`, when something in the file is not understood.
    """
    with open_elf(source, name or source.name) as elf:
        code = device_code(elf)
        layout = plan(elf, code, archs, partial(recompressed, elf) if recompress else None)
        if layout is None:
            _copy(elf, target)
            count = sum(1 for _ in code.entries)
            return Slimmed(elf.size, elf.size, count, count, empty=False, whole=len(code.containers))
        try:
            _write(elf, layout, target, _patches(elf, code, layout))
            _verify(elf, layout, target, archs)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        kept = sum(len(item.kept) for item in layout.placed)
        total = sum(len(item.container.entries) for item in layout.placed)
        whole = sum(item.container.wrapper != 1 for item in layout.placed)
        return Slimmed(
            elf.size,
            target.stat().st_size,
            total,
            kept,
            empty=total > 0 and kept == 0,
            whole=whole,
            recompressed=sum(entry.offset in item.changed for item in layout.placed for entry in item.kept),
        )


def _patches(elf: Elf, code: DeviceCode, layout: Layout) -> dict[int, bytes]:
    """Return {offset in the old file: new bytes} for everything outside the section that has to change."""
    section = layout.section
    moves = {item.container.address: section.address + item.start for item in layout.placed}
    patches = dict(_pointer_patches(elf, section, moves))
    for wrapper in code.wrappers:
        if wrapper.container in moves and wrapper.offset + 8 not in patches:
            raise refusal(elf, f"the wrapper at {wrapper.address:#x} points to its container without a relocation")
    patches.update(_symbol_patches(elf, layout, moves))
    patches.update(_header_patches(elf, layout))
    return patches


def _pointer_patches(elf: Elf, section: Section, moves: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
    """Yield what changes in and through the relocation tables."""
    inside = range(section.address, section.address + section.size)
    for table in elf.sections:
        if table.type == SHT_REL or (table.type == SHT_RELA and not table.address):
            raise refusal(elf, f"it has relocations of a kind that is not rewritten ({table.name})")
        if table.type == SHT_RELA:
            for index, (where, info, addend) in enumerate(elf.rows(table, RELA)):
                if info & 0xFFFFFFFF in {R_X86_64_RELATIVE, R_X86_64_IRELATIVE} and addend in inside:
                    target = _moved(elf, moves, addend)
                    yield table.offset + index * RELA.size + 16, target
                    # GNU ld writes the value in place too; lld and mold leave zeros, which stay.
                    at = elf.file_offset(where, 8)
                    yield at, target if elf.unpack(_U64, at, "a pointer")[0] == addend else bytes(8)
        elif table.type == SHT_RELR:
            for count, where in enumerate(relr_addresses(row[0] for row in elf.rows(table, _U64))):
                if count > elf.size // 8:
                    raise refusal(elf, "it has more relocations than it has words")
                at = elf.file_offset(where, 8)
                value = elf.unpack(_U64, at, "a pointer")[0]
                if value in inside:
                    yield at, _moved(elf, moves, value)


def _moved(elf: Elf, moves: Mapping[int, int], address: int) -> bytes:
    if address not in moves:
        raise refusal(elf, f"a relocation points into the middle of a container, to {address:#x}")
    return _U64.pack(moves[address])


def relr_addresses(rows: Iterator[int]) -> Iterator[int]:
    """Decode DT_RELR: an even word is an address; an odd one a bitmap of the 63 words behind the last address."""
    base = 0
    for row in rows:
        if row & 1 == 0:
            yield row
            base = row + 8
        else:
            for bit in range(1, 64):
                if row >> bit & 1:
                    yield base + (bit - 1) * 8
            base += 63 * 8


def _symbol_patches(elf: Elf, layout: Layout, moves: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
    section = layout.section
    sizes = {item.container.address: item.size for item in layout.placed}
    ends = {section.address + section.size: section.address + layout.size}
    for table in elf.sections:
        if table.name not in {".symtab", ".dynsym"}:
            continue
        for index, (name, info, other, where, value, size) in enumerate(elf.rows(table, SYM)):
            if where != section.index or info & 0xF == STT_SECTION:
                continue
            if value not in moves and value not in ends:
                raise refusal(elf, f"a symbol points into the middle of a container, to {value:#x}")
            new_size = min(size, sizes.get(value, 0))
            at = table.offset + index * SYM.size
            yield at, SYM.pack(name, info, other, where, moves.get(value, ends.get(value, 0)), new_size)


def _header_patches(elf: Elf, layout: Layout) -> Iterator[tuple[int, bytes]]:
    for section in elf.sections:
        at = elf.section_headers_at + section.index * SHDR.size
        if section.index == layout.section.index:
            yield at + 32, _U64.pack(layout.size)
        elif section.index and section.offset >= layout.end:
            yield at + 24, _U64.pack(section.offset - layout.cut)
    if layout.cut:
        yield 32, _U64.pack(layout.table)
        yield 40, _U64.pack(layout.moved(elf.section_headers_at))
        yield 56, struct.pack("<H", len(layout.segments))


def _write(elf: Elf, layout: Layout, target: Path, patches: Mapping[int, bytes]) -> None:
    """Write the new file: the part before, the packed containers, the part behind, then the patches."""
    section = layout.section
    with target.open("wb") as file:
        for block in elf.blocks(0, section.offset):
            file.write(block)
        for item in layout.placed:
            file.seek(section.offset + item.start)
            file.write(CONTAINER.pack(CONTAINER_MAGIC, 1, CONTAINER.size, item.size - CONTAINER.size))
            for entry in item.kept:
                for block in _planned(elf, item, entry):
                    file.write(block)
            elf.release()
        file.seek(layout.moved(layout.end))  # zeros between
        for block in elf.blocks(layout.end, elf.size):
            file.write(block)
        file.truncate(elf.size - layout.cut)
        for offset, data in patches.items():
            file.seek(layout.moved(offset))
            file.write(data)
        if layout.cut:
            file.seek(layout.table)
            for s in layout.segments:
                file.write(
                    PHDR.pack(s.type, s.flags, s.offset, s.address, s.address, s.file_size, s.memory_size, s.align)
                )


def _planned(elf: Elf, item: Placed, entry: FatbinEntry) -> Iterator[bytes]:
    """Yield what an entry is to be: header and payload, in blocks of 1 MiB."""
    new = item.changed.get(entry.offset)
    return elf.blocks(entry.offset, entry.end) if new is None else Blob(new, elf.name).blocks(0, len(new))


def _copy(elf: Elf, target: Path) -> None:
    with target.open("wb") as file:
        for block in elf.blocks(0, elf.size):
            file.write(block)


def _verify(elf: Elf, layout: Layout, target: Path, archs: Sequence[tuple[int, int]]) -> None:
    """Read the result back: every container holds exactly the bytes planned and gives each arch what it had."""
    with open_elf(target, elf.name) as new:
        found = [item for item in device_code(new).containers if item.section == layout.section.name]
        if len(found) != len(layout.placed):
            raise refusal(elf, f"{len(found)} containers came out of {len(layout.placed)}")
        for item, container in zip(layout.placed, found, strict=True):
            elf.release()
            new.release()
            same = [item.length(entry) for entry in item.kept] == [b.end - b.offset for b in container.entries]
            if not same or container.wrapper != item.container.wrapper or not _equal(elf, new, item, container):
                raise refusal(elf, f"the container of {container.unit} came out differently than planned")
            for arch in archs:
                if item.container.wrapper == 1 and choose(item.container, arch).how is not choose(container, arch).how:
                    raise refusal(elf, f"the container of {container.unit} would run differently on {arch}")
        for one, two in pairwise(
            sorted((s.address, s.address + s.memory_size) for s in new.segments if s.type == PT_LOAD)
        ):
            if one[1] > two[0]:
                raise refusal(elf, "two segments came out overlapping")


def _equal(elf: Elf, new: Elf, item: Placed, container: Container) -> bool:
    return all(
        one == two
        for a, b in zip(item.kept, container.entries, strict=True)
        for one, two in zip(_planned(elf, item, a), new.blocks(b.offset, b.end), strict=True)
    ) and all(
        unpacked(elf, a, MAX_PAYLOAD) == unpacked(new, b, MAX_PAYLOAD)
        for a, b in zip(item.kept, container.entries, strict=True)
        if a.offset in item.changed
    )
