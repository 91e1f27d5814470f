"""Plan a slimmer shared object: which entries stay, where the containers go, which pages fall free.

The read-only segment is split in two around the freed pages, so that every address but the containers' own stays.
That takes one more program header: it gets the slot of PT_GNU_PROPERTY, which repeats a PT_NOTE, or the whole table
moves to the end of the containers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scripts.audit.coverage import choose
from scripts.core.errors import AuditError
from scripts.formats.elf import EM_X86_64, ET_DYN, PHDR, PT_LOAD, SHDR, Elf, Section, Segment
from scripts.formats.fatbin_types import CONTAINER, SECTIONS, Container, DeviceCode, FatbinEntry, Kind

PAGE = 0x1000
PT_NULL, PT_NOTE, PT_PHDR, PT_GNU_PROPERTY = 0, 4, 6, 0x6474E553


def refusal(elf: Elf, why: str) -> AuditError:
    """Return the error for something that cannot be rewritten with certainty."""
    return AuditError(
        f"{elf.name}: cannot be slimmed safely",
        why=why,
        fix="keep the wheel as it is; a report of this file helps to teach wheelsmith about it",
    )


@dataclass(frozen=True)
class Placed:
    """A container, what stays of it, and where it goes (offset in the section)."""

    container: Container
    kept: tuple[FatbinEntry, ...]
    start: int
    changed: Mapping[int, bytes] = field(default_factory=dict)
    """Entries that get other bytes, by their old offset in the file: header and payload."""

    @property
    def size(self) -> int:
        """Bytes with the header."""
        return CONTAINER.size + sum(map(self.length, self.kept))

    def length(self, entry: FatbinEntry) -> int:
        """Return how long an entry becomes, with its header."""
        return len(self.changed[entry.offset]) if entry.offset in self.changed else entry.end - entry.offset


@dataclass(frozen=True)
class Layout:
    """The new file: containers, and how the rest moves."""

    section: Section
    placed: tuple[Placed, ...]
    size: int
    """New size of the section."""
    cut: int
    """Bytes taken out of the file behind it: everything from the section's end on moves forward by this."""
    segments: tuple[Segment, ...]
    table: int
    """File offset of the program headers."""

    @property
    def end(self) -> int:
        """Where the section ends in the old file."""
        return self.section.offset + self.section.size

    def moved(self, offset: int) -> int:
        """Return where a byte outside the section is in the new file."""
        return offset if offset < self.end else offset - self.cut


def plan(
    elf: Elf,
    code: DeviceCode,
    archs: Sequence[tuple[int, int]],
    change: Callable[[Sequence[FatbinEntry]], Mapping[int, bytes]] | None = None,
) -> Layout | None:
    """Plan the new file; None when there is nothing to prune.

    `change` is given the entries that stay and returns those that get other bytes, by their offset.
    """
    sections = [section for section in elf.sections if section.name == SECTIONS[0] and section.size]
    if not sections or not any(container.wrapper == 1 for container in code.containers):
        return None
    section = sections[0]
    if len(sections) > 1 or elf.type != ET_DYN or elf.machine != EM_X86_64 or not section.address:
        raise refusal(elf, "it is not an x86-64 shared object with one .nv_fatbin section")
    placed: list[Placed] = []
    at = 0
    kept = {item.offset: _kept(elf, item, archs) for item in code.containers if item.section == section.name}
    judged = [entry for item in code.containers if item.wrapper == 1 for entry in kept.get(item.offset, ())]
    changed = change(judged) if change else {}
    for container in code.containers:
        if container.section == section.name:
            placed.append(Placed(container, kept[container.offset], at, changed))
            at += -(-placed[-1].size // 8) * 8
    plain = Layout(section, tuple(placed), at, 0, elf.segments, elf.program_headers_at)
    return _with_cut(elf, plain)


def _kept(elf: Elf, container: Container, archs: Sequence[tuple[int, int]]) -> tuple[FatbinEntry, ...]:
    if container.wrapper != 1:  # device-linked or not registered by host code: not ours to judge
        return container.entries
    if any(entry.kind is Kind.OTHER for entry in container.entries):
        raise refusal(elf, f"the container at {container.offset:#x} ({container.unit}) has an entry of unknown kind")
    chosen = {choice.entry.offset for arch in archs if (choice := choose(container, arch)).entry is not None}
    witnesses = [entry.offset for entry in container.entries if entry.kernels == 0]
    if container.empty and chosen and not chosen & set(witnesses):
        chosen.add(witnesses[0])  # PTX alone would not tell that no kernel is inside
    return tuple(entry for entry in container.entries if entry.offset in chosen)


def _with_cut(elf: Elf, plain: Layout) -> Layout:
    """Split the segment of the section around the pages that fall free, when there are any."""
    section, end = plain.section, plain.end
    segment = _home(elf, section)
    _check_neighbours(elf, section, segment)
    spare = _spare(elf.segments)
    table, stop = plain.table, section.offset + plain.size
    if spare is None:
        table = -(-stop // 8) * 8
        stop = table + (len(elf.segments) + 1) * PHDR.size
    page = max(segment.align, PAGE)
    tail = end // page * page  # offsets and addresses agree modulo the page size
    cut = (tail - stop) // page * page
    if cut <= 0:
        return plain
    front = replace(segment, file_size=stop - segment.offset, memory_size=stop - segment.offset)
    shift = end - segment.offset  # the loader rounds down to the page; strip wants the first section's own address
    rest = segment.file_size - shift
    back = Segment(PT_LOAD, segment.flags, end - cut, segment.address + shift, rest, rest, segment.align)
    others = [item for item in elf.segments if item is not segment and item is not spare]
    moved = [replace(item, offset=item.offset - cut) if item.offset >= end else item for item in others]
    at = sum(1 for item in elf.segments[: elf.segments.index(segment)] if item is not spare)
    segments = [*moved[:at], front, *([back] if rest else []), *moved[at:]]
    if spare is None:
        own = len(segments) * PHDR.size
        where = segment.address + table - segment.offset
        new = {"offset": table, "address": where, "file_size": own, "memory_size": own}
        segments = [replace(item, **new) if item.type == PT_PHDR else item for item in segments]
    return replace(plain, cut=cut, segments=tuple(segments), table=table)


def _home(elf: Elf, section: Section) -> Segment:
    """Return the segment that loads the section."""
    end = section.offset + section.size
    home = [s for s in elf.segments if s.type == PT_LOAD and s.offset <= section.offset < s.offset + s.file_size]
    if len(home) != 1 or home[0].offset + home[0].file_size < end or home[0].file_size != home[0].memory_size:
        raise refusal(elf, ".nv_fatbin is not inside one segment of its own kind")
    segment = home[0]
    page = max(segment.align, PAGE)
    same = section.offset - segment.offset == section.address - segment.address
    if page & (page - 1) or (segment.offset - segment.address) % page or not same:
        raise refusal(elf, f"its segment is aligned to {segment.align:#x}")
    return segment


def _check_neighbours(elf: Elf, section: Section, segment: Segment) -> None:
    """Refuse files in which something else reaches into the section's bytes."""
    end = section.offset + section.size
    for other in elf.sections:
        if other.index != section.index and other.offset < end and other.end > section.offset:
            raise refusal(elf, f"section {other.name} overlaps .nv_fatbin")
    for item in elf.segments:
        if (
            item is not segment
            and item.file_size
            and item.offset < end
            and item.offset + item.file_size > section.offset
        ):
            raise refusal(elf, f"a segment of type {item.type:#x} overlaps .nv_fatbin")
    if any(start < end and stop > section.offset for start, stop in _tables(elf)):
        raise refusal(elf, "a table of headers is inside .nv_fatbin")


def _tables(elf: Elf) -> Iterator[tuple[int, int]]:
    yield elf.program_headers_at, elf.program_headers_at + len(elf.segments) * PHDR.size
    yield elf.section_headers_at, elf.section_headers_at + len(elf.sections) * SHDR.size


def _spare(segments: Sequence[Segment]) -> Segment | None:
    """Return a program header that can go: an empty one, or a PT_GNU_PROPERTY that repeats a PT_NOTE."""
    notes = {(item.offset, item.file_size) for item in segments if item.type == PT_NOTE}
    for item in segments:
        if item.type == PT_NULL or (item.type == PT_GNU_PROPERTY and (item.offset, item.file_size) in notes):
            return item
    return None
