"""The kernels of a cubin one by one, for headers that leave out what no kernel uses.

CUB's header of device-wide algorithms brings `EmptyKernel` into every unit, and variables such as Thrust's
placeholders (`_1`, `_2`). CUB asks for the kernel's attributes to learn for which PTX version a unit was compiled;
nothing launches it. The lean headers leave that header out where a unit does not call these algorithms. Then sections
and symbols have other numbers, and only what each kernel holds can be compared. Instructions name a variable by its
place in a table, so a kernel that uses one which has moved has other instructions.
"""

from __future__ import annotations

import hashlib
import re

from scripts.bench.same_code import without_processes
from scripts.formats.elf import RELA, SHT_NOBITS, SHT_SYMTAB, SYM, Blob, Elf, Section
from scripts.formats.fatbin_types import FatbinEntry, Kind
from scripts.formats.payload import unpacked

_TEXT = ".text."
_PARTS = (".nv.constant0.", ".nv.shared.", ".nv.local.")
_REGISTERS = 24  # bits of a kernel's sh_info below its number of registers: the symbol's index
_DATA = (".nv.global.init", ".nv.constant1", ".nv.constant2", ".nv.constant3")  # with values; .nv.global has none
UNUSED = re.compile(r"_ZN3cub(\d+(CUB|unit)_\w+?)?(6detail)?11EmptyKernelIvEEvv")


def kernel_digests(blob: Blob, entry: FatbinEntry) -> frozenset[tuple[str, str]]:
    """Return each kernel's name and a digest of its instructions, registers, constants, shared memory and relocations.

    Variables that have values stand under the name "". Empty for PTX and for what cannot be unpacked. Raises AuditError
    for a cubin that is damaged.
    """
    payload = unpacked(blob, entry) if entry.kind is Kind.ELF else None
    if payload is None:
        return frozenset()
    cubin = Elf(payload, f"{blob.name}: {entry.target}")
    names = _symbols(cubin)
    by_name = {item.name: item for item in cubin.sections}
    kernels = [item.removeprefix(_TEXT) for item in by_name if item.startswith(_TEXT)]
    if not kernels:
        return frozenset()
    data = hashlib.sha256()
    for section in (item for item in cubin.sections if item.name.startswith(_DATA) and item.type != SHT_NOBITS):
        data.update(section.name.encode() + cubin.data[section.offset : section.end])
    found = {(without_processes(name.encode()).decode(), _digest(cubin, name, by_name, names)) for name in kernels}
    return frozenset(found | {("", data.hexdigest())})


def only_unused(stock: frozenset[tuple[str, str]], lean: frozenset[tuple[str, str]]) -> str:
    """Return what only stock has if no kernel uses it and nothing launches it, "" where anything else differs."""
    extra = sorted(name for name, _ in stock - lean)
    if not lean or not lean <= stock or not all(UNUSED.fullmatch(name) for name in extra):
        return ""
    return f"{extra[0]}, which nothing launches" if extra else "variables that no kernel uses"


def _digest(cubin: Elf, kernel: str, by_name: dict[str, Section], names: list[bytes]) -> str:
    text = by_name[_TEXT + kernel]
    found = hashlib.sha256(repr((text.flags, text.info >> _REGISTERS, text.size)).encode())
    found.update(cubin.data[text.offset : text.end])
    for part in _PARTS:
        if (section := by_name.get(part + kernel)) is not None:
            found.update(repr((part, section.size)).encode())
            if section.type != SHT_NOBITS:
                found.update(cubin.data[section.offset : section.end])
    if (moves := by_name.get(f".rela{_TEXT}{kernel}")) is not None:
        for offset, info, addend in cubin.rows(moves, RELA):
            target = names[info >> 32] if info >> 32 < len(names) else b"?"
            found.update(repr((offset, info & 0xFFFFFFFF, addend, target)).encode())
    return found.hexdigest()


def _symbols(cubin: Elf) -> list[bytes]:
    table = next((item for item in cubin.sections if item.type == SHT_SYMTAB), None)
    if table is None:
        return []
    strings = cubin.linked(table)
    rows = cubin.rows(table, SYM)
    return [without_processes(cubin.string(strings.offset + row[0], strings.end).encode()) for row in rows]
