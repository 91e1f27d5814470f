"""What is inside an entry of GPU code: kernels of a cubin, kernels of a PTX text, as far as that is cheap to know.

Cubins are ELF files; their kernels are the sections `.text.NAME`. A cubin's arch is in its ELF flags: CUDA 12 writes it
into the lowest byte and 0x800 for the `a` variant; CUDA 13 (ABI version 8) into the second byte and 0x8 for `a` of
archs from 10.0 on (of 9.0a it does not tell). Read off 1,400 cubins of vLLM, xformers and bitsandbytes whose fat
binary's header tells the arch too. PTX is text; small PTX is decompressed and its `.entry` lines are counted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import lz4.block
import zstandard

from scripts.core.errors import AuditError
from scripts.formats.elf import EHDR, EM_CUDA, SHDR, SHF_EXECINSTR, Blob
from scripts.formats.fatbin_types import Compression, FatbinEntry, Kind

MAX_PTX = 65_536  # bytes of PTX text that is decompressed to count its kernels: more is taken to have some
MAX_PEEK = 32 << 20  # bytes of LZ4 that are decompressed to find a kernel's name: LZ4 blocks have no middle
_ENTRY = re.compile(rb"^\s*(?:\.visible\s+|\.weak\s+)?\.entry\s+([\w$]+)", re.MULTILINE)
_STUB = re.compile(rb"\.entry\s+[\w$]+\s*\([^(){}]*\)[^{}]*\{\s*(?:ret;\s*)?\}")
_NEW_ABI = 8


def kernel_headers(blob: Blob, start: int, size: int) -> Iterator[int]:
    """Yield, for each `.text.NAME` section of the cubin at `start`, the file offset of its name."""
    if size < EHDR.size or blob.data[start : start + 6] != b"\x7fELF\x02\x01":
        raise blob.error(f"the payload at {start:#x} is not a cubin, though its header says so")
    header = EHDR.unpack_from(blob.data, start)
    table, row, count, names = header[6], header[11], header[12], header[13]
    if not table:
        return
    if row != SHDR.size or table + SHDR.size > size:
        raise blob.error(f"the cubin at {start:#x} has no readable section table")
    first = SHDR.unpack_from(blob.data, start + table)
    count, names = count or first[5], first[6] if names == 0xFFFF else names
    if table + count * SHDR.size > size or names >= count:
        raise blob.error(f"the cubin at {start:#x} claims {count:,} sections, which it does not hold")
    text = start + SHDR.unpack_from(blob.data, start + table + names * SHDR.size)[4]
    blob.spend_rows(count * SHDR.size)
    rows = blob.data[start + table : start + table + count * SHDR.size]
    for name, _, flags, *_ in SHDR.iter_unpack(rows):
        at = text + name
        if flags & SHF_EXECINSTR and at + 6 <= start + size and blob.data[at : at + 6] == b".text.":
            yield at


def kernel_names(blob: Blob, entry: FatbinEntry) -> list[str]:
    """Return the mangled names of a cubin's kernels. Raises AuditError unless it is stored uncompressed."""
    if entry.kind is not Kind.ELF or entry.compression is not Compression.NONE:
        raise AuditError(
            f"{blob.name}: the kernels of {entry.target} at {entry.offset:#x} cannot be listed without "
            f"decompressing it ({entry.kind.name}, {entry.compression.value})"
        )
    start = entry.offset + entry.header_size
    return [blob.string(at + 6, entry.end) for at in kernel_headers(blob, start, entry.payload_size)]


def cubin_entry(blob: Blob) -> FatbinEntry | None:
    """Return a whole file that is a cubin as an entry; None when it is not one. Raises AuditError when damaged."""
    if blob.size < EHDR.size or blob.data[:6] != b"\x7fELF\x02\x01":
        return None
    ident, kind, machine, *_, flags, _, _, _, _, _, _ = EHDR.unpack_from(blob.data)
    if machine != EM_CUDA:
        return None
    new = ident[8] >= _NEW_ABI
    arch = flags >> 8 & 0xFF if new else flags & 0xFF
    specific = bool(flags & 0x8) if new else bool(flags & 0x800)
    if not arch or kind == 1:  # relocatable device code: the driver does not load it
        return None
    return FatbinEntry(
        offset=0,
        header_size=0,
        payload_size=blob.size,
        kind=Kind.ELF,
        arch=arch,
        suffix="a" if specific else "",
        version=(1, 8 if new else 7),
        compression=Compression.NONE,
        stored_size=blob.size,
        size=blob.size,
        flags=0,
        kernels=sum(1 for _ in kernel_headers(blob, 0, blob.size)),
    )


def ptx_kernels(blob: Blob, entry: FatbinEntry) -> int | None:
    """Return how many kernels a small PTX has; None when it is too large to look at or cannot be decompressed.

    A kernel that only returns is none: cuBLAS has one, for `sm_52`, that asks whether the hardware answers.
    """
    if entry.kind is not Kind.PTX or entry.size > MAX_PTX or entry.compression is Compression.OLD:
        return None
    text = _start(blob, entry, MAX_PTX)
    if text is None:
        return None
    return sum(1 for _ in _ENTRY.finditer(text)) - sum(1 for _ in _STUB.finditer(text))


def first_kernel(blob: Blob, entry: FatbinEntry) -> str:
    """Return the mangled name of the first kernel of a PTX, "" when its first 64 KiB do not have one."""
    text = _start(blob, entry, MAX_PTX) if entry.kind is Kind.PTX else None
    match = _ENTRY.search(text or b"")
    return match[1].decode("ascii", "replace") if match else ""


def unpacked(blob: Blob, entry: FatbinEntry, most: int = MAX_PEEK) -> bytes | None:
    """Return a whole payload, decompressed; None when that is more than `most` bytes or cannot be done."""
    size = entry.payload_size if entry.compression is Compression.NONE else entry.size
    return _start(blob, entry, size) if size <= most else None


def _start(blob: Blob, entry: FatbinEntry, limit: int) -> bytes | None:
    """Return the first `limit` bytes of a payload when decompressed."""
    at = entry.offset + entry.header_size
    if entry.compression is Compression.NONE:
        return blob.data[at : at + min(entry.payload_size, limit)]
    stored = min(entry.stored_size, entry.payload_size)
    try:
        if entry.compression is Compression.ZSTD:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                io.BytesIO(blob.data[at : at + min(stored, 4 * limit)])
            )
            return reader.read(limit)
        if entry.compression is Compression.LZ4 and entry.size <= max(limit, MAX_PEEK):
            text: bytes = lz4.block.decompress(blob.data[at : at + stored], uncompressed_size=entry.size)
            return text[:limit]
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, MemoryError):
        return None
    return None
