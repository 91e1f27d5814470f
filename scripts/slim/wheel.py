"""Make a wheel for some archs out of one for many: slim shared objects, new version, new RECORD, same everything else.

Members keep their order, dates and modes, so the same wheel and archs give the same bytes. What RECORD of the old
wheel says about a member is checked on the way: a damaged wheel is not slimmed.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from packaging.tags import parse_tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from scripts.audit.alternatives import has_cuda_alternatives
from scripts.audit.coverage import NAMES, Library, usable
from scripts.core.errors import AuditError, UsageError, from_os_error
from scripts.core.files import file_sha256
from scripts.cuda.archs import Arch, arch_list, architecture, normalised
from scripts.cuda.drivers import numbers
from scripts.cuda.labels import cuda_label
from scripts.formats.elf import is_elf, open_elf
from scripts.formats.fatbin import device_code
from scripts.formats.sbom import FOLDER as SBOM_FOLDER
from scripts.formats.sbom import NAME as SBOM_NAME
from scripts.formats.sbom import Original, cut_sbom
from scripts.formats.toolkit import compiled_with
from scripts.formats.wheel import (
    WheelFile,
    WheelName,
    WheelWriter,
    file_blocks,
    one_block,
    open_wheel,
    read_record,
    wheel_name,
)
from scripts.slim.rewrite import Slimmed, slim_shared_object

ZSTD = "zstd"
_SIGNATURES = {"RECORD", "RECORD.jws", "RECORD.p7s"}


@dataclass(frozen=True)
class SlimmedMember:
    """One shared object of the wheel and what became of it."""

    name: str
    result: Slimmed
    dropped: bool

    @property
    def title(self) -> str:
        """Name in words, for people."""
        stem = PurePosixPath(self.name).name.split(".")[0]
        return NAMES.get(stem, stem)


@dataclass(frozen=True)
class SlimResult:
    """The slim wheel; sizes in bytes."""

    wheel: Path
    before: int
    after: int
    members: tuple[SlimmedMember, ...]
    notes: tuple[str, ...] = ()
    """What people should know about it."""
    cuda: str = ""
    """CUDA version it was compiled with; "" when its libraries differ."""
    source_sha256: str = ""


def slim_wheel(
    wheel: Path, archs: Sequence[Arch], out: Path, *, drop_empty: bool = False, recompress: bool = False
) -> Path:
    """Write a wheel with GPU code for `archs` only into the folder `out`; return its path.

    `drop_empty` leaves out shared objects that hold nothing for the archs; else they stay, without GPU code.
    `recompress` stores what stays as zstd, which drivers from CUDA 12.4 on read.
    Raises UsageError for archs that are no GPUs and for what is no wheel, AuditError for a wheel that is damaged or not
    understood, or from which nothing can be removed.
    """
    return slim(wheel, archs, out, drop_empty=drop_empty, recompress=recompress).wheel


def slim(
    wheel: Path,
    archs: Sequence[Arch],
    out: Path,
    *,
    drop_empty: bool = False,
    recompress: bool = False,
    on_member: Callable[[SlimmedMember], None] | None = None,
) -> SlimResult:
    """Do what `slim_wheel` does; return what happened to each shared object, and tell `on_member` as it happens."""
    gpus = _gpus(archs)
    if wheel.suffix != ".whl" or not wheel.is_file():
        what = f"there is no {wheel}" if not wheel.exists() else f"{wheel} is not a wheel"
        raise UsageError(what, why="only a wheel can be cut down to some archs", fix="give the path of a .whl file")
    old = wheel_name(wheel)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open_wheel(wheel) as source, tempfile.TemporaryDirectory(prefix=".slim-", dir=out) as work:
            job = _Job(source, old, gpus, Path(work), drop=drop_empty, recompress=recompress, on_member=on_member)
            prepared = job.prepare()
            new = replace(old, version=slim_version(old.version, job.cuda, gpus, zstd=job.recompressed))
            target = out / str(new)
            if target.exists() and target.samefile(wheel):
                raise UsageError(
                    f"the slim wheel would have the name of the wheel it is cut out of: {target.name}",
                    why="its version already names these archs, and --out is its own folder",
                    fix="take the wheel that it was cut out of, or another folder: --out DIR",
                )
            path = job.write(target, new, prepared)
            sizes = wheel.stat().st_size, path.stat().st_size
            return SlimResult(path, *sizes, tuple(job.done), tuple(job.notes), job.cuda, job.source_sha256)
    except OSError as error:
        raise from_os_error(AuditError, error, doing="slimming", path=wheel, variable="--out") from error


def _gpus(archs: Sequence[Arch]) -> tuple[Arch, ...]:
    odd = [arch for arch in archs if arch.suffix or arch.ptx]
    if odd:
        raise UsageError(
            f"--arch {arch_list(odd)}: a slim wheel is made for GPUs",
            why="a, f and +PTX belong to code; a GPU takes the most specific code there is for it",
            fix=f"--arch '{arch_list(normalised(replace(arch, suffix='', ptx=False) for arch in archs))}'",
        )
    return normalised(archs)


def slim_version(version: str, cuda: str, archs: Sequence[Arch], *, zstd: bool = False) -> str:
    """Return the version of a slim wheel: `0.15.1+cu129.sm86` from `0.15.1`, notes like `.quickstart` kept.

    Without a `cuda` the label names none: the libraries were compiled with several. `zstd`: its code was compressed
    anew, so that these are other bytes than a slim wheel has without, for newer drivers.
    """
    parsed = Version(version)
    parts = [part for part in (parsed.local or "").split(".") if part and not re.fullmatch(r"sm\d+[af]?(ptx)?", part)]
    labels = [part for part in parts if re.fullmatch(r"cu\d+", part)] or ([cuda_label(cuda)] if cuda else [])
    notes = [part for part in parts if part not in labels]
    notes += [ZSTD] if zstd and ZSTD not in notes else []
    return f"{parsed.public}+{'.'.join([*labels, *(arch.label for arch in archs), *notes])}"


class _Job:
    """One run over a wheel: prepare the shared objects, then write the new wheel."""

    def __init__(
        self,
        source: WheelFile,
        name: WheelName,
        archs: tuple[Arch, ...],
        work: Path,
        *,
        drop: bool,
        recompress: bool,
        on_member: Callable[[SlimmedMember], None] | None,
    ) -> None:
        self._source, self._name, self._archs, self._work = source, name, archs, work
        self._drop, self._recompress, self._tell = drop, recompress, on_member or (lambda _: None)
        self._record = read_record(source)
        self._cudas: dict[str, str] = {}
        self.done: list[SlimmedMember] = []
        self.notes: list[str] = []
        self._source_sha256 = ""

    @property
    def cuda(self) -> str:
        """CUDA version the wheel was compiled with, as far as its code tells; "" when its libraries differ in it."""
        if is_ambiguous(self._cudas):
            return ""
        newest = max(self._cudas.values(), key=numbers, default="")
        return newest if "." in newest or not newest else f"{newest}.0"  # its cubins run from that release on

    @property
    def recompressed(self) -> bool:
        """Whether some code is compressed otherwise than in the old wheel."""
        return any(item.result.recompressed for item in self.done)

    @property
    def source_sha256(self) -> str:
        """Digest of the wheel that is cut."""
        self._source_sha256 = self._source_sha256 or file_sha256(self._source.path)
        return self._source_sha256

    def prepare(self) -> dict[str, Path | None]:
        """Slim every shared object into a file; None for those to drop. What is called one and is none stays."""
        prepared: dict[str, Path | None] = {}
        found = dict.fromkeys(self._archs, 0)
        for index, member in enumerate(self._source.shared_objects):
            target = self._work / f"{index}.so"
            with self._source.unpacked(member) as (path, digest):
                self._check(member, digest.sha256)
                if not is_elf(path):
                    continue  # a linker script, or the target of a symbolic link
                result = slim_shared_object(path, target, self._ccs, name=member.filename, recompress=self._recompress)
                self._learn(member.filename, path, found)
            done = SlimmedMember(member.filename, result, dropped=self._drop and result.empty)
            prepared[member.filename] = None if done.dropped else target
            self.done.append(done)
            self._tell(done)
        self._refuse_useless(found)
        self._refuse_unchanged()
        if is_ambiguous(self._cudas):
            versions = ", ".join(sorted(set(filter(None, self._cudas.values()))))
            self.notes.append(
                f"its libraries were compiled with different CUDA versions ({versions}): none in its label"
            )
        elif self._cudas and not any("." in cuda for cuda in self._cudas.values()):
            major = self.cuda.partition(".")[0]
            self.notes.append(f"nothing in it tells which CUDA {major} compiled it: labelled as {self.cuda}")
        return prepared

    def _refuse_unchanged(self) -> None:
        """Refuse a wheel of which nothing goes: a copy under a new label would claim what is not so."""
        if self.recompressed or any(
            item.dropped or item.result.entries_after < item.result.entries_before for item in self.done
        ):
            return
        whole = [item for item in self.done if item.result.whole]
        if whole:
            names = ", ".join(PurePosixPath(item.name).name for item in whole[:3])
            why = f"the GPU code of {names} is device-linked (-rdc) or not registered by host code, and kept whole"
        elif any(item.result.entries_before for item in self.done):
            why = f"all of its GPU code is what {arch_list(self._archs)} takes"
        else:
            why = "its shared objects hold no GPU code"
        raise AuditError(
            f"nothing can be removed from {self._source.path.name} for {arch_list(self._archs)}",
            why=why,
            fix="use the wheel as it is; no slim wheel was written",
        )

    @property
    def _ccs(self) -> list[tuple[int, int]]:
        return [(arch.major, arch.minor) for arch in self._archs]

    def _learn(self, member: str, path: Path, found: dict[Arch, int]) -> None:
        """Note the CUDA version of a shared object, and which archs it has code for."""
        with open_elf(path) as elf:
            code = device_code(elf)
            if cuda := compiled_with(elf, code):
                self._cudas[member] = cuda
        for arch in found:
            found[arch] += usable(Library("", code, 0), (arch.major, arch.minor))

    def _refuse_useless(self, found: dict[Arch, int]) -> None:
        without = [arch for arch, count in found.items() if not count]
        if without:
            gpu = architecture(without[0]).gpus[0]
            raise AuditError(
                f"{self._source.path.name} has no code for {arch_list(without)}",
                why=f"a wheel cut to {arch_list(without)} would run nothing on such a GPU ({gpu})",
                fix=f"nox -s audit -- {self._source.path.name} shows what is inside",
            )

    def write(self, path: Path, new: WheelName, prepared: dict[str, Path | None]) -> Path:
        """Write the new wheel: everything but .dist-info in the old order, then .dist-info, then RECORD."""
        dist_info = f"{new.name}-{new.version}.dist-info"
        writer = WheelWriter(path, dist_info)
        try:
            for member in sorted(self._source.members, key=lambda item: self._is_metadata(item.filename)):
                if self._is_metadata(member.filename):
                    self._add_metadata(writer, member, dist_info, new)
                elif member.filename not in prepared:
                    digest = writer.add(
                        member, self._renamed(member.filename, new), self._source.blocks(member), member.file_size
                    )
                    self._check(member, digest.sha256)
                elif file := prepared[member.filename]:
                    writer.add(member, member.filename, file_blocks(file), file.stat().st_size)
                    file.unlink()
            self._add_sbom(writer, dist_info, new)
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _add_sbom(self, writer: WheelWriter, dist_info: str, new: WheelName) -> None:
        """Name the old wheel and its hash; upstream's wheels, which have no SBOM, get one that says so much."""
        source, old = self._source, self._name
        sbom = source.read(f"{source.dist_info}/{SBOM_FOLDER}/{SBOM_NAME}")
        project = str(canonicalize_name(new.name))
        original = Original(str(old), self.source_sha256, project, old.version, arch_list(self._archs))
        data = cut_sbom(sbom, new.version, original)
        like = next(item for item in source.members if item.filename == f"{source.dist_info}/METADATA")
        writer.add(like, f"{dist_info}/{SBOM_FOLDER}/{SBOM_NAME}", one_block(data), len(data))

    def _is_metadata(self, name: str) -> bool:
        return name.startswith(f"{self._source.dist_info}/")

    def _renamed(self, name: str, new: WheelName) -> str:
        data = f"{self._name.name}-{self._name.version}.data/"
        return f"{new.name}-{new.version}.data/{name.removeprefix(data)}" if name.startswith(data) else name

    def _add_metadata(self, writer: WheelWriter, member: zipfile.ZipInfo, dist_info: str, new: WheelName) -> None:
        name = member.filename.removeprefix(f"{self._source.dist_info}/")
        if name in _SIGNATURES:
            return
        if name == f"{SBOM_FOLDER}/{SBOM_NAME}":
            return  # its successor is written last
        if name not in {"METADATA", "WHEEL"}:
            digest = writer.add(member, f"{dist_info}/{name}", self._source.blocks(member), member.file_size)
            self._check(member, digest.sha256)
            return
        data = self._source.read(member.filename) or b""
        if name == "METADATA":
            data = re.sub(rb"(?m)^Version:[^\r\n]*", f"Version: {new.version}".encode(), data, count=1)
        if name == "WHEEL":
            data = _with_tags(data, new)
        writer.add(member, f"{dist_info}/{name}", one_block(data), len(data))

    def _check(self, member: zipfile.ZipInfo, digest: str) -> None:
        known = self._record.get(member.filename)
        if known is None or (known.sha256 and known.sha256 != digest):
            raise self._source.error(f"{member.filename} is not what RECORD says", "the wheel is damaged or edited")


def is_ambiguous(cudas: Mapping[str, str]) -> bool:
    """Whether libraries (CUDA version by member) were compiled with CUDA versions that no one label can name.

    Minor versions within a library's or a wheel's parts are common (cuBLAS): only different major versions, and
    libraries that are there once per CUDA version, make a label untrue.
    """
    majors = {cuda.split(".")[0] for cuda in cudas.values() if cuda}
    return len(majors) > 1 or has_cuda_alternatives(cudas)


def _with_tags(data: bytes, new: WheelName) -> bytes:
    """Return the file WHEEL with the tags of the file name, which upstream's sometimes contradicts."""
    kept = [line for line in data.decode("utf-8", "replace").splitlines() if line and not line.startswith("Tag:")]
    tags = sorted(str(tag) for tag in parse_tag(new.tags))
    parse_wheel_filename(str(new))  # the new name is valid, or this is a bug that must not get out
    return "".join(f"{line}\n" for line in [*kept, *(f"Tag: {tag}" for tag in tags)]).encode()
