"""The verdict for a target: a GPU and its driver, over all libraries of a wheel.

Not ok is a target whose driver is too old (for the GPU, for the code's CUDA, for PTX) or too new for its GPU, for which
a library has nothing that it needs, which would run code that is known to misbehave, or for which nothing could be
judged. Of libraries that are alternatives only the one that would be loaded counts (`alternatives.py`); a library
that may be missing (`rules.toml`) is a warning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.audit.alternatives import Chosen, choose_libraries
from scripts.audit.coverage import How, Library, cover, is_useless, taken, unit_name, usable
from scripts.audit.models import Coverage, HazardFound, KernelCounts, Level, TargetVerdict
from scripts.audit.rules import Optional, found_hazards, optional_for
from scripts.cuda.archs import architecture
from scripts.cuda.drivers import FIRST_WITH_ZSTD, CudaRelease, Target, floor, newest, numbers, release_for_ptx
from scripts.formats.fatbin_types import Compression

NOTHING = "there is no GPU code inside that the audit can judge"
_FAMILIES = (
    (re.compile(r"marlin|sm\d+_kernel_"), "Marlin"),
    (re.compile(r"machete"), "Machete"),
    (re.compile(r"scaled_mm"), "CUTLASS scaled_mm"),
    (re.compile(r"^flash_(fwd|bwd)"), "FlashAttention"),
)


@dataclass(frozen=True)
class _Jit:
    """A container that the driver compiles, of a library."""

    library: Library
    unit: str
    ptx: tuple[int, int]
    kernels: bool
    """Whether it may have some."""

    @property
    def release(self) -> CudaRelease:
        return release_for_ptx(self.ptx)


@dataclass(frozen=True)
class _View:
    """The libraries that a target loads, as it sees them."""

    target: Target
    libraries: Sequence[Library]
    coverage: Mapping[str, Coverage]
    optional: Sequence[Optional]

    @property
    def cc(self) -> tuple[int, int]:
        return self.target.arch.major, self.target.arch.minor

    @property
    def with_code(self) -> list[Library]:
        return [library for library in self.libraries if library.judged]

    @property
    def base(self) -> CudaRelease | None:
        """The first release whose driver runs the SASS."""
        floors = [floor(self.target.arch, library.cuda_major) for library in self.with_code]
        return newest([*floors, *([FIRST_WITH_ZSTD] if self.zstd else [])]) if floors else None

    @property
    def zstd(self) -> bool:
        """Whether the GPU takes code that is stored as zstd."""
        return any(
            item.entry is not None and item.entry.compression is Compression.ZSTD
            for library in self.with_code
            for item in taken(library, self.cc)
        )

    def jit(self) -> list[_Jit]:
        """Return the containers that the driver compiles."""
        return [
            _Jit(library, unit_name(item.container), item.entry.version, not item.container.empty and item.kernels != 0)
            for library in self.with_code
            for item in taken(library, self.cc)
            if item.how is How.JIT and item.entry is not None
        ]


def judge(target: Target, libraries: Sequence[Library], optional: Sequence[Optional] = ()) -> TargetVerdict:
    """Return the verdict for a target over all libraries of a wheel; `optional` are rules beside those of the table."""
    cc = (target.arch.major, target.arch.minor)
    coverage = {library.member: cover(library, cc) for library in libraries if library.code.containers}
    chosen = choose_libraries(target, libraries, lambda item: not _reasons(_View(target, [item], coverage, optional)))
    view = _View(target, chosen.libraries, coverage, optional)
    hazards = list(found_hazards(target, chosen.libraries))
    reasons = [*_reasons(view), *(_hazard_reason(item) for item in hazards if item.level is Level.ERROR)]
    alarming = [item for item in view.jit() if item.kernels]
    base = view.base
    lowest = newest([base, *(item.release for item in alarming)]) if base else None
    lacking = bool(_missing_reasons(view))
    counted = [coverage[item.member] for item in view.libraries if item.member in coverage]
    totals = {how.value: sum(getattr(item, how.value) for item in counted) for how in How}
    return TargetVerdict(
        gpu=target.gpu,
        arch=target.arch.sm,
        driver=target.driver or None,
        driver_cuda=target.cuda or None,
        ok=not reasons,
        judged=bool(view.with_code),
        **totals,
        kernels=_sum(item.kernels for item in counted),
        lowest_cuda=lowest.cuda if lowest and not lacking else None,
        lowest_driver=(lowest.driver or None) if lowest and not lacking else None,
        lowest_driver_without_jit=(base.driver or None) if base and not lacking else None,
        reasons=reasons,
        warnings=[*_lost(view), *(_hazard_reason(item) for item in hazards if item.level is not Level.ERROR)],
        hazards=hazards,
        alternatives=[library.member for library in chosen.left_out],
        summary=_summary(view, reasons, lowest, totals, len(alarming), chosen),
        components=coverage,
    )


def _sum(counts: Iterable[KernelCounts]) -> KernelCounts:
    total: Counter[str] = Counter()
    for item in counts:
        total.update(item.model_dump())
    return KernelCounts.model_validate({name: total[name] for name in KernelCounts.model_fields})


def _reasons(view: _View) -> list[str]:
    return [*_missing_reasons(view), *_dropped_reasons(view.target), *_driver_reasons(view)]


def _lacking(view: _View) -> list[Library]:
    """Return the libraries that have nothing for the GPU and should."""
    useless = [item for item in view.with_code if is_useless(item, view.cc)]
    return [item for item in useless if optional_for(item, view.cc, view.optional) is None]


def _lost(view: _View) -> list[str]:
    useless = [item for item in view.with_code if is_useless(item, view.cc)]
    found = {rule.id: rule for item in useless if (rule := optional_for(item, view.cc, view.optional))}
    return [f"it goes without {rule.lost} [{rule.id}]" for rule in found.values()]


def _missing_reasons(view: _View) -> list[str]:
    if not view.with_code:
        return [NOTHING]
    if lacking := _lacking(view):
        names = list(dict.fromkeys(library.title for library in lacking))
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return [f"{', '.join(names[:8])}{more}: no code for it"]
    has_kernels = any(not container.empty for library in view.with_code for container in library.judged)
    if not has_kernels:
        return ["no kernel is inside"]
    if not any(usable(library, view.cc) for library in view.with_code):
        return ["nothing in it has code for this GPU"]
    return []


def _dropped_reasons(target: Target) -> list[str]:
    row = architecture(target.arch)
    if not row.last_branch or target.branch <= row.last_branch:
        return []
    return [f"drivers after {row.last_branch}.x no longer support {row.family}"]


def _driver_reasons(view: _View) -> list[str]:
    target, base = view.target, view.base
    if not target.driver or base is None:
        return []
    if target.cuda and numbers(target.cuda) < numbers(base.cuda):
        return [f"it needs at least {base}: {_floor_cause(view, base)}"]
    jit = view.jit()
    late = [item for item in jit if _too_new(item, target)]
    if not any(item.kernels for item in late):
        return []
    count = sum(item.native + item.compatible + item.jit for item in map(view.coverage.get, _members(view)) if item)
    needed = newest([item.release for item in late])
    said = f"{len(late)} of {count} kernel containers need"
    if target.newer:
        return [f"unknown: {said} {needed} and this driver is newer than the table too: {_in_words(late, view)}"]
    words = f"a CUDA {needed.cuda} driver" if needed.known else str(needed)
    return [f"{said} {words}: {_in_words(late, view)}"]


def _members(view: _View) -> list[str]:
    return [library.member for library in view.libraries]


def _too_new(item: _Jit, target: Target) -> bool:
    if target.newer:  # runs all code of the table; of newer code nothing is known
        return not item.release.known
    return numbers(item.release.cuda) > numbers(target.cuda)


def _floor_cause(view: _View, base: CudaRelease) -> str:
    if numbers(floor(view.target.arch, 0).cuda) >= numbers(base.cuda):
        return "older ones do not know this GPU"
    if view.zstd and base == FIRST_WITH_ZSTD:
        return "older ones do not read its code, which is stored as zstd"
    return f"older ones do not run code of CUDA {base.cuda.split('.')[0]}"


def _in_words(late: Sequence[_Jit], view: _View) -> str:
    """Return who needs JIT, most first: `FlashAttention 2 (all 60), Marlin (31 in _C and _moe_C), ...`."""
    groups: Counter[str] = Counter()
    whole: set[str] = set()
    for library in view.with_code:
        item, units = view.coverage[library.member], [entry for entry in late if entry.library is library]
        if units and len(units) == item.jit and not item.native + item.compatible:
            groups[library.title] += len(units)
            whole.add(library.title)
            continue
        groups.update(_family(entry.unit) for entry in units)
    shown = [f"{name} ({'all ' if name in whole else ''}{count})" for name, count in groups.most_common(4)]
    others = sum(groups.values()) - sum(count for _, count in groups.most_common(4))
    return ", ".join(shown) + (f", {others} more" if others else "")


def _family(unit: str) -> str:
    for pattern, name in _FAMILIES:
        if pattern.search(unit):
            return name
    return unit.rsplit(".", 1)[0]


def _hazard_reason(item: HazardFound) -> str:
    return f"{item.text} ({item.containers} containers; {item.source}) [{item.id}]"


def _summary(
    view: _View,
    reasons: Sequence[str],
    lowest: CudaRelease | None,
    totals: Mapping[str, int],
    alarming: int,
    chosen: Chosen,
) -> str:
    target = view.target
    which = f" ({', '.join(chosen.notes)})" if chosen.notes else ""
    if not view.with_code:
        return f"{target}: NOT JUDGED: {NOTHING}"
    if reasons:
        return f"{target}: NOT OK: {'; '.join(reasons)}{which}"
    counts = f"{totals['native']} native, {totals['compatible']} compatible, {totals['jit']} JIT"
    counts += f", {totals['missing']} missing" if totals["missing"] else ""
    if target.driver:
        return f"{target}: OK: {counts}{which}"
    why = f"; {alarming} containers are compiled by the driver" if alarming else ""
    return f"{target}: needs {lowest} {architecture(target.arch).or_later}: {counts}{which}{why}"
