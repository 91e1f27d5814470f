"""What doctor's checks are given in tests: a machine on which nothing is wrong, to be changed piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.machine import Machine
from scripts.doctor import examine as doctor_examine
from scripts.doctor.registry import CHECKS, Row, Subject, Verdict, run_one
from scripts.downloads.indexes import Indexes
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Recipe
from tests.accesses import make_access

assert doctor_examine.read_skips(CHECKS) == frozenset(CHECKS)


def make_subject(folder: Path, recipe: Recipe | str = "quickstart", **changes: Any) -> Subject:
    """Return a healthy machine with 64 GB, a cache below `folder` and no variables; keyword arguments change it."""
    known = load_recipe(recipe) if isinstance(recipe, str) else recipe
    (folder / "tmp").mkdir(exist_ok=True)
    healthy: dict[str, Any] = {
        "recipe": known,
        "archs": known.archs,
        "jobs": 2,
        "machine": Machine(8, 64.0),
        "wheelhouse": folder / "wheelhouse",
    }
    access = changes.pop("access", None) or make_access(Cache.open(folder / "cache"), Console())
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(folder / "tmp"), "LANG": "C.UTF-8"}
    environment |= changes.pop("environment", {})
    indexes = changes.pop("indexes", Indexes(no_index=True))
    access = replace(access, environment=environment, given_indexes=indexes)
    return Subject(**{**healthy, **changes, "access": access})


def answer(name: str, subject: Subject) -> Row:
    """Run one check."""
    return run_one(CHECKS[name], subject)


def verdicts(rows: Iterable[Row], verdict: Verdict) -> list[str]:
    """Return the ids with a verdict."""
    return [row.id for row in rows if row.verdict is verdict]
