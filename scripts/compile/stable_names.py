"""What makes two builds in different directories give the same bytes: names and dates that do not depend on the place.

Compilers write paths into objects (`__FILE__` of every TORCH_CHECK), and nvcc derives the names of everything in an
anonymous namespace, kernels included, from the path of the source. Where fixed_paths.py cannot give directories the
same paths everywhere, the launcher tells compilers the same names for them; the objects are the same.
docs/reproducible.md has what was measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from scripts.compile.fixed_paths import ROOT
from scripts.compile.standalone.launcher import MAPS
from scripts.core.errors import UsageError

FIRST_DATE = 315532800  # 1980-01-01, before which zip files cannot date anything
LAST_DATE = 4354819199  # 2107-12-31, after which neither
LINKER = "-Wl,--build-id=none"  # a build-id is a digest over symbols that are stripped later and differ


def map_names(binds: Mapping[str, Path]) -> dict[str, str]:
    """Return the launcher's variable: compilers are to write the name below fixed_paths.ROOT instead of each directory.

    Where they run under these names already (fixed_paths.py), `binds` is empty: then units get their seeds only.
    """
    return {MAPS: json.dumps({str(path): str(ROOT / name) for name, path in binds.items()})}


def source_date(environment: Mapping[str, str]) -> int:
    """Return the date of everything in the wheel, seconds since 1970: SOURCE_DATE_EPOCH, else 1980-01-01.

    Raises UsageError for what a zip file cannot date.
    """
    given = environment.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return FIRST_DATE
    if not given.isascii() or not given.isdigit() or not FIRST_DATE <= int(given) <= LAST_DATE:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {given!r}",
            why="it must be seconds since 1970, for a date from 1980 to 2107: wheels are zip files",
            fix="SOURCE_DATE_EPOCH=$(git log -1 --format=%ct), or unset it",
        )
    return int(given)


def zip_date(epoch: int) -> tuple[int, int, int, int, int, int]:
    """Return seconds since 1970 as zip files have dates: UTC, to 2 seconds."""
    year, month, day, hour, minute, second = time.gmtime(epoch)[:6]
    return year, month, day, hour, minute, second // 2 * 2
