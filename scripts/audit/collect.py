"""Audit a wheel, a shared object, a directory or an installed environment: from files to an AuditReport."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.audit.contents import (
    TRITON_KERNELS,
    component_findings,
    metadata_findings,
    platform_findings,
    record_findings,
    torch_findings,
    torch_pin,
    triton_findings,
)
from scripts.audit.host import Site, read_site
from scripts.audit.models import AuditReport, Finding, Level
from scripts.audit.rules import recipe_optionals
from scripts.audit.subject import AuditSubject
from scripts.core.errors import AuditError, UsageError, from_os_error
from scripts.core.files import file_sha256
from scripts.cuda.archs import Arch
from scripts.cuda.drivers import Target
from scripts.formats.elf import Elf, open_blob, open_elf
from scripts.formats.gpu_files import START, Form, form
from scripts.formats.unit_names import read_units_of
from scripts.formats.wheel import SHARED_OBJECT, Hash, WheelFile, open_wheel, record_digest, wheel_name
from scripts.recipe.model import Recipe

TargetChoice = Callable[[AuditSubject], Sequence[Target]]
SMALL = 4 << 20  # bytes of an ELF member that is read in memory, not by way of a file: cubins come in thousands


def audit_wheel(
    path: Path,
    targets: Sequence[Target] | TargetChoice,
    *,
    recipe: Recipe | None = None,
    archs: Sequence[Arch] = (),
    torch: Path | None = None,
    optional: Recipe | None = None,
    libraries: Sequence[Path] = (),
) -> AuditReport:
    """Audit a wheel: read it as `read_wheel` does, and judge the targets. Raises AuditError when it cannot be read."""
    started = time.monotonic()
    subject = read_wheel(path, recipe=recipe, archs=archs, torch=torch, optional=optional, libraries=libraries)
    return subject.report(targets(subject) if callable(targets) else targets, started)


def read_wheel(
    path: Path,
    *,
    recipe: Recipe | None = None,
    archs: Sequence[Arch] = (),
    torch: Path | None = None,
    optional: Recipe | None = None,
    libraries: Sequence[Path] = (),
) -> AuditSubject:
    """Read a wheel once, whatever is asked of it then. Raises AuditError when it cannot be read.

    `recipe` and `archs` say which components to expect; `recipe`, else `optional`, which libraries may be without code
    for a GPU. `torch` is a site-packages folder or an environment with the torch the wheel names (without one, or when
    there is no torch in it, symbols are not resolved), `libraries` further folders with libraries. Every member that
    is an ELF file, a fat binary or an archive by its first bytes is read, whatever its name; large ones are unpacked
    one at a time to a temporary file.
    """
    site = read_site(torch, libraries) if torch else None
    name = wheel_name(path)
    subject = AuditSubject(path.name, "wheel", path.stat().st_size if path.is_file() else 0, name.name, name.version)
    subject.optional = recipe_optionals(recipe or optional)
    subject.tags = name.tags.split("-")[-3:]
    with open_wheel(path) as wheel:
        subject.torch = torch_pin(wheel)
        digests = _Reader(wheel, subject, site).read()
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
    return subject


@dataclass
class _Reader:
    """Reads each member of a wheel once: its digest, and what it holds."""

    wheel: WheelFile
    subject: AuditSubject
    site: Site | None

    def read(self) -> dict[str, Hash]:
        """Return the digests of all members; what they hold goes to the subject."""
        units = read_units_of(self.wheel)
        own = {member.filename.rsplit("/", 1)[-1] for member in self.wheel.shared_objects}
        digests: dict[str, Hash] = {}
        with tempfile.TemporaryDirectory(prefix="wheelsmith-") as folder:
            for member in self.wheel.members:
                blocks = self.wheel.blocks(member)
                first = next(blocks, b"")
                kind = form(first[:START])
                if kind is None:
                    digests[member.filename] = _digest(first, blocks, member.file_size)
                    self._expect_elf(member.filename, first)
                elif kind is Form.ELF and member.file_size <= SMALL:
                    data = first + b"".join(blocks)
                    digests[member.filename] = _digest(data, iter(()), len(data))
                    with self._tolerant(member.filename):
                        self.subject.add(Elf(data, member.filename), member.filename, own, self.site, units)
                else:
                    path, digest = self.wheel.spill(member, first, blocks, Path(folder))
                    digests[member.filename] = digest
                    with self._tolerant(member.filename):
                        self._add(path, kind, member.filename, own, units)
                    path.unlink()
        self.subject.close()
        return digests

    def _add(self, path: Path, kind: Form, member: str, own: set[str], units: Mapping[str, Sequence[str]]) -> None:
        if kind is Form.ELF:
            with open_elf(path, member) as elf:
                self.subject.add(elf, member, own, self.site, units)
        else:
            with open_blob(path, member) as blob:
                self.subject.add_file(blob, kind, member)

    def _tolerant(self, member: str) -> _Tolerant:
        return _Tolerant(self.subject, member)

    def _expect_elf(self, member: str, first: bytes) -> None:
        if SHARED_OBJECT.search(member) and not is_linker_script(first):
            text = "it is called a shared object and is none"
            self.subject.findings.append(Finding(level=Level.ERROR, code="not-elf", where=member, text=text))


@dataclass
class _Tolerant:
    """What cannot be read ends the audit when it is called a shared object; else it is noted."""

    subject: AuditSubject
    member: str

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, AuditError) or SHARED_OBJECT.search(self.member) or self.member not in error.what:
            return False
        self.subject.unreadable(self.member, error)
        return True


_STANDS_FOR = re.compile(rb"\s*(/\*.*?\*/\s*)*(INPUT|GROUP|OUTPUT_FORMAT)\s*\(|[\w./+-]+\.so[\w.]*\s*$", re.DOTALL)


def is_linker_script(start: bytes) -> bool:
    """Whether a text stands for a library: `INPUT(libx.so.1)`, `GROUP(...)`, or the name that a link pointed to."""
    return len(start) < 65_536 and _STANDS_FOR.match(start[:4096]) is not None


def _digest(first: bytes, blocks: Iterator[bytes], size: int) -> Hash:
    sha = hashlib.sha256(first)
    for block in blocks:
        sha.update(block)
    return Hash(record_digest(sha.digest()), size)


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
        subject.optional = recipe_optionals(recipe)
        site = read_site(torch) if torch else None
        own = {file.name for _, file in files if SHARED_OBJECT.search(file.name)}
        for member, file in files:
            with _Tolerant(subject, member if path.is_dir() else ""):
                _read_file(subject, member, file, own, site)
        subject.close()
    except OSError as error:
        raise from_os_error(AuditError, error, doing="reading", path=path, variable="TMPDIR") from error
    return subject.report(targets(subject) if callable(targets) else targets, started)


def _read_file(subject: AuditSubject, member: str, file: Path, own: set[str], site: Site | None) -> None:
    with file.open("rb") as stream:
        kind = form(stream.read(START))
    if kind is Form.ELF:
        with open_elf(file, member) as elf:
            subject.add(elf, member, own, site)
    elif kind is not None:
        with open_blob(file, member) as blob:
            subject.add_file(blob, kind, member)
    elif subject.kind == "file":
        with open_elf(file, member):  # says why it is not one
            pass
    subject.size += file.stat().st_size if kind else 0


def _files(path: Path, package: str, torch: Path | None) -> tuple[AuditSubject, list[tuple[str, Path]], Path | None]:
    """Return the subject, the files to look at by member name, and where torch is."""
    if path.is_file():
        return AuditSubject(path.name, "file"), [(path.name, path)], torch
    if not path.is_dir():
        raise UsageError(f"{path} does not exist", fix="give a wheel, a .so file, a directory or an environment")
    site = environment_site(path)
    if site is None:
        files = _regular_files(path, path)
        if not any(_holds(file) for _, file in files):
            raise UsageError(
                f"{path} holds nothing to audit",
                why=f"none of its {len(files):,} files is a wheel, an ELF file, a fat binary or an archive",
                fix="give a wheel, a .so file, a directory with some, or an environment",
            )
        return AuditSubject(str(path), "directory"), files, torch
    info = next(iter(sorted(site.glob(f"{package}-*.dist-info"))), None)
    if info is None:
        raise UsageError(f"{package} is not installed in {site}", fix="name what to audit: --package NAME")
    subject = AuditSubject(
        str(path), "environment", name=package, version=info.name.removesuffix(".dist-info").split("-")[1]
    )
    return subject, _regular_files(site / package, site), torch or site


def _holds(file: Path) -> bool:
    with file.open("rb") as stream:
        return form(stream.read(START)) is not None


def environment_site(path: Path) -> Path | None:
    """Return the site-packages folder that a directory is or has, None for other directories."""
    return next((item for item in (path, *sorted(path.glob("lib/python3*/site-packages"))) if _is_site(item)), None)


def _is_site(path: Path) -> bool:
    return path.name == "site-packages" and any(path.glob("*.dist-info"))


def _regular_files(folder: Path, root: Path) -> list[tuple[str, Path]]:
    found = (item for item in sorted(folder.rglob("*")) if not item.is_symlink() and item.is_file())
    return [(str(item.relative_to(root)), item) for item in found]
