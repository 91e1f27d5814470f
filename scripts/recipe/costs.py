"""What each compile unit costs: measured core-seconds and memory, and estimates for units that were never measured.

The figures lie with the recipes (recipes/costs/*.json, named by a recipe's `cost.data`) and are entered from builds by
`nox -s costs`. They decide the order of units, how many run at once, the shards and the time that is left; a wrong
figure makes a build slower, never wrong.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import Field, ValidationError

from scripts.core.errors import UsageError
from scripts.core.models import Model
from scripts.cuda.archs import Arch
from scripts.recipe.fitting import kernel_archs
from scripts.recipe.model import Cost, Recipe, UnitGroup

TOOLCHAIN_GB = 5.3  # torch, CUDA wheels and compiler; hard links between uv's cache, environment and CUDA_HOME

# Of the core-seconds of a light unit, how much does not depend on the number of archs: router_gemm.cu of vLLM 0.20.1
# took 52 s for one arch and 71 s for two (parsing headers for the host twice, for the device once per arch).
FIXED_SHARE = 0.64
_COMPONENT = re.compile(r"CMakeFiles/([^/]+)\.dir/")


class Measured(Model):
    """One unit compiled for some number of archs."""

    cpu_seconds: float = Field(ge=0)
    """Core-seconds, user and system."""
    peak_mb: float = Field(ge=0)
    """Peak resident memory of its largest process, MB (10^6 bytes)."""


class CostData(Model):
    """A cost file: measured units."""

    measured: str
    """Where and how, for people."""
    units: dict[str, dict[int, Measured]]
    """By unit (`_C/attention/paged_attention_v1.cu`) and number of archs it was compiled for."""


@dataclass(frozen=True)
class Unit:
    """A compile unit as ninja knows it."""

    object: str
    """Object file, relative to the build folder: ninja's target."""
    source: str
    archs: int = 1
    """How many archs it is compiled for; 1 for host code."""

    @property
    def name(self) -> str:
        """Component and source, the same on every machine: `_C/attention/paged_attention_v1.cu`."""
        return unit_name(self.object, self.source)


@dataclass(frozen=True)
class Estimate:
    """What a unit is expected to take."""

    cpu_seconds: float
    peak_bytes: int


DEFAULT = Estimate(60.0, 3_100_000_000)  # a light unit of vLLM with torch's own headers


def unit_name(object_file: str, source: str) -> str:
    """Return a unit's name from its object and source file: component and source below csrc/."""
    component = _COMPONENT.search(object_file)
    return f"{component[1]}/{short_name(source)}" if component else short_name(source)


def short_name(path: str) -> str:
    """Return a source's path below csrc/, or its last parts."""
    return path.split("/csrc/", 1)[-1] if "/csrc/" in path else "/".join(path.split("/")[-2:])


class CostBook:
    """Estimates of units: measured ones, else by their relatives, else by the recipe's overall figures."""

    def __init__(self, data: CostData | None, fallback: Estimate, *, fallback_per_arch: float = 0.0) -> None:
        self.data = data
        self._fallback, self._fallback_per_arch = fallback, fallback_per_arch
        self._units: Mapping[str, dict[int, Measured]] = data.units if data else {}
        self._estimates: dict[tuple[str, int], Estimate] = {}

    def estimate(self, unit: Unit) -> Estimate:
        """Return what a unit will take."""
        return self.expect(unit.name, unit.archs)

    def expect(self, name: str, archs: int) -> Estimate:
        """Return what the unit of a name (`_C/attention/paged_attention_v1.cu`) will take."""
        key = (name, archs)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(*key)
        return self._estimates[key]

    def _estimate(self, name: str, archs: int) -> Estimate:
        relatives, near = self._relatives(name)
        if not relatives:
            return replace(
                self._fallback, cpu_seconds=self._fallback.cpu_seconds + self._fallback_per_arch * (archs - 1)
            )
        seconds = statistics.median(self._seconds(self._units[relative], archs) for relative in relatives)
        peak = max(item.peak_mb for relative in relatives for item in self._units[relative].values())
        # Units of other folders say little about memory, and too low an estimate is the worse error.
        return Estimate(seconds, max(int(peak * 1e6), 0 if near else self._fallback.peak_bytes))

    def _relatives(self, name: str) -> tuple[list[str], bool]:
        """Return the measured units that tell about a unit, nearest first, and whether they are of its folder."""
        if name in self._units:
            return [name], True
        component, _, path = name.partition("/")
        folder, suffix = path.rpartition("/")[0], Path(path).suffix
        alike = [known for known in self._units if known.endswith(suffix)]
        tiers = (
            [known for known in alike if known.partition("/")[2] == path],  # the same source in another component
            [known for known in alike if known.rpartition("/")[0] == f"{component}/{folder}".rstrip("/")],
            [known for known in alike if known.partition("/")[2].rpartition("/")[0] == folder],
            [known for known in alike if known.startswith(f"{component}/")],
            alike,
        )
        return next(((tier, place < 3) for place, tier in enumerate(tiers) if tier), ([], False))

    def _seconds(self, measured: Mapping[int, Measured], archs: int) -> float:
        """Return core-seconds for a number of archs: measured, on the line through two, or scaled from one."""
        if archs in measured:
            return measured[archs].cpu_seconds
        near = sorted(measured, key=lambda count: abs(count - archs))[:2]
        first = measured[near[0]].cpu_seconds
        if len(near) == 2:
            slope = (measured[near[1]].cpu_seconds - first) / (near[1] - near[0])
            return max(0.0, first + max(0.0, slope) * (archs - near[0]))
        fixed = min(first, self._fixed_seconds)
        return fixed + (first - fixed) * archs / near[0]

    @cached_property
    def _fixed_seconds(self) -> float:
        single = [counts[1].cpu_seconds for name, counts in self._units.items() if 1 in counts and name.endswith(".cu")]
        return FIXED_SHARE * min(single, default=0.0)


def cost_file(recipe: Recipe) -> Path | None:
    """Return the recipe's cost file: beside the recipe, else one in recipes/; None when it names none."""
    if not recipe.cost or not recipe.cost.data:
        return None
    return recipe.file(recipe.cost.data)


def read_costs(path: Path) -> CostData | None:
    """Read a cost file; None when there is none yet. Raises UsageError for one that is not right."""
    try:
        return CostData.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        why = str(error).splitlines()
        raise UsageError(
            f"the cost file {path} cannot be read",
            why="; ".join(why[:4]),
            fix="take it from version control again, or delete it: nox -s costs makes it",
        ) from error


def cost_book(recipe: Recipe, own: CostData | None = None) -> CostBook:
    """Return the estimates for a recipe's units; `own`: what earlier builds on this machine took.

    Raises UsageError for a cost file that is not right.
    """
    path = cost_file(recipe)
    data = _with_own(read_costs(path) if path else None, own)
    cost = recipe.cost
    if not cost:
        return CostBook(data, DEFAULT)
    fallback = Estimate(cost.cpu_seconds / cost.units, int(cost.unit_memory_gb * 1e9))
    per_arch = cost.cpu_seconds_per_arch + cost.native_cpu_seconds
    return CostBook(data, fallback, fallback_per_arch=per_arch / cost.units)


def _with_own(data: CostData | None, own: CostData | None) -> CostData | None:
    """Return the data with what only this machine has measured, and the higher peak of what both have.

    Too low an estimate is the worse error. The seconds stay the file's: their ratio to real ones is one machine's pace.
    """
    if not data or not own:
        return data or own
    units = {name: dict(counts) for name, counts in data.units.items()}
    for name, counts in own.units.items():
        known = units.setdefault(name, {})
        for archs, item in counts.items():
            old = known.get(archs, item)
            known[archs] = old.model_copy(update={"peak_mb": max(old.peak_mb, item.peak_mb)})
    return CostData(measured=data.measured, units=units)


def costs_json(data: CostData) -> str:
    """Return a cost file's text: one line per unit, sorted, so that a change is seen in a diff."""
    rows = [
        f"    {json.dumps(name)}: {json.dumps({str(n): counts[n].model_dump() for n in sorted(counts)})}"
        for name, counts in sorted(data.units.items())
    ]
    return f'{{\n  "measured": {json.dumps(data.measured)},\n  "units": {{\n' + ",\n".join(rows) + "\n  }\n}\n"


def cpu_seconds(recipe: Recipe, archs: Sequence[Arch]) -> float:
    """Return the core-seconds to expect of a recipe for a list of archs; 0 for one without `cost`."""
    cost = recipe.cost
    if cost is None:
        return 0.0
    special = sum(group.cpu_seconds for group in groups_for(recipe, cost, archs))
    return cost.cpu_seconds + cost.cpu_seconds_per_arch * (len(archs) - 1) + special + native_seconds(recipe, archs)


def native_seconds(recipe: Recipe, archs: Sequence[Arch]) -> float:
    """Return the core-seconds of these that `native = false` would save: none where native code only takes a place.

    For 9.0 alone Marlin is compiled once either way, for 8.0 or for 9.0.
    """
    if not recipe.cost:
        return 0.0
    ours, theirs = (kernel_archs(item, archs) for item in (recipe, recipe.model_copy(update={"native": False})))
    return recipe.cost.native_cpu_seconds * max((len(ours[name]) - len(theirs[name]) for name in ours), default=0)


def unit_count(recipe: Recipe, cost: Cost, archs: Sequence[Arch]) -> int:
    """Return how many units a build of the recipe for a list of archs has."""
    return cost.units + sum(group.units for group in groups_for(recipe, cost, archs))


def groups_for(recipe: Recipe, cost: Cost, archs: Sequence[Arch]) -> list[UnitGroup]:
    """Return the groups of units that some arch of the list asks for, of components that the recipe has."""
    wanted = {arch.number for arch in archs}
    asked = [group for group in cost.groups if not group.archs or wanted & {arch.number for arch in group.archs}]
    return [group for group in asked if group.component is None or group.component in recipe.components]
