"""Which packages of a lock share a layer of the image: runtime/requirements/layers.toml, held against a lock."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.utils import canonicalize_name

from scripts.core.errors import ImageError
from scripts.core.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = ROOT / "runtime" / "requirements" / "layers.toml"
LARGEST = 4_000_000_000
"""Bytes that a layer may hold."""
_ENTRY = re.compile(r"^(?=[A-Za-z0-9])", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class LayerRule:
    """A row of layers.toml."""

    name: str
    packages: tuple[str, ...]

    def takes(self, package: str) -> bool:
        """Whether the layer names a package."""
        kept_out = any(fnmatchcase(package, item[1:]) for item in self.packages if item.startswith("!"))
        return not kept_out and any(fnmatchcase(package, item) for item in self.packages)


def layer_rules(file: Path = FILE) -> tuple[LayerRule, ...]:
    """Return the layers of the requirements, those that change most rarely first."""
    return tuple(LayerRule(row["name"], tuple(row["packages"])) for row in tomllib.loads(file.read_text())["layer"])


def lock_entries(text: str) -> dict[str, str]:
    """Return a lock's entries, each with its hashes, by package name in normal form; in the lock's order."""
    entries = {}
    for part in _ENTRY.split(text)[1:]:
        found = _NAME.match(part)
        if found:
            entries[str(canonicalize_name(found[0]))] = part.rstrip() + "\n"
    return entries


def lock_hashes(text: str) -> dict[str, list[str]]:
    """Return the sha256 that a lock allows for each package's files."""
    return {name: _HASH.findall(entry) for name, entry in lock_entries(text).items()}


def split_lock(text: str, rules: Sequence[LayerRule]) -> list[str]:
    """Return a lock as one per layer; each package is in exactly one. Raises ImageError when no layer takes one."""
    parts: list[list[str]] = [[] for _ in rules]
    for name, entry in lock_entries(text).items():
        index = next((i for i, rule in enumerate(rules) if rule.takes(name)), None)
        if index is None:
            raise ImageError(f"no layer takes {name}", fix=f'add it, or a last layer for "*", to {FILE.name}')
        parts[index].append(entry)
    return ["".join(part) for part in parts]
