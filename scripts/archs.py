"""GPU architectures: one table of numbers, names and versions, and the parser of arch lists.

An arch is written as in TORCH_CUDA_ARCH_LIST: `9.0`, `9.0a` (arch-specific), `12.0f` (family-specific, CUDA 12.9+),
`8.0+PTX` (cubin and PTX). Also understood: `sm_90`, `sm90a`, `compute_90`, and the GPU names of the table.

Sources: NVIDIA's CUDA release notes (first toolkit that compiles for an arch, first Linux driver per toolkit) and
CUDA C++ Programming Guide (compute capabilities); RTX 50 is 12.0, B200 is 10.0, and neither runs the other's code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.errors import UsageError, nearest


@dataclass(frozen=True, order=True)
class Arch:
    """One architecture to compile for: compute capability, optional `a`/`f` suffix, optional PTX."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    def __str__(self) -> str:
        """Return the TORCH_CUDA_ARCH_LIST spelling: `9.0a`, `8.0+PTX`."""
        return f"{self.number}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def number(self) -> str:
        """Compute capability without suffix: `9.0`."""
        return f"{self.major}.{self.minor}"

    @property
    def sm(self) -> str:
        """Name of the cubin's target as the CUDA tools print it: `sm_90a`."""
        return f"sm_{self.major}{self.minor}{self.suffix}"

    @property
    def compute(self) -> str:
        """Name of the PTX target: `compute_90a`."""
        return f"compute_{self.major}{self.minor}{self.suffix}"

    @property
    def label(self) -> str:
        """Part of a version label (PEP 440 local version): `sm90a`, `sm80ptx`."""
        return f"sm{self.major}{self.minor}{self.suffix}{'ptx' if self.ptx else ''}"


@dataclass(frozen=True)
class Architecture:
    """A row of the table: what NVIDIA calls it and from which CUDA and driver on it exists."""

    number: str
    family: str
    gpus: tuple[str, ...]
    first_cuda: str
    """First toolkit whose nvcc compiles for it."""
    last_cuda: str = ""
    """Last toolkit line that compiles for it, empty while supported."""


TABLE = (
    Architecture("7.0", "Volta", ("V100",), "9.0", "12.9"),
    Architecture("7.2", "Volta", ("Xavier",), "9.2", "12.9"),
    Architecture("7.5", "Turing", ("T4", "RTX 2080", "RTX 2080 Ti", "Quadro RTX 8000"), "10.0"),
    Architecture("8.0", "Ampere", ("A100", "A30", "A800"), "11.0"),
    Architecture(
        "8.6", "Ampere", ("A40", "A10", "A10G", "A16", "A2", "RTX A6000", "RTX A5000", "RTX 3080", "RTX 3090"), "11.1"
    ),
    Architecture("8.7", "Ampere", ("Orin",), "11.4"),
    Architecture("8.9", "Ada", ("L4", "L40", "L40S", "RTX 4080", "RTX 4090", "RTX 6000 Ada"), "11.8"),
    Architecture("9.0", "Hopper", ("H100", "H200", "H20", "H800", "GH200"), "11.8"),
    Architecture("10.0", "Blackwell", ("B200", "B100", "GB200"), "12.8"),
    Architecture("10.1", "Blackwell", ("Thor (CUDA 12)",), "12.8", "12.9"),
    Architecture("10.3", "Blackwell", ("B300", "GB300"), "12.9"),
    Architecture("11.0", "Blackwell", ("Thor",), "13.0"),
    Architecture(
        "12.0", "Blackwell", ("RTX 5090", "RTX 5080", "RTX 5070", "RTX PRO 6000", "RTX PRO 6000 Blackwell"), "12.8"
    ),
    Architecture("12.1", "Blackwell", ("GB10", "DGX Spark"), "12.9"),
)

_BY_NUMBER = {row.number: row for row in TABLE}
_NUMBER = re.compile(r"(\d{1,2})\.(\d)([af]?)(\+PTX)?", re.IGNORECASE | re.ASCII)
_SM = re.compile(r"(?:sm|compute)_?(\d{1,2})(\d)([af]?)(\+PTX)?", re.IGNORECASE | re.ASCII)
# A blank separates only before an arch: GPU names have blanks of their own (RTX 5090).
_BETWEEN = re.compile(r"[;,]|\s+(?=\d{1,2}\.\d|sm|compute)", re.IGNORECASE)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("geforce", "").replace("nvidia", ""))


_BY_GPU = {_plain(gpu): row for row in TABLE for gpu in row.gpus}
_NAMES = {_plain(gpu): gpu for row in TABLE for gpu in row.gpus}


def gpu_name(text: str) -> str:
    """Return a GPU's name as NVIDIA writes it (`RTX 5090` for `rtx5090`), "" when the table does not have it."""
    return _NAMES.get(_plain(text), "")


def architecture(arch: Arch) -> Architecture:
    """Return the table row of an arch."""
    return _BY_NUMBER[arch.number]


def parse_arch(text: str) -> Arch:
    """Read one arch: `9.0`, `9.0a`, `8.0+PTX`, `sm_90`, `H100`, `rtx5090`.

    Raises UsageError naming what is allowed and the nearest known name.
    """
    word = text.strip()
    ptx_name = re.fullmatch(r"(.*?)(\+PTX)?", word, re.IGNORECASE)
    match = _NUMBER.fullmatch(word) or _SM.fullmatch(word)
    if match:
        arch = Arch(int(match[1]), int(match[2]), match[3].lower(), bool(match[4]))
        if arch.number in _BY_NUMBER:
            return _checked_suffix(arch, word)
    elif ptx_name and (row := _BY_GPU.get(_plain(ptx_name[1]))):
        major, minor = row.number.split(".")
        return Arch(int(major), int(minor), "", bool(ptx_name[2]))
    names = [*_BY_NUMBER, *(gpu for row in TABLE for gpu in row.gpus)]
    raise UsageError(
        f"unknown arch {word!r}.{nearest(word, names)}",
        why="an arch is a compute capability or a GPU's name",
        fix=f"use one of {', '.join(_BY_NUMBER)} (with a, f or +PTX), sm_90, or a GPU such as H100, L40S, rtx5090",
    )


def _checked_suffix(arch: Arch, word: str) -> Arch:
    if arch.suffix == "a" and arch.major < 9:
        raise UsageError(f"arch {word!r} does not exist", why="arch-specific (a) targets start at 9.0a (Hopper)")
    if arch.suffix == "f" and arch.major < 10:
        raise UsageError(f"arch {word!r} does not exist", why="family-specific (f) targets start at 10.0f (Blackwell)")
    return arch


def parse_arch_list(text: str) -> tuple[Arch, ...]:
    """Read a TORCH_CUDA_ARCH_LIST (`;`, `,` or blanks between): ascending, without repeats.

    Raises UsageError for an empty list or an unknown member.
    """
    parts = [part for part in _BETWEEN.split(text) if part.strip()]
    if not parts:
        raise UsageError("the arch list is empty", fix='give one such as "9.0" or "8.0;9.0;12.0"')
    return normalised(parse_arch(part) for part in parts)


def normalised(archs: Iterable[Arch]) -> tuple[Arch, ...]:
    """Sort archs, drop repeats, and merge `8.0` with `8.0+PTX` (the latter includes the former)."""
    unique = set(archs)
    return tuple(sorted(a for a in unique if a.ptx or dataclasses.replace(a, ptx=True) not in unique))


def loose_intersection(built: Iterable[Arch], wanted: Iterable[Arch]) -> tuple[Arch, ...]:
    """Return the archs that upstream compiles a kernel family for: `8.0+PTX` and `9.0` give `8.0+PTX`.

    `built` is what the family is written for, `wanted` what is asked for. Follows `cuda_archs_loose_intersection` of
    vLLM's cmake/utils.cmake (0.14 to 0.20): archs with a suffix match their own number, a family (f) any of its major
    version, others the highest not above it of the same major version, or of any when it has PTX.
    """
    ptx = {(arch.major, arch.minor) for arch in built if arch.ptx}
    sources = [dataclasses.replace(arch, ptx=False) for arch in built]
    left = [dataclasses.replace(arch, ptx=False) for arch in wanted]
    chosen: list[Arch] = []
    for source in [arch for arch in sources if arch.suffix]:
        sources.remove(source)
        match = _suffix_match(source, left)
        if match is not None:
            left.remove(match)
            chosen.append(match if match.suffix else source)
    for target in [arch for arch in left if arch.suffix and dataclasses.replace(arch, suffix="") in sources]:
        left.remove(target)
        sources.remove(dataclasses.replace(target, suffix=""))
        chosen.append(target)
    for target in left:
        below = [
            source
            for source in sources
            if (source.major, source.minor) <= (target.major, target.minor)
            and (source.major == target.major or (source.major, source.minor) in ptx)
        ]
        chosen += [max(below)] if below else []
    return normalised(dataclasses.replace(arch, ptx=(arch.major, arch.minor) in ptx) for arch in chosen)


def _suffix_match(source: Arch, left: list[Arch]) -> Arch | None:
    for suffix in ("", "a", "f"):
        wanted = dataclasses.replace(source, suffix=suffix)
        if wanted in left:
            return wanted
    family = [arch for arch in left if source.suffix == "f" and arch.major == source.major]
    return family[0] if family else None


def arch_list(archs: Iterable[Arch]) -> str:
    """Return the TORCH_CUDA_ARCH_LIST for archs: `9.0;12.0`."""
    return ";".join(str(arch) for arch in archs)


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def check_cuda_can(archs: Iterable[Arch], cuda: str) -> None:
    """Refuse archs that the CUDA toolkit `cuda` (`13.0`) has no compiler for. Raises UsageError."""
    for arch in archs:
        row = architecture(arch)
        needed = "12.9" if arch.suffix == "f" else row.first_cuda
        if _version(cuda) < _version(needed):
            raise UsageError(
                f"CUDA {cuda} cannot compile for {arch} ({row.family}: {', '.join(row.gpus[:3])})",
                why=f"its nvcc knows {arch} from CUDA {needed} on",
                fix="leave the arch out, or take a recipe with a newer CUDA",
            )
        if row.last_cuda and _version(cuda) > _version(row.last_cuda):
            raise UsageError(
                f"CUDA {cuda} no longer compiles for {arch} ({row.family}: {', '.join(row.gpus[:3])})",
                why=f"support ended with CUDA {row.last_cuda}",
                fix="leave the arch out, or take a recipe with an older CUDA",
            )
