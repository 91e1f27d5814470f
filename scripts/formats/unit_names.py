"""Which translation unit each container of GPU code is from, after the symbols that told it are stripped.

A wheel's `.dist-info/units.json` lists the units of each shared object in the order of its containers; slimming keeps
that order. The audit reads it, so that it can name what a GPU cannot run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from scripts.core.models import Model
from scripts.formats.fatbin_types import DeviceCode, Kind
from scripts.formats.wheel import WheelFile

UNITS = "units.json"  # in .dist-info


class UnitNames(Model):
    """The file `.dist-info/units.json`."""

    schema_version: Literal[1] = 1
    units: dict[str, list[str]]
    """By shared object: the source file of each container, "" where it is not known."""


@dataclass(frozen=True)
class DeviceFacts:
    """The GPU code of one shared object: of which units, and how large per arch."""

    units: list[str]
    bytes_per_arch: dict[str, int]
    """Stored bytes by what it is for: `{"sm_90": 812344, "compute_90": 1200}`."""


def encode(units: Mapping[str, Sequence[str]]) -> bytes:
    """Return the content of units.json: the same names give the same bytes."""
    names = UnitNames(units={member: list(units[member]) for member in sorted(units)})
    return (names.model_dump_json(indent=1) + "\n").encode()


def read_units_of(wheel: WheelFile) -> dict[str, list[str]]:
    """Return what a wheel's units.json says; {} when it has none. Raises AuditError when it is damaged."""
    data = wheel.read(f"{wheel.dist_info}/{UNITS}")
    if data is None:
        return {}
    try:
        return UnitNames.model_validate_json(data).units
    except ValidationError as error:
        raise wheel.error(f"{UNITS} cannot be read", str(error.errors()[0]["msg"])) from error


def with_units(code: DeviceCode, units: Sequence[str]) -> DeviceCode:
    """Return GPU code whose containers have the recorded names where their symbols are stripped."""
    if len(units) != len(code.containers):
        return code
    named = (replace(item, unit=item.unit or name) for item, name in zip(code.containers, units, strict=True))
    return replace(code, containers=tuple(named))


def device_facts(codes: Mapping[str, DeviceCode]) -> dict[str, DeviceFacts]:
    """Return the facts about the GPU code of each shared object."""
    return {member: DeviceFacts(_units(code), _bytes_per_arch(code)) for member, code in codes.items()}


def _units(code: DeviceCode) -> list[str]:
    return [container.unit for container in code.containers]


def _bytes_per_arch(code: DeviceCode) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    order = sorted(code.entries, key=lambda entry: (entry.kind is not Kind.ELF, entry.arch, entry.suffix))
    for entry in order:
        sizes[entry.target] += entry.end - entry.offset
    return dict(sizes)
