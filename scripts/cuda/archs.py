"""GPU architectures: one table of numbers, names and versions, and the parser of arch lists.

An arch is written as in TORCH_CUDA_ARCH_LIST: `9.0`, `9.0a` (arch-specific), `12.0f` (family-specific, CUDA 12.9+),
`8.0+PTX` (cubin and PTX). Also understood: `sm_90`, `sm90a`, `compute_90`, and the GPU names of the table.

GPU names are those of `scripts.cuda.gpus`, in any of nvidia-smi's decorations (`NVIDIA A100-SXM4-80GB`); `native` is
the GPU of this machine, which its driver is asked for.

Sources: NVIDIA's CUDA release notes (first toolkit that compiles for an arch, first Linux driver per toolkit) and
CUDA C++ Programming Guide (compute capabilities); RTX 50 is 12.0, B200 is 10.0, and neither runs the other's code.
The last driver branch of Maxwell, Pascal and Volta is 580: release notes of CUDA 13.0, "Deprecated Architectures".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.core.errors import UsageError, nearest_of
from scripts.cuda.gpus import PRODUCTS, plain, product_key
from scripts.cuda.nvml import local_gpus


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
    first_cuda: str
    """First toolkit whose nvcc compiles for it."""
    last_cuda: str = ""
    """Last toolkit line that compiles for it, empty while supported."""
    last_branch: int = 0
    """Last driver branch that knows it (580), 0 while drivers go on to."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """Products of this arch; the first stands for it in messages."""
        return PRODUCTS.get(self.number) or (f"GPU {self.number}",)

    @property
    def or_later(self) -> str:
        """How far a lowest driver goes, in words: drivers drop old GPUs."""
        return f"or later, up to {self.last_branch}.x" if self.last_branch else "or later"


TABLE = (
    Architecture("5.0", "Maxwell", "6.5", "12.9", 580),
    Architecture("5.2", "Maxwell", "6.5", "12.9", 580),
    Architecture("5.3", "Maxwell", "7.0", "12.9"),
    Architecture("6.0", "Pascal", "8.0", "12.9", 580),
    Architecture("6.1", "Pascal", "8.0", "12.9", 580),
    Architecture("6.2", "Pascal", "8.0", "12.9"),
    Architecture("7.0", "Volta", "9.0", "12.9", 580),
    Architecture("7.2", "Volta", "9.2", "12.9"),
    Architecture("7.5", "Turing", "10.0"),
    Architecture("8.0", "Ampere", "11.0"),
    Architecture("8.6", "Ampere", "11.1"),
    Architecture("8.7", "Ampere", "11.4"),
    Architecture("8.9", "Ada", "11.8"),
    Architecture("9.0", "Hopper", "11.8"),
    Architecture("10.0", "Blackwell", "12.8"),
    Architecture("10.1", "Blackwell", "12.8", "12.9"),
    Architecture("10.3", "Blackwell", "12.9"),
    Architecture("10.7", "Rubin", "13.4"),
    Architecture("11.0", "Blackwell", "13.0"),
    Architecture("12.0", "Blackwell", "12.8"),
    Architecture("12.1", "Blackwell", "12.9"),
)

TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
"""Systems on a chip: their SASS and that of desktop GPUs are not interchangeable, whatever the numbers say."""

NATIVE = "native"
_BY_NUMBER = {row.number: row for row in TABLE}
_NUMBER = re.compile(r"(\d{1,2})\.(\d)([af]?)(\+PTX)?", re.IGNORECASE | re.ASCII)
_SM = re.compile(r"(?:sm|compute)_?(\d{1,2})(\d)([af]?)(\+PTX)?", re.IGNORECASE | re.ASCII)
# A blank separates only before an arch: GPU names have blanks of their own (RTX 5090, H100 SXM).
_BETWEEN = re.compile(r"[;,]|\s+(?=\d{1,2}\.\d|(?:sm|compute)_?\d)", re.IGNORECASE)

_BY_GPU = {key(gpu): row for key in (product_key, plain) for row in TABLE for gpu in row.gpus}
_NAMES = {key(gpu): gpu for key in (product_key, plain) for row in TABLE for gpu in reversed(row.gpus)}


def _known(text: str) -> str:
    """Return the key under which a GPU's name is in the table, "" when it is not."""
    keys = [plain(text), product_key(text)]
    keys += [series + key for key in keys if key[:4].isdigit() for series in ("rtx", "gtx")]  # people say 4090
    return next((key for key in keys if key in _BY_GPU), "")


def gpu_name(text: str) -> str:
    """Return a GPU's name as NVIDIA writes it (`RTX 5090` for `rtx5090`), "" when the table does not have it."""
    return _NAMES.get(_known(text), "")


def architecture(arch: Arch) -> Architecture:
    """Return the table row of an arch; one without facts for an arch that is newer than the table."""
    return _BY_NUMBER.get(arch.number) or Architecture(arch.number, "unknown family", "")


def parse_arch(text: str) -> Arch:
    """Read one arch: `9.0`, `9.0a`, `8.0+PTX`, `sm_90`, `H100`, `rtx5090`, `hopper`.

    Raises UsageError naming what is allowed, the nearest known GPU with its arch, or the archs of a family.
    """
    word = text.strip()
    match = _NUMBER.fullmatch(word) or _SM.fullmatch(word)
    if match:
        arch = Arch(int(match[1]), int(match[2]), match[3].lower(), bool(match[4]))
        if arch.number in _BY_NUMBER:
            return _checked_suffix(arch, word)
    bare = re.sub(r"\+PTX$", "", word, flags=re.IGNORECASE)
    row = _BY_GPU.get(_known(bare)) or _family(bare)
    if row and not match:
        major, minor = row.number.split(".")
        return Arch(int(major), int(minor), "", bare != word)
    raise UsageError(
        f"unknown arch {word!r}.{_suggestion(word)}",
        why="an arch is a compute capability or a GPU's name",
        fix=f"use one of {', '.join(_BY_NUMBER)} (with a, f or +PTX), sm_90, native, or a GPU: H100, L40S, rtx5090",
    )


def _suggestion(word: str) -> str:
    """Return " Perhaps you meant ...?" with the arch of what is suggested: a near name may be another generation."""
    found = nearest_of(word, [*_BY_NUMBER, *(gpu for row in TABLE for gpu in row.gpus)])
    if not found:
        return ""
    row = _BY_NUMBER.get(found) or _BY_GPU[_known(found)]
    about = row.gpus[0] if found == row.number else row.number
    return f" Perhaps you meant {found!r} ({about}); another GPU may need another arch?"


def _family(text: str) -> Architecture | None:
    """Return the one arch of a family (`hopper`). Raises UsageError with the archs of a family that has several."""
    rows = [row for row in TABLE if row.family.lower() == text.strip().lower()]
    graphics = [row for row in rows if tuple(map(int, row.number.split("."))) not in TEGRA]
    if len(graphics) > 1:
        archs = "; ".join(f"{row.number} ({', '.join(row.gpus[:3])})" for row in rows)
        raise UsageError(
            f"{text.strip()} is a family of {len(rows)} archs, which do not all run each other's code",
            why=archs,
            fix=f"name the ones you have, or all for graphics cards: '{';'.join(row.number for row in graphics)}'",
        )
    return graphics[0] if graphics else None


def _checked_suffix(arch: Arch, word: str) -> Arch:
    if arch.suffix == "a" and arch.major < 9:
        raise UsageError(f"arch {word!r} does not exist", why="arch-specific (a) targets start at 9.0a (Hopper)")
    if arch.suffix == "f" and arch.major < 10:
        raise UsageError(f"arch {word!r} does not exist", why="family-specific (f) targets start at 10.0f (Blackwell)")
    return arch


def parse_arch_list(text: str) -> tuple[Arch, ...]:
    """Read a TORCH_CUDA_ARCH_LIST (`;`, `,` or blanks between): ascending, without repeats.

    `native` stands for the GPUs of this machine. Raises UsageError for an empty list or an unknown member.
    """
    parts = [part.strip() for part in _BETWEEN.split(text) if part.strip()]
    if NATIVE in map(str.lower, parts):
        parts = [part for part in parts if part.lower() != NATIVE] + [gpu.number for gpu in local_gpus()]
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


def runs_on_cubin(cubin: Arch, arch: Arch) -> bool:
    """Whether a cubin runs on an arch: its own number; without `a`, also higher minor versions of its major one."""
    same = cubin.minor == arch.minor if cubin.suffix == "a" else cubin.minor <= arch.minor
    return cubin.major == arch.major and same


def natively(gets: Sequence[Arch], archs: Sequence[Arch]) -> tuple[Arch, ...]:
    """Return what a family that upstream compiles for `gets` is compiled for with the patch native-archs.

    That is what one of `archs` runs as a cubin, and each arch that no cubin runs on. Nothing stays nothing.
    """
    if not gets:
        return ()
    used = [have for have in gets if any(runs_on_cubin(have, arch) for arch in archs)]
    own = [arch for arch in archs if not any(runs_on_cubin(have, arch) for have in gets)]
    return normalised([*used, *own])
