"""Makers of hostile files: ELF files and wheels whose structure is right and whose tables overlap, nest or repeat.

Each maker takes a `random.Random` and gives bytes, or a wheel, of the same kind every time the same seed comes. They
are what the audit's bounds (5 s, 300 MB) are tested with, small ones by thousands and large ones one by one.
"""

from __future__ import annotations

import hashlib
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.formats.elf import EHDR, PHDR, RELA, SHDR, SYM
from scripts.formats.fatbin_types import CONTAINER, CONTAINER_MAGIC, ENTRY
from tests.fatbins import container, ptx_entry, sass
from tests.wheels import METADATA, WHEEL

INFO = "vllm-0.15.1.dist-info"
NAME = "vllm-0.15.1-cp38-abi3-manylinux_2_31_x86_64.whl"
_DYN, _VERNEED, _VERNAUX = struct.Struct("<QQ"), struct.Struct("<HHIII"), struct.Struct("<IHHII")


class ElfMaker:
    """Puts an ELF file together from sections whose offsets and sizes may be anything."""

    def __init__(self, *, kind: int = 3, machine: int = 62) -> None:
        self.kind, self.machine = kind, machine
        self.body = bytearray(EHDR.size)
        self.rows: list[list[int]] = [[0] * 10]
        self.names = bytearray(b"\0")
        self.segments: list[tuple[int, ...]] = []

    def put(self, data: bytes) -> int:
        """Append bytes, 8-aligned; return their offset."""
        self.body += b"\0" * (-len(self.body) % 8)
        self.body += data
        return len(self.body) - len(data)

    def section(
        self, name: str, kind: int, offset: int, size: int, *, link: int = 0, entry: int = 0, address: int = 0
    ) -> int:
        """Add a section header; return its index."""
        at = len(self.names)
        self.names += name.encode() + b"\0"
        self.rows.append([at, kind, 2, address, offset, size, link, 0, 8, entry])
        return len(self.rows) - 1

    def finish(self) -> bytes:
        """Return the file."""
        names = self.put(bytes(self.names) + b".shstrtab\0")
        self.rows.append([len(self.names), 3, 0, 0, names, len(self.names) + 10, 0, 0, 1, 0])
        segments = self.put(b"".join(PHDR.pack(*row) for row in self.segments))
        table = self.put(b"".join(SHDR.pack(*row) for row in self.rows))
        count = len(self.rows)
        header = EHDR.pack(
            b"\x7fELF\x02\x01\x01" + b"\0" * 9,
            self.kind,
            self.machine,
            1,
            0,
            segments if self.segments else 0,
            table,
            0,
            64,
            PHDR.size,
            len(self.segments),
            SHDR.size,
            count if count < 0xFF00 else 0,
            count - 1 if count < 0xFF00 else 0xFFFF,
        )
        if count >= 0xFF00:  # the real numbers are in the first section header
            self.body[table : table + SHDR.size] = SHDR.pack(0, 0, 0, 0, 0, count, count - 1, 0, 0, 0)
        self.body[: EHDR.size] = header
        return bytes(self.body)


def nested_versions(rng: random.Random, size: int) -> bytes:
    """Return an ELF file whose version needs walk over each other: every record starts within the one before."""
    maker = ElfMaker()
    strings = maker.put(b"\0" + b"G" * rng.randrange(1, 200) + b"\0")
    names = maker.section(".dynstr", 3, strings, 200)
    step = rng.choice([16, 2, 1, 8])
    rows = _VERNEED.pack(1, 0xFFFF, 1, step, step) * max(size // _VERNEED.size, 1)
    at = maker.put(rows)
    maker.section(".gnu.version_r", 0x6FFFFFFE, at, len(rows), link=names)
    return maker.finish()


def shared_names(rng: random.Random, size: int) -> bytes:
    """Return an ELF file whose symbols share one long name's tails: size bytes of symbols, 65 kB of names."""
    maker = ElfMaker()
    long = b"_Z" + b"N2at" * rng.randrange(1, 16_000)
    names = maker.section(".dynstr", 3, maker.put(b"\0" + long + b"\0"), len(long) + 2)
    count = max(size // SYM.size, 1)
    rows = b"".join(SYM.pack(1 + index % len(long), 0x12, 0, 0, 0, 0) for index in range(count))
    kind, title = rng.choice([(11, ".dynsym"), (2, ".symtab")])
    maker.section(title, kind, maker.put(rows), len(rows), link=names, entry=SYM.size)
    needed = b"".join(_DYN.pack(rng.choice([1, 14, 29]), 1 + index) for index in range(min(count, 20_000)))
    maker.section(".dynamic", 6, maker.put(needed), len(needed), link=names, entry=16)
    return maker.finish()


def repeated_headers(rng: random.Random, size: int) -> bytes:
    """Return an ELF file with many section headers over the same bytes: containers, symbols or relocations."""
    maker = ElfMaker()
    code = container(*(rng.choice([sass("90", "k"), ptx_entry("80", "k")]) for _ in range(rng.randrange(1, 8))))
    data = code * max(size // len(code), 1)
    at = maker.put(data)
    what = rng.choice([(".nv_fatbin", 1, 0), ("__nv_relfatbin", 1, 0), (".rela.dyn", 4, RELA.size), (".symtab", 2, 24)])
    for _ in range(rng.choice([2, 10, 100, 3_000])):
        maker.section(what[0], what[1], at, len(data) // 24 * 24, entry=what[2], address=0x1000 + at)
    maker.section(".nvFatBinSegment", 1, at, 24, address=0x9000)
    return maker.finish()


def many_containers(rng: random.Random, size: int) -> bytes:
    """Return an ELF file full of the smallest containers or entries, each of a target of its own."""
    maker = ElfMaker()
    empty = CONTAINER.pack(CONTAINER_MAGIC, 1, CONTAINER.size, 0)
    tiny = b"".join(
        ENTRY.pack(
            rng.choice([1, 2, 8, 77]), 0x101, 64, 0, 0, 0, 8, 8, rng.choice([80, 90, 120, 999]), 0, 0, 0x8000, 0, 9
        )
        for _ in range(64)
    )
    row = rng.choice([empty, CONTAINER.pack(CONTAINER_MAGIC, 1, CONTAINER.size, len(tiny)) + tiny])
    data = row * max(size // len(row), 1)
    maker.section(".nv_fatbin", 1, maker.put(data), len(data), address=0x10000)
    return maker.finish()


def many_sections(rng: random.Random, size: int) -> bytes:
    """Return an ELF file of section headers that all have one long name."""
    maker = ElfMaker(kind=rng.choice([1, 3]))
    at = maker.put(b"x" * 64)
    for _ in range(max(size // SHDR.size, 1)):
        maker.section("", rng.choice([1, 4, 9, 19]), at, 48, entry=0)
    long = len(maker.names)
    maker.names += b"." * rng.randrange(1, 60_000) + b"\0"
    for row in maker.rows[1:]:
        row[0] = long
    return maker.finish()


def no_sections(rng: random.Random, size: int) -> bytes:
    """Return an ELF file without section headers and with segments over each other, full of containers."""
    maker = ElfMaker()
    code = container(sass("90", "k"))
    at = maker.put(code * max(size // len(code), 1))
    for _ in range(rng.choice([1, 3, 900])):
        maker.segments.append((1, 4, at, 0x1000, 0x1000, len(maker.body) - at, len(maker.body) - at, 0x1000))
    data = bytearray(maker.finish())
    data[40:48] = bytes(8)
    data[58:64] = bytes(6)
    return bytes(data)


def cubins(rng: random.Random, size: int) -> bytes:
    """Return a cubin whose sections are many and share a name."""
    maker = ElfMaker(kind=2, machine=190)
    for _ in range(max(size // SHDR.size, 1)):
        maker.section(".text.k", 1, 64, 64)
        maker.rows[-1][2] = 6
    data = bytearray(maker.finish())
    struct.pack_into("<I", data, 48, rng.choice([0x5A055A, 0x6006402, 0x600640A, 0]))
    data[8] = rng.choice([7, 8])
    return bytes(data)


def archives(rng: random.Random, size: int) -> bytes:
    """Return an archive of object files, sometimes with sizes that lie."""
    member = repeated_headers(rng, 1_000)
    lie = rng.choice([len(member), len(member), 10**9, 0])
    header = (
        b"a.o/".ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"644".ljust(8) + str(lie).encode().ljust(10) + b"`\n"
    )
    row = header + member + b"\n" * (len(member) % 2)
    return b"!<arch>\n" + row * max(size // len(row), 1)


ELVES: dict[str, Callable[[random.Random, int], bytes]] = {
    maker.__name__: maker
    for maker in (
        *(nested_versions, shared_names, repeated_headers, many_containers, many_sections, no_sections, cubins),
        archives,
    )
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with some header words replaced by what breaks parsers: zero, ones, sizes of other things."""
    copy = bytearray(data)
    for _ in range(rng.randrange(0, 6)):
        at = rng.randrange(max(min(len(copy), 4_096) - 8, 1))
        if rng.random() < 0.3:
            at = rng.randrange(max(len(copy) - 8, 1))
        value = rng.choice([0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, 1 << 31, len(copy), len(copy) - 1, rng.getrandbits(32)])
        struct.pack_into("<I", copy, at, value & 0xFFFFFFFF)
    return bytes(copy[: rng.randrange(len(copy))] if rng.random() < 0.05 else copy)


def wheel_of(
    folder: Path,
    members: dict[str, bytes],
    *,
    metadata: bytes | None = None,
    wheel: bytes | None = None,
    record: bytes | None = None,
    name: str = NAME,
) -> Path:
    """Write a wheel whose metadata files may be anything; RECORD is right unless given."""
    metadata = METADATA.format(name="vllm", version="0.15.1").encode() if metadata is None else metadata
    wheel = WHEEL.format(tags="Tag: cp38-abi3-manylinux_2_31_x86_64").encode() if wheel is None else wheel
    contents = {**members, f"{INFO}/METADATA": metadata, f"{INFO}/WHEEL": wheel}
    if record is None:
        rows = [f"{item},sha256={hashlib.sha256(data).hexdigest()},{len(data)}" for item, data in contents.items()]
        record = "\n".join([*rows, f"{INFO}/RECORD,,", ""]).encode()
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for item, data in {**contents, f"{INFO}/RECORD": record}.items():
            archive.writestr(item, data)
    return path


def odd_metadata(rng: random.Random, size: int) -> dict[str, bytes]:
    """Return one metadata file that is giant, deep or odd: arguments of `wheel_of`."""
    n = max(size // 8, 1)
    tags = rng.choice([3, 40, 400])
    sets = "-".join(".".join(f"{letter}{i}" for i in range(tags)) for letter in "pam")
    return rng.choice(
        [
            {"record": b"a,,\n" * n},
            {"record": b"".join(b"a%d,sha256=x,1\n" % i for i in range(n))},
            {"record": b'"' + b"a" * size},
            {"record": b"a,,\xff\n"},
            {"record": b"a,sha256=x," + b"9" * min(size, 6_000) + b"\n"},
            {"metadata": b"a:b\n" * n},
            {"metadata": b"Requires-Dist: torch" + b"(" * size},
            {"metadata": b"Name: vllm\nVersion: " + b"1." * n + b"1\n"},
            {"metadata": b"Requires-Dist: torch==2.9.1\n" * n},
            {"metadata": b"Name: vllm\n" + b" x\n" * n},
            {"metadata": b"\n" + b"x" * size},
            {"wheel": f"Tag: {sets}\n".encode()},
            {"wheel": b"Tag: nonsense\n"},
            {"wheel": b"Tag: a-b-c\n" * n},
            {"wheel": b"Tag: -" + b"-" * (size % 5) + b"\n"},
            {"wheel": b"Tag: py3-none-any\nTag: " + bytes(rng.randrange(1, 255) for _ in range(20)) + b"\n"},
        ]
    )


def hostile_wheel(folder: Path, rng: random.Random, size: int) -> Path:
    """Write a wheel with some hostile members, or with one hostile metadata file."""
    makers: Sequence[Callable[[random.Random, int], bytes]] = list(ELVES.values())
    ending = rng.choice([".so", ".abi3.so", ".so.1", ".so.1.alt", ".cubin", ".fatbin", ".a", "", ".bin"])
    members = {
        f"vllm/{index}{ending}": damaged(rng.choice(makers)(rng, size), rng) for index in range(rng.randrange(0, 3))
    }
    if rng.random() < 0.2:
        units = rng.choice([b"{}", b"[" * min(size, 10_000), b'{"schema_version":1,"units":{"vllm/0.so":["x"]}}'])
        members[f"{INFO}/units.json"] = units
    odd = odd_metadata(rng, size) if rng.random() < 0.5 else {}
    return wheel_of(folder, members, **odd)  # type: ignore[arg-type]
