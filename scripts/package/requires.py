"""What a wheel that was compiled against an installed torch asks for: that torch, written into its METADATA."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from scripts.audit.torch_abi import Abi, TorchAbi, torch_abi
from scripts.formats.dynamic import undefined_symbols
from scripts.formats.elf import open_elf
from scripts.formats.wheel import WheelFile, open_wheel
from scripts.recipe.model import Recipe
from scripts.recipe.torch_pin import torch_requirement

BESIDE = {"torchvision", "torchaudio"}  # released for one torch each
_TARGET = re.compile(r"TORCH_TARGET_VERSION=0x([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_FIELD = re.compile(r"Requires-Dist:\s*(.*)")


def wanted_torch(wheel: Path, recipe: Recipe, source: Path) -> str:
    """Return the specifier of torch for a wheel: its exact version, a range when all of it has the stable ABI.

    The range begins where the functions that it uses are all there, and not before the torch that the source names as
    its target (`TORCH_TARGET_VERSION` in CMakeLists.txt).
    """
    with open_wheel(wheel) as opened:
        abis = [_abi(opened, index) for index in range(len(opened.shared_objects))]
    since = [_numbers(item.since) for item in abis if item.abi is Abi.STABLE]
    if not since or any(item.abi is Abi.PINNED for item in abis):
        return torch_requirement(recipe.torch.version)
    text = (source / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
    targets = [(int(major, 16), int(minor, 16)) for major, minor in _TARGET.findall(text)]
    major, minor = max([*since, *targets])
    return torch_requirement(recipe.torch.version, stable_since=f"{major}.{minor}")


def _abi(wheel: WheelFile, index: int) -> TorchAbi:
    member = wheel.shared_objects[index]
    with wheel.unpacked(member) as (path, _), open_elf(path, member.filename) as elf:
        return torch_abi(undefined_symbols(elf))


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def with_torch(metadata: bytes, wanted: str, *, another: bool) -> bytes:
    """Return METADATA that requires `wanted` of torch, in place of what upstream pins.

    `another`: it is not the torch that upstream pins; then torchvision and torchaudio, each release of which wants one
    torch, are asked for in any version.
    """
    head, blank, body = metadata.decode("utf-8").partition("\n\n")
    lines = []
    for line in head.split("\n"):
        match = _FIELD.fullmatch(line)
        try:
            item = Requirement(match[1]) if match else None
        except InvalidRequirement:
            item = None
        name = canonicalize_name(item.name) if item else ""
        if item and name == "torch":
            item.specifier = SpecifierSet(wanted)
        elif item and name in BESIDE and another:
            item.specifier = SpecifierSet()
        else:
            item = None
        lines.append(f"Requires-Dist: {item}" if item else line)
    return (("\n".join(lines)) + blank + body).encode("utf-8")
