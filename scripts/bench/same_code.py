"""Device code without the names that change from run to run: the numbers of the compiler's processes.

nvcc names what a unit keeps to itself after digests of its path and, where the unit has nothing that other units see,
after the process that compiled it: `_INTERNAL_3f64c698_37_flash_…_cu_73d593f5_25840`. Mangled names give the length
before (`_ZN74_INTERNAL_…`), so the number of digits moves whatever follows. Only nvcc's own seed stops it, which nvcc
12.5 does not know (docs/reproducible.md).
"""

from __future__ import annotations

import hashlib
import re

from scripts.formats.elf import EHDR, SHT_NOBITS, SHT_SYMTAB, SYM, Blob, Elf, Section
from scripts.formats.fatbin_types import FatbinEntry, Kind
from scripts.formats.payload import unpacked

SHT_STRTAB = 3
_MARK = re.compile(rb"(?:_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}_(\d{1,4})_")
_PROCESS = re.compile(rb"_[0-9a-f]{8}_(\d+)")
_LENGTH = re.compile(rb"\d{1,4}$")
_DIGITS = 7  # of the largest process number that Linux gives out, 4194304


def without_processes(text: bytes) -> bytes:
    """Return text with the process's number in nvcc's names replaced by 0, and the names' mangled lengths adjusted."""
    parts, at = [], 0
    for mark in _MARK.finditer(text):
        tail = _PROCESS.match(text, mark.end() + int(mark[1]))
        if tail is None or mark.start() < at:
            continue
        fixed = tail.start(1) - mark.start()
        written, digits = _mangled(text[max(at, mark.start() - 4) : mark.start()], fixed, tail[1])
        length = b"%d" % (fixed + 1) if written else b""
        parts += [text[at : mark.start() - written], length, text[mark.start() : tail.start(1)], b"0"]
        at = tail.start(1) + digits
    return b"".join([*parts, text[at:]])


def _mangled(before: bytes, fixed: int, digits: bytes) -> tuple[int, int]:
    """Return how many digits before a name tell its length, and how many of those behind it are the process's number.

    Both runs may go on in what is beside the name: `__476_GLOBAL__…_258406ignore` is 4, a name of 76, and `6ignore`.
    """
    run = _LENGTH.search(before)
    for count in range(1, len(run[0]) + 1 if run else 1):
        process = int(before[-count:]) - fixed
        if 1 <= process <= min(_DIGITS, len(digits)):
            return count, process
    return 0, len(digits)


def code_digest(blob: Blob, entry: FatbinEntry) -> str:
    """Return a digest of an entry's code and names, without process numbers; "" where it cannot be unpacked.

    Raises AuditError for a cubin that is damaged.
    """
    payload = unpacked(blob, entry)
    if payload is None:
        return ""
    if entry.kind is Kind.PTX:
        return hashlib.sha256(without_processes(payload.rstrip(b"\0"))).hexdigest()
    return _cubin_digest(Elf(payload, f"{blob.name}: {entry.target}")) if entry.kind is Kind.ELF else ""


def _cubin_digest(cubin: Elf) -> str:
    """Digest what a cubin's sections hold, byte by byte, and all names where they are used.

    Left out are string tables and the places of sections in the file, which the lengths of names move.
    """
    found = hashlib.sha256()
    ident, kind, machine, version, entry, _, _, flags, *_ = EHDR.unpack_from(cubin.data)
    found.update(repr((ident, kind, machine, version, entry, flags)).encode())
    for item in cubin.sections:
        size = item.size if item.type != SHT_STRTAB else 0
        facts = (item.type, item.flags, item.address, size, item.link, item.info, item.entry_size)
        found.update(repr((without_processes(item.name.encode()), facts)).encode())
        if item.type == SHT_SYMTAB:
            for row in _symbols(cubin, item):
                found.update(repr(row).encode())
        elif item.type not in {SHT_NOBITS, SHT_STRTAB}:
            found.update(cubin.data[item.offset : item.end])
    return found.hexdigest()


def _symbols(cubin: Elf, table: Section) -> list[tuple[bytes, tuple[int, ...]]]:
    strings = cubin.linked(table)
    return [
        (without_processes(cubin.string(strings.offset + name, strings.end).encode()), tuple(rest))
        for name, *rest in cubin.rows(table, SYM)
    ]
