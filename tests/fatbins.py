"""Real shared objects with GPU code for tests: bytes in NVIDIA's layout, assembled and linked by the system's gcc."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.formats.elf import EHDR, SHDR
from scripts.formats.fatbin_types import (
    CONTAINER,
    CONTAINER_MAGIC,
    ENTRY,
    ENTRY_VERSION,
    WRAPPER_MAGIC,
    Compression,
    Flag,
    Kind,
)

_SUFFIX = {"": 0, "a": Flag.ARCH_SPECIFIC, "f": Flag.FAMILY_SPECIFIC}
_COMPRESSION = {Compression.NONE: 0, Compression.LZ4: Flag.LZ4, Compression.ZSTD: Flag.ZSTD, Compression.OLD: 0x1000}


def cubin(*kernels: str, code: bytes = b"\x90" * 64) -> bytes:
    """Return an ELF file with a `.text.KERNEL` section for each kernel, as cubins have them."""
    names = ["", ".shstrtab", *(f".text.{kernel}" for kernel in kernels)]
    strings = b"".join(name.encode() + b"\0" for name in names)
    offsets = [sum(len(n) + 1 for n in names[:i]) for i in range(len(names))]
    body = strings + code * len(kernels)
    rows = [SHDR.pack(*(0,) * 10), SHDR.pack(offsets[1], 3, 0, 0, EHDR.size, len(strings), 0, 0, 1, 0)]
    for index in range(len(kernels)):
        at = EHDR.size + len(strings) + index * len(code)
        rows.append(SHDR.pack(offsets[index + 2], 1, 6, 0, at, len(code), 0, 0, 4, 0))
    body += b"\0" * (-(EHDR.size + len(body)) % 8)
    header = EHDR.pack(
        b"\x7fELF\x02\x01\x01\x33\x07" + b"\0" * 7,
        2,
        190,
        1,
        0,
        0,
        EHDR.size + len(body),
        0,
        64,
        0,
        0,
        64,
        len(rows),
        1,
    )
    return header + body + b"".join(rows)


def ptx(
    arch: str = "80", *kernels: str, isa: tuple[int, int] = (8, 8), body: str = ".reg .b32 %r; mov.u32 %r, 1; ret;"
) -> bytes:
    """Return PTX text."""
    lines = [f".version {isa[0]}.{isa[1]}", f".target sm_{arch}", ".address_size 64"]
    return "\n".join([*lines, *(f".visible .entry {kernel}() {{ {body} }}" for kernel in kernels)]).encode() + b"\n\0"


def entry(
    kind: Kind | int,
    arch: str,
    payload: bytes,
    *,
    version: tuple[int, int] = (1, 7),
    compression: Compression = Compression.NONE,
    size: int = 0,
    header_size: int = ENTRY.size,
    flags: int = 0x11,
) -> bytes:
    """Return an entry; `payload` is stored as it is, so give compressed bytes with their `size` when decompressed."""
    suffix = arch.lstrip("0123456789")
    flags |= _SUFFIX[suffix] | _COMPRESSION[compression]
    stored = len(payload) if compression is not Compression.NONE else 0
    padded = payload + b"\0" * (-len(payload) % 8)
    number = int(arch.removesuffix(suffix) if suffix else arch)
    header = ENTRY.pack(
        kind, ENTRY_VERSION, header_size, len(padded), stored, 0, version[1], version[0], number, 0, 0, flags, 0, size
    )
    return header + b"\0" * (header_size - ENTRY.size) + padded


def sass(arch: str, *kernels: str, code: bytes = b"\x90" * 64) -> bytes:
    """Return an entry with an uncompressed cubin."""
    return entry(Kind.ELF, arch, cubin(*kernels, code=code))


def ptx_entry(arch: str, *kernels: str, isa: tuple[int, int] = (8, 8)) -> bytes:
    """Return an entry with PTX."""
    return entry(Kind.PTX, arch, ptx(arch, *kernels, isa=isa), version=isa, header_size=80)


def container(*entries: bytes) -> bytes:
    """Return a container of entries."""
    body = b"".join(entries)
    return CONTAINER.pack(CONTAINER_MAGIC, 1, CONTAINER.size, len(body)) + body


_UNIT = """\
    .file "tmpxft_0000abcd_00000000-6_{name}.compute_90.cudafe1.cpp"
    .section .nv_fatbin, "a"
    .align 8
fatbinData:
    .incbin "{data}"
    .size fatbinData, . - fatbinData
    .section .nvFatBinSegment, "aw"
    .align 8
__fatDeviceText:
    .long {magic:#x}, {version}
    .quad fatbinData, 0
    .size __fatDeviceText, 24
    .text
    .globl wrapper_{index}
    .type wrapper_{index}, @function
wrapper_{index}:
    lea __fatDeviceText(%rip), %rax
    ret
    .size wrapper_{index}, . - wrapper_{index}
    .section .note.GNU-stack, "", @progbits
"""
_HOST = """
#include <string.h>
static const char text[] = "read-only data of the host code";
int host_answer(void) { return 40 + (int)strlen(text) / 16 + 1; }
"""


def shared_object(
    path: Path,
    units: Mapping[str, bytes],
    *,
    link: Sequence[str] = (),
    source: str = _HOST,
    wrapper_version: int = 1,
) -> Path:
    """Link a shared object with one container per unit, laid out as nvcc's host objects are.

    `wrapper_0()`, `wrapper_1()`, ... return the wrappers' addresses; `host_answer()` returns 42.
    """
    work = path.parent / f"{path.name}.work"
    work.mkdir(parents=True)
    (work / "host.c").write_text(source)
    sources = ["host.c"]
    for index, (name, data) in enumerate(units.items()):
        (work / f"{index}.fatbin").write_bytes(data)
        text = _UNIT.format(
            name=name, data=f"{index}.fatbin", magic=WRAPPER_MAGIC, version=wrapper_version, index=index
        )
        (work / f"{index}.s").write_text(text)
        sources.append(f"{index}.s")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(path.absolute()), *sources, *link]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    return path


def patched(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    """Return a copy of `data` with a structure overwritten."""
    copy = bytearray(data)
    struct.pack_into(layout, copy, offset, *values)
    return bytes(copy)
