"""How long a recipe will compile on a machine: its measured units under the scheduler's rules, the rest by estimate."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.compile.schedule import Task, wall_seconds
from scripts.core.machine import RESERVE
from scripts.cuda.archs import Arch
from scripts.recipe.costs import CostBook, cpu_seconds
from scripts.recipe.expected import UNKNOWN_GB, expected_units
from scripts.recipe.model import Recipe


def compile_seconds(recipe: Recipe, archs: Sequence[Arch], book: CostBook, *, jobs: int, memory_gb: float) -> float:
    """Return the seconds of compiling with `jobs` at a time and `memory_gb` free; 0 for a recipe without `cost`.

    At the pace of the machines that measured the units: never less than the longest unit takes.
    """
    units = expected_units(recipe, archs, book)
    other = recipe.cost.unit_memory_gb if recipe.cost else UNKNOWN_GB
    return wall_seconds(
        [Task(name, item.cpu_seconds, item.peak_bytes) for name, item in units.items()],
        cpu_seconds(recipe, archs),
        slots=jobs,
        memory=int(max(0.0, memory_gb - RESERVE) * 1e9),
        other_bytes=int(other * 1e9),
    )
