"""What a driver does with a library's GPU code: the choice in each container, counted for a GPU.

In each container the CUDA driver takes the best entry for its GPU: SASS of the same arch (native), else SASS of an
earlier minor version of the same major one (compatible), else the newest PTX, which it compiles itself (JIT), else
nothing (missing: calling such a kernel fails, loading the library does not). Checked on an H100: docs/fatbin.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

from scripts.audit.models import Coverage, JitUnit, KernelCounts
from scripts.cuda.archs import TEGRA
from scripts.cuda.drivers import release_for_ptx
from scripts.formats.fatbin_types import Container, DeviceCode, FatbinEntry, Kind

MAX_UNITS = 200  # units listed per library and GPU; all are counted

NAMES = {
    "_vllm_fa2_C": "FlashAttention 2",
    "_vllm_fa3_C": "FlashAttention 3",
    "_flashmla_C": "FlashMLA",
    "_flashmla_extension_C": "FlashMLA extension",
    "_moe_C": "MoE kernels",
    "_moe_C_stable_libtorch": "MoE kernels (stable ABI)",
    "_C": "core kernels",
    "_C_stable_libtorch": "core kernels (stable ABI)",
    "cumem_allocator": "sleep-mode allocator",
}


class How(str, Enum):
    """How a GPU gets at a container's kernels."""

    NATIVE = "native"
    COMPATIBLE = "compatible"
    JIT = "jit"
    MISSING = "missing"


@dataclass(frozen=True)
class Choice:
    """What the driver takes from a container."""

    how: How
    entry: FatbinEntry | None


def choose(container: Container, cc: tuple[int, int]) -> Choice:
    """Return what the driver of a GPU with compute capability `cc` takes from a container."""
    sass = [entry for entry in container.entries if entry.kind is Kind.ELF and _runs(entry, cc)]
    if sass:
        best = max(sass, key=lambda entry: (entry.arch, _RANK[entry.suffix]))
        return Choice(How.NATIVE if best.cc == cc else How.COMPATIBLE, best)
    ptx = [entry for entry in container.entries if entry.kind is Kind.PTX and _compiles(entry, cc)]
    if ptx:
        return Choice(How.JIT, max(ptx, key=lambda entry: (entry.arch, _RANK[entry.suffix])))
    return Choice(How.MISSING, None)


_RANK = {"": 0, "f": 1, "a": 2}  # the most specific of one arch


def _runs(entry: FatbinEntry, cc: tuple[int, int]) -> bool:
    major, minor = entry.cc
    if entry.suffix == "a" or cc in TEGRA or entry.cc in TEGRA:
        return entry.cc == cc
    return major == cc[0] and minor <= cc[1]


def _compiles(entry: FatbinEntry, cc: tuple[int, int]) -> bool:
    major, minor = entry.cc
    if entry.suffix == "a":
        return entry.cc == cc
    if entry.suffix == "f":
        return major == cc[0] and minor <= cc[1]
    return entry.cc <= cc


@dataclass(frozen=True)
class Library:
    """One shared object as the verdict sees it, or all loose cubins of a wheel."""

    member: str
    code: DeviceCode
    cuda_major: int
    """Major CUDA version it was compiled with."""
    loose: bool = False
    """Whether the program itself picks among its containers (files of cubins), not the driver."""

    @property
    def stem(self) -> str:
        """File name up to its first dot."""
        return PurePosixPath(self.member).name.split(".")[0]

    @property
    def title(self) -> str:
        """Name in words: `FlashAttention 2`; the file's stem for libraries that are not vLLM's."""
        return NAMES.get(self.stem, self.stem) if "vllm" in self.member else self.stem or self.member

    @property
    def judged(self) -> list[Container]:
        """Containers that the driver loads as they are."""
        if not self.code.loadable:
            return []
        return [container for container in self.code.containers if not container.relocatable]

    @property
    def specialised(self) -> bool:
        """Whether all its SASS is for single archs or families (`90a`, `100f`) and it brings no PTX."""
        entries = list(self.code.entries)
        return self.loose or (bool(entries) and all(entry.kind is Kind.ELF and entry.suffix for entry in entries))


@dataclass(frozen=True)
class Taken:
    """What a GPU takes from a container, and how many kernels that gives (None: unknown)."""

    container: Container
    how: How
    entry: FatbinEntry | None
    kernels: int | None


def taken(library: Library, cc: tuple[int, int]) -> Iterator[Taken]:
    """Yield what a GPU takes from each container of a library. PTX without a kernel gives nothing."""
    for container in library.judged:
        choice = choose(container, cc)
        count = None if choice.entry is None else choice.entry.kernels
        if choice.how is How.JIT and count == 0 and not container.empty:
            choice, count = Choice(How.MISSING, None), None
        yield Taken(container, choice.how, choice.entry, container.kernels if count is None else count)


def cover(library: Library, cc: tuple[int, int]) -> Coverage:
    """Return how a GPU gets at each container of a library."""
    containers, kernels, unknown = Counter[How](), Counter[How](), 0
    jit: list[JitUnit] = []
    for item in taken(library, cc):
        containers[item.how] += 1
        kernels[item.how] += item.kernels or 0
        unknown += item.kernels is None and not item.container.empty
        if item.how is How.JIT and item.entry is not None and len(jit) < MAX_UNITS:
            jit.append(_jit_unit(item.container, item.entry))
    return Coverage(
        native=containers[How.NATIVE],
        compatible=containers[How.COMPATIBLE],
        jit=containers[How.JIT],
        missing=containers[How.MISSING],
        kernels=KernelCounts(**{how.value: kernels[how] for how in How}, uncounted_containers=unknown),
        elf=library.code.count(Kind.ELF),
        ptx=library.code.count(Kind.PTX),
        jit_units=jit,
    )


def _jit_unit(container: Container, entry: FatbinEntry) -> JitUnit:
    return JitUnit(
        unit=unit_name(container),
        arch=entry.target,
        ptx=f"{entry.version[0]}.{entry.version[1]}",
        cuda=release_for_ptx(entry.version).cuda,
        kernels=0 if container.empty else container.kernels,
    )


def unit_name(container: Container) -> str:
    """Return a container's source file, or where it is when its symbols are stripped."""
    return container.unit or f"container at {container.offset:#x}"


def usable(library: Library, cc: tuple[int, int]) -> int:
    """Return how many containers have kernels that a GPU can run, natively or after JIT."""
    return sum(not item.container.empty and item.how is not How.MISSING for item in taken(library, cc))


def is_useless(library: Library, cc: tuple[int, int]) -> bool:
    """Whether a library for GPUs in general has nothing for this one. Libraries for single archs may."""
    has_kernels = any(not container.empty for container in library.judged)
    return has_kernels and not library.specialised and not usable(library, cc)
