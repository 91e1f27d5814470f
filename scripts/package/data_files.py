"""A package's files besides its modules: chat templates, schemas and documents that upstream's own wheel has.

Upstream builds in a clone, where setuptools-scm asks git which files belong to the package. Our sources are no clone;
setuptools would take what setup.py lists and leave out the rest: of 0.15.1 seven chat templates. An sdist answers the
question by its SOURCES.txt, which setuptools reads where no version control answers. So every build gets one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from scripts.core.console import Console


def write_manifest(sources: Path, base: Path, package: str) -> None:
    """Write SOURCES.txt with all files of `sources` to where setuptools looks for it: PACKAGE.egg-info in `base`."""
    folder = base / f"{package}.egg-info"
    folder.mkdir(parents=True)
    (folder / "SOURCES.txt").write_text("".join(f"{name}\n" for name in _files(sources, sources)))


def warn_of_missing(sources: Path, wheel: Path, package: str, console: Console) -> list[str]:
    """Return the files below the package's folder of `sources` that a wheel lacks, and warn of them.

    Upstream's own wheel of 0.15.1 has them all. With the manifest, only upstream's configuration can leave one out.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = [name for name in _files(sources / package, sources) if name not in names]
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        console.warn(f"{len(missing)} files of {package}/ are not in the wheel: {shown}")
    return missing


def _files(folder: Path, root: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, relative to `root`, in order; Python's caches are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(root).as_posix()
