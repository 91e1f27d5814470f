"""The dynamic-linking side of an ELF file: sonames, search paths, symbol versions, symbols wanted and provided.

Layouts: System V ABI (dynamic section), LSB Core 10.7 (symbol versions), GNU hash as in glibc's dl-lookup.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.elf.enums import ENUM_D_TAG, ENUM_P_TYPE_BASE, ENUM_SH_TYPE_BASE

from scripts.formats.elf import EM_AARCH64, EM_X86_64, SYM, Elf, Section

MAX_NEEDED = 1_000
MAX_CHAIN = 100_000  # symbols in one bucket of a hash table
_DYN = struct.Struct("<QQ")
_VERNEED = struct.Struct("<HHIII")
_VERNAUX = struct.Struct("<IHHII")
_GNU_HASH = struct.Struct("<IIII")
DT_NEEDED: int = ENUM_D_TAG["DT_NEEDED"]
DT_SONAME: int = ENUM_D_TAG["DT_SONAME"]
DT_RPATH: int = ENUM_D_TAG["DT_RPATH"]
DT_RUNPATH: int = ENUM_D_TAG["DT_RUNPATH"]
PT_GNU_STACK: int = ENUM_P_TYPE_BASE["PT_GNU_STACK"]
SHT_GNU_VERNEED: int = ENUM_SH_TYPE_BASE["SHT_GNU_verneed"]
STB_WEAK = 2
MACHINES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}


@dataclass(frozen=True)
class Dynamic:
    """What the dynamic linker is told."""

    needed: tuple[str, ...]
    soname: str
    rpath: tuple[str, ...]
    versions: tuple[str, ...]
    """Symbol versions needed: `GLIBC_2.31`, `GLIBCXX_3.4.29`."""
    executable_stack: bool
    stripped: bool
    machine: str


def read_dynamic(elf: Elf) -> Dynamic:
    """Read the dynamic section. Raises AuditError when it is damaged."""
    section = elf.section(".dynamic")
    tags: list[tuple[int, str]] = []
    if section is not None and section.size:
        strings = elf.linked(section)
        for tag, value in elf.rows(section, _DYN):
            if tag == 0 or len(tags) > MAX_NEEDED:
                break
            if tag in {DT_NEEDED, DT_SONAME, DT_RPATH, DT_RUNPATH}:
                tags.append((tag, elf.string(strings.offset + value, strings.end)))
    stacks = [segment.flags & 1 for segment in elf.segments if segment.type == PT_GNU_STACK]
    return Dynamic(
        needed=tuple(text for tag, text in tags if tag == DT_NEEDED),
        soname=next((text for tag, text in tags if tag == DT_SONAME), ""),
        rpath=tuple(part for tag, text in tags if tag in {DT_RPATH, DT_RUNPATH} for part in text.split(":") if part),
        versions=tuple(sorted(set(_versions(elf)))),
        executable_stack=bool(stacks and stacks[0]) or (bool(elf.segments) and not stacks),
        stripped=elf.section(".symtab") is None,
        machine=MACHINES.get(elf.machine, str(elf.machine)),
    )


def _versions(elf: Elf) -> Iterator[str]:
    section = next((item for item in elf.sections if item.type == SHT_GNU_VERNEED), None)
    if section is None:
        return
    strings, at = elf.linked(section), section.offset
    limit = section.size // _VERNAUX.size + 1  # more rows than fit into the section repeat or overlap
    while at < section.end:
        _, count, _, auxiliary, following = elf.unpack(_VERNEED, at, "a version table")
        where = at + auxiliary
        for _ in range(count):
            limit -= 1
            if limit < 0:
                raise elf.error(f"{section.name} lists more versions than it has bytes for")
            _, _, _, name, step = elf.unpack(_VERNAUX, where, "a version table")
            yield elf.string(strings.offset + name, strings.end)
            if not step:
                break
            where += step
        if not following:
            return
        at += following


def undefined_symbols(elf: Elf) -> list[str]:
    """Return the names of symbols that some other library must provide; weak ones may stay without."""
    table = elf.section(".dynsym")
    if table is None:
        return []
    strings = elf.linked(table)
    return [
        elf.string(strings.offset + name, strings.end)
        for name, info, _, section, _, _ in elf.rows(table, SYM)
        if name and section == 0 and info >> 4 != STB_WEAK
    ]


def gnu_hash(name: str) -> int:
    """Return the GNU hash of a symbol's name: h = h * 33 + c, from 5381, 32 bits."""
    value = 5381
    for character in name.encode():
        value = (value * 33 + character) & 0xFFFFFFFF
    return value


class Exports:
    """Looks symbols up in a library as the dynamic linker does, through its hash table: a few pages per look-up."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        table, symbols = elf.section(".gnu.hash"), elf.section(".dynsym")
        self._usable = table is not None and symbols is not None and table.size >= _GNU_HASH.size
        if not self._usable or table is None or symbols is None:
            return
        self._symbols: Section = symbols
        self._strings = elf.linked(symbols)
        self._buckets, self._first, bloom, _ = elf.unpack(_GNU_HASH, table.offset, ".gnu.hash")
        self._bucket_at = table.offset + _GNU_HASH.size + bloom * 8
        self._chain_at = self._bucket_at + self._buckets * 4
        self._chain_end = table.end

    def __contains__(self, name: str) -> bool:
        """Whether the library defines the symbol."""
        if not self._usable or not self._buckets:
            return False
        wanted = gnu_hash(name)
        first = self._word(self._bucket_at + wanted % self._buckets * 4)
        for index in range(first, first + MAX_CHAIN):
            if index < self._first:
                return False
            at = self._chain_at + (index - self._first) * 4
            if at + 4 > self._chain_end:
                return False
            value = self._word(at)
            if value | 1 == wanted | 1 and self._defines(index, name):
                return True
            if value & 1:
                return False
        return False

    def _word(self, at: int) -> int:
        self._elf.check_range(at, 4, ".gnu.hash")
        return int.from_bytes(self._elf.data[at : at + 4], "little")

    def _defines(self, index: int, name: str) -> bool:
        row = self._elf.unpack(SYM, self._symbols.offset + index * SYM.size, "a symbol")
        defined = row[3] != 0
        return defined and self._elf.string(self._strings.offset + row[0], self._strings.end) == name
