"""Which measured units a recipe compiles for some archs, and how much memory the largest of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.cuda.archs import Arch
from scripts.recipe.costs import CostBook, Estimate
from scripts.recipe.families import family_of
from scripts.recipe.fitting import kernel_archs
from scripts.recipe.model import Component, Recipe

UNKNOWN_GB = 4.0  # of the largest unit, where the recipe has no figure


@dataclass(frozen=True)
class Need:
    """The memory that the largest unit takes."""

    bytes: int
    unit: str = ""
    """Its name; "" where its memory is an estimate."""

    @property
    def gb(self) -> float:
        """GB of 10^9 bytes."""
        return self.bytes / 1e9

    @property
    def sentence(self) -> str:
        """The need in words."""
        about, how = ("", f"{self.unit.rpartition('/')[2]}, measured") if self.unit else ("about ", "estimated")
        return f"the largest unit takes {about}{self.gb:.1f} GB of memory ({how})"


def expected_units(recipe: Recipe, archs: Sequence[Arch], book: CostBook) -> dict[str, Estimate]:
    """Return, by name, what each measured unit takes that the recipe's components have for these archs.

    Units of kernel families that upstream does not compile for any of `archs` are not among them (`families.py`). Those
    that nobody has measured cannot be.
    """
    compiled = kernel_archs(recipe, archs)
    found = {}
    for name, counts in (book.data.units if book.data else {}).items():
        component, family = name.partition("/")[0], family_of(name)
        if component not in {item.value for item in recipe.components}:
            continue
        named = recipe.families.get(Component(component), {}).get(family)
        gets = archs if named is None else compiled.get(family, ())
        if gets:
            more = len(gets) - 1 if name.endswith(".cu") else 0
            found[name] = book.expect(name, min(counts) + more)
    return found


def largest_unit(recipe: Recipe, archs: Sequence[Arch], book: CostBook) -> Need:
    """Return the need of the largest unit that the recipe compiles for these archs: measured, else estimated.

    A component of which no unit was measured is taken to need `cost.unit_memory_gb`.
    """
    units = expected_units(recipe, archs, book)
    estimate = Need(int((recipe.cost.unit_memory_gb if recipe.cost else UNKNOWN_GB) * 1e9))
    name = max(units, key=lambda known: units[known].peak_bytes, default="")
    if not name:
        return estimate
    measured = Need(units[name].peak_bytes, name)
    seen = {known.partition("/")[0] for known in units}
    unseen = [item for item in recipe.components if item.has_device_code and item.value not in seen]
    return max(measured, estimate, key=lambda need: need.bytes) if unseen else measured
