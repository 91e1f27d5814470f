"""A build tree's own copy of the sources: upstream generates files into them, and people look for faults in them."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from scripts.core import manifest
from scripts.core.console import Console
from scripts.core.errors import CompileError, from_os_error
from scripts.core.files import remove_tree
from scripts.core.manifest import Damage

MANIFEST = "sources.manifest"  # in the build tree: what its copy of the sources held
WRITTEN_BY_BUILD = ("vllm/_version.py", "*.egg-info/*")  # upstream's setup.py writes these into its sources


def copy_sources(source: Path, copy: Path) -> None:
    """Make a build tree's own copy of the sources, whole or not at all. Raises CompileError."""
    partial = copy.with_name(".source.partial")
    try:
        remove_tree(partial)
        remove_tree(copy)
        shutil.copytree(source, partial, symlinks=True)
        partial.rename(copy)
        manifest.record(copy, copy.with_name(MANIFEST))
    except OSError as error:
        raise from_os_error(CompileError, error, doing="copying the sources", path=copy) from error
    except shutil.Error as error:
        raise CompileError(f"copying the sources failed: {copy}", why=str(error.args[0][:1])) from error


def mend_sources(source: Path, copy: Path, console: Console) -> None:
    """Put back files of the tree's copy of the sources that were changed since it was made; ninja sees them as new."""
    found = [
        change
        for change in manifest.changes(copy, copy.with_name(MANIFEST))
        if change.damage is not Damage.ADDED and not any(fnmatch(change.path, name) for name in WRITTEN_BY_BUILD)
    ]
    for change in found:
        target = copy / change.path
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / change.path, target, follow_symlinks=False)
    if found:
        console.warn(f"sources in {copy} were damaged and are put back: {manifest.summary(found)}")
        manifest.record(copy, copy.with_name(MANIFEST))
