"""The parts of GPU code in a host file: kinds, entries, containers, wrappers. `scripts.formats.fatbin` reads them.

Sizes are bytes, offsets count from the start of the file, addresses are virtual ones of the ELF file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum

WRAPPER = struct.Struct("<IIQQ")  # magic, version, address of the container, file name or prelinked containers
CONTAINER = struct.Struct("<IHHQ")  # magic, version, header size, bytes that follow
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
WRAPPER_MAGIC, CONTAINER_MAGIC = 0x466243B1, 0xBA55ED50
ENTRY_VERSION = 0x0101
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
WRAPPERS = ".nvFatBinSegment"


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


@dataclass(frozen=True, slots=True)
class FatbinEntry:
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
    """Kernels inside, counted for cubins that are stored uncompressed and for small PTX; None when not known."""

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


@dataclass(frozen=True, slots=True)
class Container:
    """The GPU code of one translation unit."""

    section: str
    offset: int
    address: int
    """Where it is loaded; 0 in relocatable objects."""
    size: int
    """Bytes behind its 16-byte header: all entries."""
    entries: tuple[FatbinEntry, ...]
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
        return self.section == SECTIONS[1]

    @property
    def kernels(self) -> int | None:
        """Kernels of the unit: the largest count of its entries, None when none could be counted."""
        counts = [entry.kernels for entry in self.entries if entry.kernels is not None]
        return max(counts) if counts else None

    @property
    def empty(self) -> bool:
        """Whether it is certain that no kernel is inside."""
        cubins = any(entry.kind is Kind.ELF and entry.kernels == 0 for entry in self.entries)
        known = cubins or all(entry.kernels == 0 for entry in self.entries)  # PTX alone may be a stub for old archs
        return not self.entries or (known and self.kernels == 0)

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
    loadable: bool = True
    """False for object files and archives: they are linked, not loaded."""

    @property
    def entries(self) -> Iterator[FatbinEntry]:
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
