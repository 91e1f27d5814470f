"""Rules about libraries and kernels that their bytes do not tell: what may be missing, and what is known to go wrong.

`rules.toml` has them. An `optional` library may have nothing for some GPUs: that is a warning with what is lost.
A recipe may name more of them (`optional_libraries`).
A `hazard` is GPU code that is known to misbehave on some GPUs, or kernels that every model calls and a GPU lacks. It is
recognised by the library's name, by the source file of a container (or the name of a kernel where symbols are stripped)
and by how the GPU gets at it. Each names the versions it was seen in and its source; whether it applies is decided by
the code that is inside.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from scripts.audit.coverage import How, Library, Taken, taken, unit_name
from scripts.audit.models import HazardFound, Level
from scripts.core.models import Model
from scripts.cuda.drivers import Target, numbers, release_for_ptx
from scripts.recipe.model import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("rules.toml")
MAX_UNITS = 50


class _Rule(Model):
    id: str
    library: str
    """Regular expression: the whole stem of the shared object's name."""
    from_: str = "0.0"
    """First compute capability it is about."""
    below: str = "99.0"
    """First compute capability it is not about any more."""
    versions: str
    """Where it was seen."""
    source: str

    def about(self, library: Library, cc: tuple[int, int]) -> bool:
        """Whether the rule is about a library on a GPU."""
        return bool(re.fullmatch(self.library, library.stem)) and numbers(self.from_) <= cc < numbers(self.below)


class Optional(_Rule):
    """A library that may have nothing for some GPUs."""

    lost: str
    """What is missing then."""
    archs: tuple[tuple[int, int], ...] = ()
    """The compute capabilities; empty: all of the range."""
    member: str = ""
    """Path in vLLM's wheel up to the ABI suffix, where the stem of the name alone is not enough."""

    def about(self, library: Library, cc: tuple[int, int]) -> bool:
        """Whether the rule is about a library on a GPU."""
        here = not self.member or not library.member.startswith("vllm/")
        here = here or library.member.partition(".")[0] == self.member
        return here and super().about(library, cc) and (not self.archs or cc in self.archs)


class Hazard(_Rule):
    """GPU code that is known to misbehave."""

    unit: str
    """Regular expression: somewhere in the source file's name."""
    kernel: str
    """Regular expression: somewhere in a kernel's mangled name, where the source file is not known."""
    how: Literal["jit", "any", "missing"]
    """How the GPU gets at it; `any` needs code, `missing` is that there is none."""
    ptx: str = ""
    """With `jit`: of PTX for this arch only."""
    newer_than_driver: bool = False
    """With `jit`: if the driver is older than the PTX."""
    level: Level
    text: str
    remedy: str

    def applies(self, item: Taken, target: Target) -> bool:
        """Whether what a GPU takes from a container is the hazard."""
        if item.container.empty or not re.search(f"{self.unit}|{self.kernel}", item.container.unit):
            return False
        if item.how is How.MISSING or item.entry is None:
            return self.how == "missing"
        if self.how == "any":
            return True
        late = bool(target.cuda) and numbers(release_for_ptx(item.entry.version).cuda) > numbers(target.cuda)
        wanted = not self.ptx or item.entry.label == self.ptx
        return item.how is How.JIT and wanted and (late or not self.newer_than_driver)


@cache
def _rules() -> tuple[tuple[Optional, ...], tuple[Hazard, ...]]:
    data = tomllib.loads(FILE.read_text())
    rows = {name: [{"from_" if key == "from" else key: row[key] for key in row} for row in data[name]] for name in data}
    return (
        tuple(Optional.model_validate(row) for row in rows["optional"]),
        tuple(Hazard.model_validate(row) for row in rows["hazard"]),
    )


def optionals() -> tuple[Optional, ...]:
    """Return the rules about libraries that may have nothing for a GPU."""
    return _rules()[0]


def hazards() -> tuple[Hazard, ...]:
    """Return the rules about code that misbehaves."""
    return _rules()[1]


def wants_kernel_names(stem: str) -> bool:
    """Whether some rule needs to know the kernels of a library whose units are not known."""
    return any(re.fullmatch(rule.library, stem) for rule in hazards())


def recipe_optionals(recipe: Recipe | None) -> tuple[Optional, ...]:
    """Return a recipe's own rules about libraries that may have nothing for a GPU."""
    if recipe is None:
        return ()
    return tuple(
        Optional(
            id=f"{recipe.name}: {component.value}",
            library=re.escape(component.member.rpartition("/")[2]),
            member=component.member,
            archs=tuple((arch.major, arch.minor) for arch in item.archs),
            lost=item.lost,
            versions=recipe.package.version,
            source=f"recipe {recipe.name}",
        )
        for component, item in recipe.optional_libraries.items()
    )


def optional_for(library: Library, cc: tuple[int, int], more: Iterable[Optional] = ()) -> Optional | None:
    """Return the rule that lets a library have nothing for a GPU; `more` are a recipe's, which come first."""
    return next((rule for rule in (*more, *optionals()) if rule.about(library, cc)), None)


def found_hazards(target: Target, libraries: Sequence[Library]) -> Iterator[HazardFound]:
    """Yield the hazards that a target would run."""
    cc = (target.arch.major, target.arch.minor)
    for rule in hazards():
        for library in libraries:
            if not rule.about(library, cc):
                continue
            units = [unit_name(item.container) for item in taken(library, cc) if rule.applies(item, target)]
            if units:
                yield HazardFound(
                    id=rule.id,
                    level=rule.level,
                    component=library.member,
                    containers=len(units),
                    units=units[:MAX_UNITS],
                    text=rule.text,
                    remedy=rule.remedy,
                    versions=rule.versions,
                    source=rule.source,
                )
