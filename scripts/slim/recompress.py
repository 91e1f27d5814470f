"""GPU code compressed anew: zstd at the level of nvcc's `--compress-mode=size`, in place of LZ4 or of nothing.

nvcc before 13.0 stores cubins as they are and PTX as LZ4 unless it is told otherwise; upstream tells it so for CUDA 13
only. The payload changes and four fields of its header (docs/fatbin.md); drivers from CUDA 12.4 on read it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import zstandard

from scripts.formats.elf import Blob
from scripts.formats.fatbin_types import Compression, FatbinEntry, Flag, Kind
from scripts.formats.payload import unpacked

LEVEL = 19  # what nvcc 13.0's fatbinary takes for `size`: its payloads are this level's, byte for byte
_PAYLOAD_SIZE, _STORED_SIZE, _FLAGS, _SIZE = 0x08, 0x10, 0x28, 0x38  # offsets in an entry's header
MAX_PAYLOAD = 256 << 20  # bytes when decompressed; the largest seen is 65 MB (scaled_mm_c2x)
_HEADER = 64  # bytes that have all of them


def recompressed(blob: Blob, entries: Iterable[FatbinEntry]) -> Mapping[int, bytes]:
    """Return {offset: whole new entry} for those that get smaller.

    What is zstd already, debug code and entries without a kernel, whose emptiness would not show any more, stay.
    """
    fit = [entry for entry in entries if _may_change(entry)]
    # zstd works outside Python's lock.
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        made = pool.map(partial(_compress, blob), fit)
        return {entry.offset: data for entry, data in zip(fit, made, strict=True) if data}


def _may_change(entry: FatbinEntry) -> bool:
    plain = entry.compression in {Compression.NONE, Compression.LZ4} and not entry.flags & Flag.DEBUG
    return plain and entry.kind in {Kind.ELF, Kind.PTX} and entry.kernels != 0 and entry.header_size >= _HEADER


def _compress(blob: Blob, entry: FatbinEntry) -> bytes:
    """Return the entry with its header, b"" when it would not be smaller."""
    data = unpacked(blob, entry, MAX_PAYLOAD)
    if not data or len(data) != (entry.size or entry.payload_size):
        return b""  # too large, or not what its header says: it stays as it is
    payload = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    padded = -(-len(payload) // 8) * 8
    if padded >= entry.payload_size:
        return b""
    header = bytearray(blob.data[entry.offset : entry.offset + entry.header_size])
    flags = entry.flags & ~(Flag.LZ4 | Flag.OLD_LZ) | Flag.ZSTD
    for at, form, value in (
        (_PAYLOAD_SIZE, "<Q", padded),
        (_STORED_SIZE, "<I", len(payload)),
        (_FLAGS, "<Q", flags),
        (_SIZE, "<Q", len(data)),
    ):
        struct.pack_into(form, header, at, value)
    return bytes(header) + payload.ljust(padded, b"\0")
