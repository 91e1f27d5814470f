"""What a driver does with a library's GPU code: the choice in each container, and the verdict for a target.

In each container the CUDA driver takes the best entry for its GPU: SASS of the same arch (native), else SASS of an
earlier minor version of the same major one (compatible), else the newest PTX, which it compiles itself (JIT), else
nothing (missing: calling such a kernel fails, loading the library does not). Checked on an H100: docs/fatbin.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

from scripts.archs import TEGRA
from scripts.audit_models import Coverage, JitUnit, KernelCounts, TargetVerdict
from scripts.drivers import CudaRelease, Target, floor, newest, numbers, release_for_ptx
from scripts.fatbin import Container, DeviceCode, Entry, Kind

NAMES = {
    "_vllm_fa2_C": "FlashAttention 2",
    "_vllm_fa3_C": "FlashAttention 3",
    "_flashmla_C": "FlashMLA",
    "_flashmla_extension_C": "FlashMLA extension",
    "_moe_C": "MoE kernels",
    "_C": "core kernels",
    "_C_stable_libtorch": "core kernels (stable ABI)",
    "cumem_allocator": "sleep-mode allocator",
}
_FAMILIES = (
    (re.compile(r"marlin|sm\d+_kernel_"), "Marlin"),
    (re.compile(r"machete"), "Machete"),
    (re.compile(r"scaled_mm"), "CUTLASS scaled_mm"),
    (re.compile(r"^flash_(fwd|bwd)"), "FlashAttention"),
)


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
    entry: Entry | None


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


def _runs(entry: Entry, cc: tuple[int, int]) -> bool:
    major, minor = entry.cc
    if entry.suffix == "a" or cc in TEGRA or entry.cc in TEGRA:
        return entry.cc == cc
    return major == cc[0] and minor <= cc[1]


def _compiles(entry: Entry, cc: tuple[int, int]) -> bool:
    major, minor = entry.cc
    if entry.suffix == "a":
        return entry.cc == cc
    if entry.suffix == "f":
        return major == cc[0] and minor <= cc[1]
    return entry.cc <= cc


@dataclass(frozen=True)
class Library:
    """One shared object as the verdict sees it."""

    member: str
    code: DeviceCode
    cuda_major: int
    """Major CUDA version it was compiled with."""

    @property
    def title(self) -> str:
        """Name in words: `FlashAttention 2`; the file's stem for libraries that are not vLLM's."""
        stem = PurePosixPath(self.member).name.split(".")[0]
        return NAMES.get(stem, stem) if "vllm" in self.member else stem

    @property
    def judged(self) -> list[Container]:
        """Containers that the driver loads as they are."""
        return [container for container in self.code.containers if not container.relocatable]

    @property
    def specialised(self) -> bool:
        """Whether all its SASS is for single archs or families (`90a`, `100f`) and it brings no PTX."""
        entries = list(self.code.entries)
        return bool(entries) and all(entry.kind is Kind.ELF and entry.suffix for entry in entries)


def cover(library: Library, cc: tuple[int, int]) -> Coverage:
    """Return how a GPU gets at each container of a library."""
    containers, kernels, unknown = Counter[How](), Counter[How](), 0
    jit: list[JitUnit] = []
    for container in library.judged:
        choice = choose(container, cc)
        containers[choice.how] += 1
        count = None if choice.entry is None else choice.entry.kernels
        count = container.kernels if count is None else count
        kernels[choice.how] += count or 0
        unknown += count is None and not container.empty
        if choice.how is How.JIT and choice.entry is not None:
            jit.append(_jit_unit(container, choice.entry))
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


def _jit_unit(container: Container, entry: Entry) -> JitUnit:
    return JitUnit(
        unit=container.unit or f"container at {container.offset:#x}",
        arch=entry.target,
        ptx=f"{entry.version[0]}.{entry.version[1]}",
        cuda=release_for_ptx(entry.version).cuda,
        kernels=0 if container.empty else container.kernels,
    )


def judge(target: Target, libraries: Sequence[Library]) -> TargetVerdict:
    """Return the verdict for a target over all libraries of a wheel."""
    cc = (target.arch.major, target.arch.minor)
    coverage = {library.member: cover(library, cc) for library in libraries}
    with_code = [library for library in libraries if library.judged]
    alarming = [unit for item in coverage.values() for unit in item.jit_units if unit.kernels != 0]
    base = newest([floor(target.arch, library.cuda_major) for library in with_code]) if with_code else None
    lowest = newest([base, *(release_for_ptx(_pair(unit.ptx)) for unit in alarming)]) if base else None
    useless = [library for library in with_code if _is_useless(library, cc)]
    reasons = [*_missing_reasons(useless, with_code, cc), *_driver_reasons(target, base, coverage, libraries)]
    totals = {how.value: sum(getattr(item, how.value) for item in coverage.values()) for how in How}
    return TargetVerdict(
        gpu=target.gpu,
        arch=target.arch.sm,
        driver=target.driver or None,
        driver_cuda=target.cuda or None,
        ok=not reasons,
        **totals,
        kernels=_sum(item.kernels for item in coverage.values()),
        lowest_cuda=lowest.cuda if lowest and not useless else None,
        lowest_driver=(lowest.driver or None) if lowest and not useless else None,
        lowest_driver_without_jit=(base.driver or None) if base and not useless else None,
        reasons=reasons,
        summary=_summary(target, reasons, lowest, totals, alarming),
        components=coverage,
    )


def _pair(version: str) -> tuple[int, int]:
    major, minor = numbers(version)
    return major, minor


def _sum(counts: Iterable[KernelCounts]) -> KernelCounts:
    total: Counter[str] = Counter()
    for item in counts:
        total.update(item.model_dump())
    return KernelCounts.model_validate({name: total[name] for name in KernelCounts.model_fields})


def usable(library: Library, cc: tuple[int, int]) -> int:
    """Return how many containers have kernels that a GPU can run, natively or after JIT."""
    return sum(not item.empty and choose(item, cc).how is not How.MISSING for item in library.judged)


def _is_useless(library: Library, cc: tuple[int, int]) -> bool:
    """Whether a library for GPUs in general has nothing for this one. Libraries for single archs may."""
    has_kernels = any(not container.empty for container in library.judged)
    return has_kernels and not library.specialised and not usable(library, cc)


def _missing_reasons(useless: Sequence[Library], with_code: Sequence[Library], cc: tuple[int, int]) -> list[str]:
    if useless:
        return [f"{', '.join(library.title for library in useless)}: no code for it"]
    has_kernels = any(not container.empty for library in with_code for container in library.judged)
    if has_kernels and not any(usable(library, cc) for library in with_code):
        return ["nothing in it has code for this GPU"]
    return []


def _driver_reasons(
    target: Target, base: CudaRelease | None, coverage: Mapping[str, Coverage], libraries: Sequence[Library]
) -> list[str]:
    if not target.cuda or base is None:
        return []
    driver = numbers(target.cuda)
    if driver < numbers(base.cuda):
        return [f"it needs at least a CUDA {base.cuda} driver ({base.driver}): {_floor_cause(target, base)}"]
    late = {
        member: [unit for unit in item.jit_units if numbers(unit.cuda) > driver] for member, item in coverage.items()
    }
    if not any(unit.kernels != 0 for units in late.values() for unit in units):
        return []
    count = sum(len(units) for units in late.values())
    usable = sum(item.native + item.compatible + item.jit for item in coverage.values())
    needed = newest([release_for_ptx(_pair(unit.ptx)) for units in late.values() for unit in units])
    names = _in_words(late, coverage, libraries)
    return [f"{count} of {usable} kernel containers need a CUDA {needed.cuda} driver: {names}"]


def _floor_cause(target: Target, base: CudaRelease) -> str:
    if numbers(floor(target.arch, 0).cuda) >= numbers(base.cuda):
        return "older ones do not know this GPU"
    return f"older ones do not run code of CUDA {base.cuda.split('.')[0]}"


def _in_words(late: Mapping[str, list[JitUnit]], coverage: Mapping[str, Coverage], libraries: Sequence[Library]) -> str:
    """Return who needs JIT, most first: `FlashAttention 2 (all 60), Marlin (31 in _C and _moe_C), ...`."""
    titles = {library.member: library.title for library in libraries}
    groups: Counter[str] = Counter()
    whole: set[str] = set()
    for member, units in late.items():
        item = coverage[member]
        if units and len(units) == item.jit and not item.native + item.compatible:
            groups[titles[member]] += len(units)
            whole.add(titles[member])
            continue
        groups.update(_family(unit.unit) for unit in units)
    shown = [f"{name} ({'all ' if name in whole else ''}{count})" for name, count in groups.most_common(4)]
    others = sum(groups.values()) - sum(count for _, count in groups.most_common(4))
    return ", ".join(shown) + (f", {others} more" if others else "")


def _family(unit: str) -> str:
    for pattern, name in _FAMILIES:
        if pattern.search(unit):
            return name
    return unit.rsplit(".", 1)[0]


def _summary(
    target: Target,
    reasons: Sequence[str],
    lowest: CudaRelease | None,
    totals: Mapping[str, int],
    alarming: Sequence[JitUnit],
) -> str:
    if reasons:
        return f"{target}: NOT OK: {'; '.join(reasons)}"
    if lowest is None:
        return f"{target}: OK: there is no GPU code inside"
    counts = f"{totals['native']} native, {totals['compatible']} compatible, {totals['jit']} JIT"
    if target.driver:
        return f"{target}: OK: {counts}"
    why = f"; {len(alarming)} containers are compiled by the driver" if alarming else ""
    return (
        f"{target}: needs a CUDA {lowest.cuda} driver ({lowest.driver or 'newer than known'}) or later: {counts}{why}"
    )
