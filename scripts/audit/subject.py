"""What is being audited, as it fills up: its files with GPU code, their CPU side, what was found about them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Literal

from scripts.audit.coverage import Library
from scripts.audit.host import NO_HOST, Site, inspect
from scripts.audit.models import AuditReport, ComponentReport, Finding, Host, Level
from scripts.audit.rules import Optional, wants_kernel_names
from scripts.audit.targets import judge
from scripts.audit.torch_abi import TorchAbi
from scripts.core.errors import AuditError
from scripts.cuda.archs import TABLE, Arch
from scripts.cuda.drivers import CudaRelease, Target, newest, release, release_for_ptx
from scripts.formats.elf import ET_REL, Blob, Elf
from scripts.formats.fatbin import MAX_ENTRIES, device_code
from scripts.formats.fatbin_types import Container, DeviceCode, Kind
from scripts.formats.gpu_files import Form, file_code
from scripts.formats.payload import first_kernel
from scripts.formats.unit_names import with_units
from scripts.formats.wheel import SHARED_OBJECT

MAX_LIBRARIES = 2_000  # shared objects of one wheel
MAX_FINDINGS = 1_000
MAX_FINDING = 600  # characters
MAX_NAMED = 200  # containers whose kernel's name is looked up
FileKind = Literal["library", "object", "archive", "fatbin", "cubins"]
_NONE: Mapping[str, Sequence[str]] = MappingProxyType({})
_ABI_NONE = str(TorchAbi.none())


@dataclass
class AuditSubject:
    """What is being audited."""

    subject: str
    kind: Literal["wheel", "file", "directory", "environment"]
    size: int = 0
    name: str | None = None
    version: str | None = None
    tags: list[str] = field(default_factory=list)
    sha256: str | None = None
    torch: str | None = None
    libraries: list[Library] = field(default_factory=list)
    components: dict[str, ComponentReport] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    optional: Sequence[Optional] = ()
    """Rules about libraries that may have nothing for a GPU, beside those of the table."""
    _cubins: list[Container] = field(default_factory=list)
    _entries: int = 0

    def add(
        self, elf: Elf, member: str, own: Iterable[str], site: Site | None, units: Mapping[str, Sequence[str]] = _NONE
    ) -> None:
        """Inspect one ELF file; `units` are the names that were recorded before it was stripped.

        Files that are not called shared objects count only when GPU code is inside. Raises AuditError.
        """
        code = with_units(device_code(elf), units.get(member, ()))
        if code.containers and code.containers[0].section == "cubin":
            self._count(code)
            self._cubins += [replace(container, unit=member) for container in code.containers]
            return
        named = bool(SHARED_OBJECT.search(member))
        if not named and not code.containers:
            return
        if wants_kernel_names(PurePosixPath(member).name.split(".")[0]):
            code = _with_kernel_names(elf, code)
        inspection = inspect(elf, member, own=own, site=site)
        kind: FileKind = "object" if elf.type == ET_REL else "library"
        self._enter(member, kind, elf.size, code, inspection.host, str(inspection.torch))
        if kind == "library":
            self.findings += [*inspection.findings, *_flagless_findings(member, code)]

    def add_file(self, blob: Blob, form: Form, member: str) -> None:
        """Read a fat binary or an archive. Raises AuditError."""
        code = file_code(blob, form)
        if code.containers:
            self._enter(member, "fatbin" if form is Form.FATBIN else "archive", blob.size, code, NO_HOST, _ABI_NONE)

    def unreadable(self, member: str, error: AuditError) -> None:
        """Note a file that looks like GPU code or ELF and could not be read, and is not called a shared object."""
        text = f"it was not read and not judged: {error.why or error.what}"
        self.findings.append(Finding(level=Level.WARNING, code="not-read", where=member, text=text))

    def _enter(self, member: str, kind: FileKind, size: int, code: DeviceCode, host: Host, torch: str) -> None:
        self._count(code)
        if len(self.components) >= MAX_LIBRARIES:
            raise AuditError(f"{self.subject} holds more than {MAX_LIBRARIES:,} shared objects")
        library = Library(member, code, cuda_major(code, host.needed), loose=kind == "cubins")
        self.libraries.append(library)
        self.components[member] = _component(kind, size, library, host, torch)
        if unknown := sorted({e.target for e in code.entries if e.cc not in _KNOWN and e.kind is Kind.ELF}):
            text = f"it has code for archs that wheelsmith does not know: {', '.join(unknown[:5])}"
            self.findings.append(Finding(level=Level.NOTE, code="unknown-arch", where=member, text=text))

    def _count(self, code: DeviceCode) -> None:
        self._entries += sum(len(container.entries) for container in code.containers)
        if self._entries > MAX_ENTRIES:
            raise AuditError(
                f"{self.subject} holds more than {MAX_ENTRIES:,} pieces of GPU code",
                why="no real wheel has half as many; they may be made up",
                fix="audit its libraries one by one",
            )

    def close(self) -> None:
        """Enter what is judged together: all loose cubins as one component."""
        if not self._cubins:
            return
        folder = os.path.commonpath([PurePosixPath(item.unit).parent for item in self._cubins])
        size = sum(item.size for item in self._cubins)
        code = DeviceCode(folder, tuple(self._cubins), ())
        self._entries -= len(self._cubins)  # counted already
        self._cubins = []
        self._enter(f"{folder}/*.cubin".lstrip("/"), "cubins", size, code, NO_HOST, _ABI_NONE)

    @property
    def codes(self) -> dict[str, DeviceCode]:
        """The GPU code that was read, by member."""
        return {library.member: library.code for library in self.libraries}

    def archs(self) -> list[Arch]:
        """Return the GPU generations its SASS is for, those that the table has."""
        judged = [entry for library in self.libraries if library.code.loadable for entry in library.code.entries]
        return [Arch(*cc) for cc in sorted({entry.cc for entry in judged if entry.kind is Kind.ELF} & _KNOWN)]

    def cuda(self) -> str:
        """Return the CUDA version it was compiled with, as far as PTX or else the libraries tell; "" without code."""
        libraries = [library for library in self.libraries if library.judged]
        found = [release(f"{library.cuda_major}.0") for library in libraries]
        found += [_of_ptx(entry.version) for item in libraries for entry in item.code.entries if entry.kind is Kind.PTX]
        return newest(found).cuda if found else ""

    def report(self, targets: Sequence[Target], started: float) -> AuditReport:
        """Judge the targets and close the report."""
        verdicts = [judge(target, self.libraries, self.optional) for target in targets]
        order = {Level.ERROR: 0, Level.WARNING: 1, Level.NOTE: 2}
        findings = sorted(self.findings, key=lambda item: order[item.level])
        return AuditReport(
            subject=self.subject,
            kind=self.kind,
            size=self.size,
            sha256=self.sha256,
            name=self.name,
            version=self.version,
            tags=self.tags,
            torch=self.torch,
            ok=all(item.ok for item in verdicts) and not any(item.level is Level.ERROR for item in findings),
            targets=verdicts,
            components=self.components,
            findings=[_short(item) for item in findings[:MAX_FINDINGS]],
            seconds=round(time.monotonic() - started, 3),
        )


_KNOWN = {tuple(int(part) for part in row.number.split(".")) for row in TABLE}


def _of_ptx(version: tuple[int, int]) -> CudaRelease:
    return release_for_ptx(version)


def _short(item: Finding) -> Finding:
    if len(item.text) <= MAX_FINDING and len(item.where) <= MAX_FINDING:
        return item
    return item.model_copy(update={"text": item.text[:MAX_FINDING] + "...", "where": item.where[:MAX_FINDING]})


def _with_kernel_names(elf: Elf, code: DeviceCode) -> DeviceCode:
    """Name containers without a known source file after the first kernel of their PTX, as far as that can be seen."""
    left, named = MAX_NAMED, []
    for container in code.containers:
        ptx = next((entry for entry in container.entries if entry.kind is Kind.PTX), None)
        name = ""
        if not container.unit and ptx and left:
            left -= 1
            name = first_kernel(elf, ptx)
        named.append(replace(container, unit=f"kernel {name}") if name else container)
    return replace(code, containers=tuple(named))


def cuda_major(code: DeviceCode, needed: Iterable[str]) -> int:
    """Return the major CUDA version code was compiled with: from libcudart, else PTX, else the cubins' version."""
    for soname in needed:
        parts = soname.split(".")
        if soname.startswith("libcudart.so.") and parts[2].isascii() and parts[2].isdigit() and len(parts[2]) < 4:
            return int(parts[2])
    ptx = [entry.version for entry in code.entries if entry.kind is Kind.PTX]
    if ptx:
        return int(release_for_ptx(max(ptx)).cuda.split(".")[0])
    # CUDA 12 writes code version 1.8 for sm_100 and later only, CUDA 13 for all archs.
    thirteen = any(e.version >= (1, 8) and e.arch < 100 for e in code.entries if e.kind is Kind.ELF)
    return 13 if thirteen else 12


def _component(kind: FileKind, size: int, library: Library, host: Host, torch: str) -> ComponentReport:
    """Return the facts about one file of `size` bytes."""
    code = library.code
    entries = list(code.entries)
    ptx = Counter(f"{e.version[0]}.{e.version[1]}" for e in entries if e.kind is Kind.PTX)
    return ComponentReport(
        kind=kind,
        size=size,
        device_size=sum(container.end - container.offset for container in code.containers),
        containers=len(code.containers),
        relocatable_containers=sum(container.relocatable for container in code.containers),
        empty_containers=sum(container.empty for container in code.containers),
        elf=code.count(Kind.ELF),
        ptx=code.count(Kind.PTX),
        lto=code.count(Kind.LTO_IR),
        ptx_versions=dict(sorted(ptx.items())),
        compression=dict(sorted(Counter(entry.compression.value for entry in entries).items())),
        cuda_major=library.cuda_major,
        torch=torch,
        host=host,
    )


def _flagless_findings(member: str, code: DeviceCode) -> list[Finding]:
    """Find units compiled without any arch flag: they hold nvcc's default arch, as SASS and as PTX, and no other."""
    units = [
        container
        for container in code.containers
        if len(container.entries) == 2 and {(e.kind, e.label) for e in container.entries} in _DEFAULTS
    ]
    if not units or len(units) == len(code.containers):
        return []
    names = ", ".join(container.unit or f"container at {container.offset:#x}" for container in units[:5])
    harmless = all(container.empty for container in units)
    count = f"{len(units)} units were" if len(units) > 1 else "1 unit was"
    text = f"{count} compiled without arch flags: {names}" + (" (no kernels inside)" if harmless else "")
    return [Finding(level=Level.NOTE if harmless else Level.WARNING, code="no-arch-flags", where=member, text=text)]


_DEFAULTS = [{(Kind.ELF, arch), (Kind.PTX, arch)} for arch in ("52", "75")]  # nvcc 11 and 12, nvcc 13
