"""Which wheelsmith this is: its version from pyproject.toml, and the commit of a checkout."""

from __future__ import annotations

import functools
import sys

from scripts.core.paths import ROOT
from scripts.core.process import call

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@functools.cache
def version() -> str:
    """Return wheelsmith's version: `0.2.0`, or `0.2.0.dev0` between releases."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` where tracked files are changed; None outside git."""
    if not (ROOT / ".git").exists():
        return None
    head = call(["git", "-C", ROOT, "rev-parse", "HEAD"], merged=True)
    if head.code:
        return None
    changed = call(["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"], merged=True)
    return head.text.strip() + ("-dirty" if changed.code == 0 and changed.text.strip() else "")
