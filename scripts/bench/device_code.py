"""Are two objects of one source the same for the GPU? Cubins and PTX compared byte by byte, section by section.

Compared is what the fat binary holds: for each entry its target, its kind, its size and a digest of its payload. A
payload may be compressed; the same bytes compress to the same bytes. Only payloads that differ are unpacked, to see
whether they differ in nothing but the process numbers that nvcc writes into names (same_code.py) or in what no kernel
uses (kernels.py). Objects themselves always differ: host code is made from other headers, and debug information has
their names.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from scripts.bench.kernels import kernel_digests, only_unused
from scripts.bench.same_code import code_digest
from scripts.formats.elf import open_elf
from scripts.formats.fatbin import device_code

_SCHEMA = re.compile(rb"[\w:.]+\([^\0]*\) ?-> ?[^\0]+")  # what m.def() takes: `topk(Tensor x, int k) -> Tensor`


class Outcome(str, Enum):
    """What a comparison found."""

    SAME = "identical"
    NAMES = "same code, other names"
    KERNELS = "same kernels"
    DIFFERENT = "DIFFERENT"
    HOST = "no device code"


@dataclass(frozen=True)
class Section:
    """One cubin or PTX of an object."""

    target: str
    """`sm_90`, `compute_90`."""
    compression: str
    size: int
    """Bytes when unpacked."""
    sha256: str
    """Of the payload as it is stored."""
    code: str = ""
    """Digest of what it is when unpacked, without process numbers; "" where that is not known."""
    kernels: frozenset[tuple[str, str]] = frozenset()
    """A cubin's kernels and digests of what they hold; empty where that is not known."""


@dataclass(frozen=True)
class Comparison:
    """A unit compiled both ways."""

    unit: str
    outcome: Outcome
    cubins: int = 0
    ptx: int = 0
    size: int = 0
    """Bytes of device code, unpacked."""
    schemas: int = 0
    """Operator schemas in the object's strings."""
    why: str = ""


def sections(path: Path, *, code: bool = False) -> list[Section]:
    """Return the device code of an object, in its order, with digests of its code if asked for.

    Raises AuditError for a file that cannot be read.
    """
    with open_elf(path) as elf:
        found = []
        for container in device_code(elf).containers:
            for entry in container.entries:
                payload = elf.data[entry.offset + entry.header_size : entry.end]
                digest = hashlib.sha256(payload).hexdigest()
                inside = code_digest(elf, entry) if code else ""
                kernels = kernel_digests(elf, entry) if code else frozenset()
                found.append(Section(entry.target, entry.compression.value, entry.size, digest, inside, kernels))
        return found


def schemas(path: Path) -> frozenset[str]:
    """Return the operator schemas among the strings of an object: what its TORCH_LIBRARY registers."""
    with open_elf(path) as elf:
        texts = [elf.data[s.offset : s.end] for s in elf.sections if s.name.startswith(".rodata")]
    return frozenset(match[0].decode("utf-8", "replace") for text in texts for match in _SCHEMA.finditer(bytes(text)))


def compare(unit: str, stock: Path, lean: Path) -> Comparison:
    """Compare a unit's two objects. Raises AuditError for a file that cannot be read."""
    sides = sections(stock), sections(lean)
    operators = schemas(stock), schemas(lean)
    if sides[0] != sides[1]:
        sides = sections(stock, code=True), sections(lean, code=True)
    renamed = [one.target for one, other in zip(*sides, strict=False) if one != other and _same_code(one, other)]
    why = [*_differences(*sides), *_schema_differences(*operators)]
    outcome = Outcome.SAME if sides[0] or operators[0] else Outcome.HOST
    fewer = sorted({_only_unused(one, other) for one, other in zip(*sides, strict=False)} - {""})
    if why or renamed or fewer:
        outcome = Outcome.DIFFERENT if why else Outcome.KERNELS if fewer else Outcome.NAMES
        why = why or _sameness(renamed, fewer)
    kinds = [item.target.split("_")[0] for item in sides[0]]
    return Comparison(
        unit,
        outcome,
        cubins=kinds.count("sm"),
        ptx=kinds.count("compute"),
        size=sum(item.size for item in sides[0]),
        schemas=len(operators[0]),
        why="; ".join(why),
    )


def _same_code(one: Section, other: Section) -> bool:
    return bool(one.code) and (one.target, one.code) == (other.target, other.code)


def _only_unused(stock: Section, lean: Section) -> str:
    return "" if stock == lean or _same_code(stock, lean) else only_unused(stock.kernels, lean.kernels)


def _sameness(renamed: list[str], fewer: list[str]) -> list[str]:
    """Say why bytes differ and code does not."""
    names = f"{', '.join(renamed)}: the same code; names in it have another process number of nvcc's"
    return [*([names] if renamed else []), *(f"the same kernels, without {what}" for what in fewer)]


def _differences(stock: list[Section], lean: list[Section]) -> list[str]:
    """Return what differs, section by section; not what is the same code under other names."""
    targets = [[item.target for item in side] for side in (stock, lean)]
    if targets[0] != targets[1]:
        return [f"stock has {', '.join(targets[0]) or 'nothing'}, lean {', '.join(targets[1]) or 'nothing'}"]
    return [
        f"{one.target} differs: {one.size:,} and {other.size:,} bytes, stored as {one.compression} {one.sha256[:12]} "
        f"and {other.compression} {other.sha256[:12]}"
        for one, other in zip(stock, lean, strict=True)
        if one != other and not _same_code(one, other) and not _only_unused(one, other)
    ]


def _schema_differences(stock: frozenset[str], lean: frozenset[str]) -> list[str]:
    only = [("stock", stock - lean), ("lean", lean - stock)]
    return [f"only {side} registers {', '.join(sorted(names)[:3])}" for side, names in only if names]
