"""Take out of an environment what only compilers need: static archives, torch's headers and CMake files.

Of torch's headers those stay that inductor's kernels for the CPU include: `torch.compile` fails without them where a
graph holds a CPU operation. RECORDs are rewritten, so that they name what is there. `trim.py ENVIRONMENT`
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOTS = ("torch/csrc/inductor/cpp_prefix.h",)
"""What a CPU kernel of inductor includes (torch/_inductor/codegen/cpp_utils.py, cpp_prefix)."""
_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)


def inductor_headers(include: Path) -> set[Path]:
    """Return the headers that inductor's include, directly or not, on any platform."""
    found: set[Path] = set()
    waiting = [include / name for name in ROOTS]
    while waiting:
        header = waiting.pop()
        if header in found or not header.is_file():
            continue
        found.add(header)
        for name in _INCLUDE.findall(header.read_text("utf-8", "replace")):
            waiting += [include / name, (header.parent / name).resolve()]
    return found


def unneeded(site: Path) -> Iterator[Path]:
    """Yield the files of a site-packages folder that nothing needs at run time."""
    yield from site.rglob("*.a")
    include = site / "torch" / "include"
    kept = inductor_headers(include) if include.is_dir() else set()
    for folder in (include, site / "torch" / "share" / "cmake"):
        yield from (path for path in folder.rglob("*") if not path.is_dir() and path not in kept)


def rewrite_record(record: Path, site: Path, removed: set[Path]) -> None:
    """Take the rows of removed files out of a RECORD."""
    rows = list(csv.reader(record.read_text("utf-8").splitlines()))
    left = [row for row in rows if row and site / row[0] not in removed]
    if len(left) < len(rows):
        with record.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(left)


def main(environment: Path) -> None:
    """Trim the environment and say what was taken out."""
    for site in environment.glob("lib/python3*/site-packages"):
        removed = set(unneeded(site))
        size = sum(path.lstat().st_size for path in removed)
        for path in removed:
            path.unlink()
        for folder in sorted({parent for path in removed for parent in path.parents}, reverse=True):
            if site in folder.parents and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if removed:
            for record in site.glob("*.dist-info/RECORD"):
                rewrite_record(record, site, removed)
            sys.stdout.write(f"wheelsmith: {len(removed)} files that only compilers need left out, {size} bytes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
