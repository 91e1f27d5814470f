"""The audit's report: frozen models that are its JSON (schema version 1) and feed the table and the HTML page.

Counts are of kernel containers (one per translation unit) unless a field says kernels, entries or bytes.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import Field

from scripts.core.models import Model

SCHEMA_VERSION: Literal[1] = 1


class KernelCounts(Model):
    """Kernels (GPU functions), counted where a cubin of the unit is stored uncompressed."""

    native: int
    compatible: int
    jit: int
    missing: int
    uncounted_containers: int
    """Containers whose kernels could not be counted without decompressing; they are taken to have some."""


class JitUnit(Model):
    """A translation unit that the driver must compile from PTX."""

    unit: str
    """Source file, or the container's offset when the symbols are stripped."""
    arch: str
    """PTX target: `compute_80`."""
    ptx: str
    """PTX ISA version: `8.8`."""
    cuda: str
    """First CUDA version whose driver compiles it: `12.9`."""
    kernels: int | None
    """Kernels inside; 0 alarms nobody; null when unknown."""


class Coverage(Model):
    """One shared object as one GPU sees it."""

    native: int
    """Containers with SASS of exactly this arch."""
    compatible: int
    """Containers with SASS of an earlier minor version of the same major one."""
    jit: int
    """Containers with usable PTX only."""
    missing: int
    """Containers with nothing this GPU can run."""
    kernels: KernelCounts
    elf: dict[str, int]
    """Cubin entries per arch in the file, whatever the GPU: `{"80": 53, "90a": 21}`."""
    ptx: dict[str, int]
    """PTX entries per arch in the file."""
    jit_units: list[JitUnit]
    """The first 200."""


class Level(str, Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class HazardFound(Model):
    """GPU code that is known to misbehave on the target (rules.toml)."""

    id: str
    level: Level
    component: str
    """Shared object."""
    containers: int
    units: list[str]
    """Their source files or kernels (first 50)."""
    text: str
    remedy: str
    versions: str
    """Where it was seen."""
    source: str


class TargetVerdict(Model):
    """What one GPU, with one driver or the lowest possible, does with the wheel."""

    gpu: str
    arch: str
    """`sm_120`."""
    driver: str | None
    """As asked: a CUDA version or a driver version; null when the lowest was asked for."""
    driver_cuda: str | None
    """CUDA version of that driver."""
    ok: bool
    judged: bool = True
    """Whether there is GPU code that could be judged; without, it is not ok."""
    native: int
    compatible: int
    jit: int
    missing: int
    kernels: KernelCounts
    lowest_cuda: str | None
    """Lowest CUDA version whose driver runs everything that is there for this GPU."""
    lowest_driver: str | None
    """First Linux driver of that CUDA version."""
    lowest_driver_without_jit: str | None
    """First Linux driver that runs the SASS: enough when nothing that needs JIT is used."""
    reasons: list[str]
    """Why it is not ok."""
    warnings: list[str] = Field(default_factory=list)
    """What is lost or reported to go wrong though it is ok."""
    hazards: list[HazardFound] = Field(default_factory=list)
    alternatives: list[str] = Field(default_factory=list)
    """Shared objects that this target does not load, because it loads another of their group."""
    summary: str
    """The verdict in one line."""
    components: dict[str, Coverage]
    """By shared object: its path in the wheel."""


class Finding(Model):
    """Something besides the GPU verdicts."""

    level: Level
    """Errors make the audit fail (exit code 9)."""
    code: str
    """Stable identifier: `record-mismatch`."""
    where: str
    """Shared object or file, "" for the wheel."""
    text: str


class Host(Model):
    """The CPU side of a shared object."""

    machine: str
    """`x86_64`, `aarch64` or the ELF number."""
    needed: list[str]
    """Sonames it needs."""
    soname: str
    rpath: list[str]
    """DT_RPATH and DT_RUNPATH."""
    glibc: str
    """Lowest glibc that has all symbol versions it needs: `2.31`; "" when it needs none."""
    libstdcxx: str
    """Highest GLIBCXX version it needs: `3.4.29`."""
    base_images: list[str]
    """Base images whose glibc and libstdc++ satisfy it."""
    executable_stack: bool
    stripped: bool
    undefined: int
    """Undefined dynamic symbols."""
    unresolved: list[str] | None
    """Those that nothing provides (first 50); null when torch's libraries were not at hand."""


class ComponentReport(Model):
    """One file of the wheel with GPU code, or one shared object."""

    kind: Literal["library", "object", "archive", "fatbin", "cubins"] = "library"
    """What it is: a shared object or executable; an object file or archive (linked, not loaded); a fat binary; loose
    cubins, all of a wheel together."""

    size: int
    """Bytes of the file."""
    device_size: int
    """Bytes of GPU code."""
    containers: int
    relocatable_containers: int
    """Containers of relocatable device code (-rdc), which are listed but not judged."""
    empty_containers: int
    """Containers that hold no kernel for certain."""
    elf: dict[str, int]
    """Cubin entries per arch."""
    ptx: dict[str, int]
    """PTX entries per arch."""
    lto: dict[str, int]
    """LTO-IR entries per arch."""
    ptx_versions: dict[str, int]
    """PTX entries per PTX ISA version."""
    compression: dict[str, int]
    """Entries per compression: none, lz4, zstd, lz."""
    cuda_major: int
    """Major CUDA version it was compiled with."""
    torch: str = ""
    """Which torch it fits: `any`, `>= 2.11 (stable ABI)`, `one release (68 C++ symbols)`."""
    host: Host


class AuditReport(Model):
    """The result of `nox -s audit` for one wheel, file, directory or environment."""

    schema_version: Literal[1] = SCHEMA_VERSION
    subject: str
    """What was audited: file name or path."""
    kind: Literal["wheel", "file", "directory", "environment"]
    size: int
    """Bytes of the wheel or of all shared objects."""
    sha256: str | None
    """Of the wheel."""
    name: str | None
    version: str | None
    tags: list[str]
    """Tags of the wheel's file name."""
    torch: str | None
    """`Requires-Dist` of torch: `==2.9.1`."""
    ok: bool
    """No target is unmet and no finding is an error."""
    targets: list[TargetVerdict]
    components: dict[str, ComponentReport]
    findings: list[Finding]
    seconds: float
    """Wall time of the audit."""
