"""Audit a wheel, a shared object, a directory or an installed environment: from files to an AuditReport."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from scripts.archs import Arch
from scripts.audit_elf import Site, inspect, read_site
from scripts.audit_models import AuditReport, ComponentReport, Finding, Host, Level
from scripts.audit_targets import Library, judge
from scripts.audit_wheel import (
    TRITON_KERNELS,
    component_findings,
    metadata_findings,
    platform_findings,
    record_findings,
    torch_findings,
    torch_pin,
    triton_findings,
)
from scripts.cache import file_sha256
from scripts.drivers import Target, release_for_ptx
from scripts.elf import Elf, is_elf, open_elf
from scripts.errors import AuditError, UsageError, from_os_error
from scripts.fatbin import DeviceCode, Kind, device_code
from scripts.recipe import Recipe
from scripts.unit_names import read_units_of, with_units
from scripts.wheel_file import SHARED_OBJECT, Hash, WheelFile, open_wheel, wheel_name

TargetChoice = Callable[["Subject"], Sequence[Target]]

_NONE: Mapping[str, Sequence[str]] = MappingProxyType({})


@dataclass
class Subject:
    """What is being audited, as it fills up."""

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

    def add(
        self, elf: Elf, member: str, own: Iterable[str], site: Site | None, units: Mapping[str, Sequence[str]] = _NONE
    ) -> None:
        """Inspect one shared object; `units` are the names that were recorded before it was stripped."""
        code = with_units(device_code(elf), units.get(member, ()))
        inspection = inspect(elf, member, own=own, site=site)
        library = Library(member, code, cuda_major(code, inspection.host.needed))
        self.libraries.append(library)
        self.components[member] = component_report(elf.size, library, inspection.host)
        self.findings += [*inspection.findings, *_flagless_findings(member, code)]

    def archs(self) -> list[Arch]:
        """Return the GPU generations its SASS is for, leaving out arch-specific code."""
        found = {entry.cc for library in self.libraries for entry in library.code.entries if entry.kind is Kind.ELF}
        return [Arch(*cc) for cc in sorted(found)]

    def report(self, targets: Sequence[Target], started: float) -> AuditReport:
        """Judge the targets and close the report."""
        verdicts = [judge(target, self.libraries) for target in targets]
        order = {Level.ERROR: 0, Level.WARNING: 1, Level.NOTE: 2}
        return AuditReport(
            subject=self.subject,
            kind=self.kind,
            size=self.size,
            sha256=self.sha256,
            name=self.name,
            version=self.version,
            tags=self.tags,
            torch=self.torch,
            ok=all(item.ok for item in verdicts) and not any(item.level is Level.ERROR for item in self.findings),
            targets=verdicts,
            components=self.components,
            findings=sorted(self.findings, key=lambda item: order[item.level]),
            seconds=round(time.monotonic() - started, 3),
        )


def cuda_major(code: DeviceCode, needed: Iterable[str]) -> int:
    """Return the major CUDA version code was compiled with: from libcudart, else PTX, else the cubins' version."""
    for soname in needed:
        if soname.startswith("libcudart.so."):
            return int(soname.split(".")[2])
    ptx = [entry.version for entry in code.entries if entry.kind is Kind.PTX]
    if ptx:
        return int(release_for_ptx(max(ptx)).cuda.split(".")[0])
    # CUDA 12 writes code version 1.8 for sm_100 and later only, CUDA 13 for all archs.
    thirteen = any(e.version >= (1, 8) and e.arch < 100 for e in code.entries if e.kind is Kind.ELF)
    return 13 if thirteen else 12


def component_report(size: int, library: Library, host: Host) -> ComponentReport:
    """Return the facts about one shared object of `size` bytes."""
    code = library.code
    entries = list(code.entries)
    ptx = Counter(f"{e.version[0]}.{e.version[1]}" for e in entries if e.kind is Kind.PTX)
    return ComponentReport(
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
        host=host,
    )


def _flagless_findings(member: str, code: DeviceCode) -> list[Finding]:
    """Find units compiled without any arch flag: they hold nvcc's default arch, as SASS and as PTX, and no other."""
    units = [
        container
        for container in code.containers
        if {(e.kind, e.label) for e in container.entries} in _DEFAULTS and len(container.entries) == 2
    ]
    if not units or len(units) == len(code.containers):
        return []
    names = ", ".join(container.unit or f"container at {container.offset:#x}" for container in units[:5])
    harmless = all(container.empty for container in units)
    count = f"{len(units)} units were" if len(units) > 1 else "1 unit was"
    text = f"{count} compiled without arch flags: {names}" + (" (no kernels inside)" if harmless else "")
    return [Finding(level=Level.NOTE if harmless else Level.WARNING, code="no-arch-flags", where=member, text=text)]


_DEFAULTS = [{(Kind.ELF, arch), (Kind.PTX, arch)} for arch in ("52", "75")]  # nvcc 11 and 12, nvcc 13


def audit_wheel(
    path: Path,
    targets: Sequence[Target] | TargetChoice,
    *,
    recipe: Recipe | None = None,
    archs: Sequence[Arch] = (),
    torch: Path | None = None,
) -> AuditReport:
    """Audit a wheel. Raises AuditError when it cannot be read; what is wrong with it is in the report.

    `recipe` and `archs` say which components to expect; `torch` is a site-packages folder or an environment with the
    torch the wheel names (without one, or when there is no torch in it, symbols are not resolved). Shared objects
    are unpacked one at a time to a temporary file.
    """
    started = time.monotonic()
    site = read_site(torch) if torch else None
    name = wheel_name(path)
    subject = Subject(path.name, "wheel", path.stat().st_size if path.is_file() else 0, name.name, name.version)
    subject.tags = name.tags.split("-")[-3:]
    with open_wheel(path) as wheel:
        subject.torch = torch_pin(wheel)
        digests = _wheel_members(wheel, subject, site)
        subject.findings += [
            *record_findings(wheel, digests),
            *metadata_findings(wheel, name),
            *torch_findings(subject.torch, subject.components, site),
            *platform_findings(name, subject.components),
        ]
        if name.name == "vllm":
            subject.findings += triton_findings(recipe, _hex_digests(digests))
        if recipe is not None:
            subject.findings += component_findings(recipe, archs or recipe.archs, digests)
    subject.sha256 = file_sha256(path)
    return subject.report(targets(subject) if callable(targets) else targets, started)


def _wheel_members(wheel: WheelFile, subject: Subject, site: Site | None) -> dict[str, Hash]:
    digests: dict[str, Hash] = {}
    units = read_units_of(wheel)
    shared = {member.filename for member in wheel.shared_objects}
    own = {name.rsplit("/", 1)[-1] for name in shared}
    for member in wheel.members:
        if member.filename not in shared:
            digests[member.filename] = wheel.digest(member)
            continue
        with wheel.unpacked(member) as (path, digest):
            digests[member.filename] = digest
            if is_elf(path):
                with open_elf(path, member.filename) as elf:
                    subject.add(elf, member.filename, own, site, units)
            else:
                text = "it is called a shared object and is none"
                subject.findings.append(Finding(level=Level.ERROR, code="not-elf", where=member.filename, text=text))
    return digests


def _hex_digests(digests: Mapping[str, Hash]) -> dict[str, str]:
    return {
        name: base64.urlsafe_b64decode(item.sha256.removeprefix("sha256=") + "=").hex()
        for name, item in digests.items()
        if name.startswith(TRITON_KERNELS)
    }


def audit_path(
    path: Path,
    targets: Sequence[Target] | TargetChoice,
    *,
    recipe: Recipe | None = None,
    archs: Sequence[Arch] = (),
    torch: Path | None = None,
    package: str = "vllm",
) -> AuditReport:
    """Audit a wheel, a shared object, a directory, or the installed `package` of an environment."""
    try:
        if path.suffix == ".whl":
            return audit_wheel(path, targets, recipe=recipe, archs=archs, torch=torch)
        started = time.monotonic()
        subject, files, torch = _files(path, package, torch)
        site = read_site(torch) if torch else None
        own = {file.name for _, file in files}
        for member, file in files:
            with ExitStack() as stack:
                subject.add(stack.enter_context(open_elf(file, member)), member, own, site)
            subject.size += file.stat().st_size
    except OSError as error:
        raise from_os_error(AuditError, error, doing="reading", path=path, variable="TMPDIR") from error
    return subject.report(targets(subject) if callable(targets) else targets, started)


def _files(path: Path, package: str, torch: Path | None) -> tuple[Subject, list[tuple[str, Path]], Path | None]:
    """Return the subject, its shared objects by member name, and where torch is."""
    if path.is_file():
        return Subject(path.name, "file"), [(path.name, path)], torch
    if not path.is_dir():
        raise UsageError(f"{path} does not exist", fix="give a wheel, a .so file, a directory or an environment")
    site = next((item for item in (path, *sorted(path.glob("lib/python3*/site-packages"))) if _is_site(item)), None)
    if site is None:
        return Subject(str(path), "directory"), _shared_objects(path, path), torch
    info = next(iter(sorted(site.glob(f"{package}-*.dist-info"))), None)
    if info is None:
        raise UsageError(f"{package} is not installed in {site}", fix="name what to audit: --package NAME")
    subject = Subject(
        str(path), "environment", name=package, version=info.name.removesuffix(".dist-info").split("-")[1]
    )
    return subject, _shared_objects(site / package, site), torch or site


def _is_site(path: Path) -> bool:
    return path.name == "site-packages" and any(path.glob("*.dist-info"))


def _shared_objects(folder: Path, root: Path) -> list[tuple[str, Path]]:
    found = (item for item in folder.rglob("*.so*") if SHARED_OBJECT.search(item.name) and not item.is_symlink())
    return [(str(item.relative_to(root)), item) for item in sorted(found) if item.is_file() and is_elf(item)]
