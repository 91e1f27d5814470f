"""Last part of stage package: symbols stripped after their units are recorded, every byte of the wheel decided.

auditwheel's wheel goes in; out comes one whose members are sorted, dated and moded the same on every machine.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from scripts.compile.stable_names import zip_date
from scripts.core.errors import PackageError
from scripts.core.process import capture
from scripts.formats.elf import open_elf
from scripts.formats.fatbin import container_units
from scripts.formats.unit_names import UNITS, encode
from scripts.formats.wheel import WheelFile, WheelWriter, file_blocks, one_block, open_wheel


def finish_wheel(raw: Path, target: Path, *, compiler: Path, epoch: int, environment: Mapping[str, str]) -> Path:
    """Write `raw` into the folder `target`: stripped, with units.json, dated `epoch`, the same bytes every time.

    Raises PackageError when strip fails, AuditError when the wheel cannot be read.
    """
    strip = find_strip(compiler, environment)
    target.mkdir()
    with open_wheel(raw) as wheel, tempfile.TemporaryDirectory(prefix=".strip-", dir=target) as work:
        files, units = {}, {}
        for index, member in enumerate(sorted(wheel.shared_objects, key=lambda item: item.filename)):
            files[member.filename] = Path(work) / f"{index}.so"
            with wheel.unpacked(member) as (path, _):
                with open_elf(path, member.filename) as elf:
                    units[member.filename] = container_units(elf)
                strip_file(strip, path, files[member.filename], environment)
        return _write(wheel, target / raw.name, files, encode(units), epoch)


def _write(wheel: WheelFile, path: Path, files: Mapping[str, Path], units: bytes, epoch: int) -> Path:
    """Write the members in the order of their names, .dist-info last, then RECORD."""
    skipped = {f"{wheel.dist_info}/{name}" for name in ("RECORD", UNITS)}
    members = [member for member in wheel.members if member.filename not in skipped]
    writer = WheelWriter(path, wheel.dist_info)
    try:
        for member in sorted(members, key=lambda item: (_is_metadata(wheel, item), item.filename)):
            file = files.get(member.filename)
            content = file_blocks(file) if file else wheel.blocks(member)
            size = file.stat().st_size if file else member.file_size
            writer.add(_entry(member.filename, epoch, executable=_executable(member)), member.filename, content, size)
        name = f"{wheel.dist_info}/{UNITS}"
        writer.add(_entry(name, epoch, executable=False), name, one_block(units), len(units))
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _is_metadata(wheel: WheelFile, member: zipfile.ZipInfo) -> bool:
    return member.filename.startswith(f"{wheel.dist_info}/")


def _executable(member: zipfile.ZipInfo) -> bool:
    return bool(member.external_attr >> 16 & 0o111)


def _entry(name: str, epoch: int, *, executable: bool) -> zipfile.ZipInfo:
    """Return a member's date and mode, whatever the umask was."""
    info = zipfile.ZipInfo(name, zip_date(epoch))
    info.external_attr = (0o100755 if executable else 0o100644) << 16
    return info


def find_strip(compiler: Path, environment: Mapping[str, str]) -> str:
    """Return the strip program that belongs to the host compiler."""
    code, text = capture([compiler, "-print-prog-name=strip"], environment=environment)
    return text.strip() if code == 0 and text.strip() else "strip"


def strip_file(strip: str, source: Path, target: Path, environment: Mapping[str, str]) -> None:
    """Write a shared object without the symbols that loading does not need. Raises PackageError."""
    code, text = capture([strip, "--strip-all", "-o", target, source], environment=environment, timeout=600)
    if code:
        raise PackageError(
            f"strip failed for {source.name}",
            why=text.strip()[-500:],
            fix="install binutils: strip comes with the C++ compiler",
        )
