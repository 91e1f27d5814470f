"""Compare the audit's reading of wheels with NVIDIA's cuobjdump, an independent reader; print a table's rows.

    python -m tests.measure_agreement CUOBJDUMP WHEEL...

For each file with GPU code the ordered lists of archs are compared, cubins and PTX; and both readers' CPU seconds on
the unpacked files. cuobjdump prints no `f` for cubins. Of loose cubins every fiftieth is asked about.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.core.errors import AuditError
from scripts.formats.elf import open_blob, open_elf
from scripts.formats.fatbin import device_code
from scripts.formats.fatbin_types import DeviceCode, Kind
from scripts.formats.gpu_files import START, Form, file_code, form

EVERY = 50


@dataclass
class Row:
    """What was found in one wheel."""

    files: int = 0
    elf: int = 0
    ptx: int = 0
    different: int = 0
    ours: float = 0.0
    theirs: float = 0.0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def read(path: Path, kind: Form, name: str) -> DeviceCode:
    """Read a file as the audit does."""
    if kind is Form.ELF:
        with open_elf(path, name) as elf:
            return device_code(elf)
    with open_blob(path, name) as blob:
        return file_code(blob, kind)


def listed(tool: str, path: Path) -> tuple[list[str], list[str], float]:
    """Return what cuobjdump lists, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([tool, "-lelf", "-lptx", str(path)], check=False, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        re.findall(r"\.sm_(\d+[af]?)\.cubin", done.stdout),
        re.findall(r"\.sm_(\d+[af]?)\.ptx", done.stdout),
        seconds,
    )


def compare(tool: str, path: Path, kind: Form, name: str, row: Row) -> None:
    """Compare both readers on one unpacked file; what differs is printed."""
    started = time.process_time()
    try:
        code = read(path, kind, name)
    except AuditError as error:
        say(f"  {name}: {error.what}: {error.why}")
        return
    row.ours += time.process_time() - started
    # Relocatable code that was linked is not listed by cuobjdump.
    entries = [e for c in code.containers for e in c.entries if not c.relocatable or kind is Form.ARCHIVE]
    if not entries:
        return
    elf, ptx, seconds = listed(tool, path)
    row.theirs += seconds
    row.files += 1
    ours = [entry.label.replace("f", "") for entry in entries if entry.kind is Kind.ELF]
    texts = [entry.label for entry in entries if entry.kind is Kind.PTX]
    row.elf += len(ours)
    row.ptx += len(texts)
    if ours != [label.replace("f", "") for label in elf] or texts != ptx:
        row.different += 1
        say(f"  {name}: {len(ours)} cubins and {len(texts)} PTX, cuobjdump {len(elf)} and {len(ptx)}")


def measure(tool: str, wheel: Path) -> Row:
    """Compare both readers on all files of a wheel."""
    row, cubins = Row(), 0
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        for member in archive.infolist():
            with archive.open(member) as stream:
                kind = form(stream.read(START))
            if kind is None:
                continue
            cubins += member.filename.endswith(".cubin")
            if member.filename.endswith(".cubin") and cubins % EVERY:
                continue
            path = Path(archive.extract(member, folder))
            compare(tool, path, kind, member.filename, row)
            path.unlink()
    return row


def main(arguments: Sequence[str]) -> None:
    """Print a row of the table for each wheel."""
    for wheel in map(Path, arguments[1:]):
        row = measure(arguments[0], wheel)
        size = wheel.stat().st_size / 1e6
        say(
            f"| {'-'.join(wheel.name.split('-')[:2])} ({size:.0f} MB) | {row.files} | {row.elf:,} | {row.ptx:,} "
            f"| {row.different} | {row.ours:.2f} s | {row.theirs:.1f} s |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
