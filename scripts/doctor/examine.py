"""Run the checks that apply and stop what would fail; what to skip, and a smaller thing that works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from scripts.core.console import Console
from scripts.core.errors import UsageError, nearest
from scripts.doctor.checks import (  # noqa: F401  (registers)
    compiler,
    cuda,
    disk,
    environment,
    installed,
    machine,
    network,
    python,
)
from scripts.doctor.registry import CHECKS, Row, Subject, Verdict, require, run_checks
from scripts.recipe.costs import cpu_seconds
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Recipe

SMALLEST = "quickstart"


def every_check() -> tuple[str, ...]:
    """Return the ids of all checks: those of the modules that this one imports."""
    return tuple(CHECKS)


def read_skips(names: Iterable[str]) -> frozenset[str]:
    """Return the checks to pass over. Raises UsageError for one that there is not."""
    for name in names:
        if name not in CHECKS:
            raise UsageError(
                f"--skip: there is no check {name!r}.{nearest(name, CHECKS)}", fix="nox -s doctor -- --all"
            )
    return frozenset(names)


def examine(subject: Subject, skip: frozenset[str], console: Console) -> tuple[Row, ...]:
    """Run all checks before a build; say the warnings and raise DoctorError for what blocks it."""
    rows = run_checks(subject, skip=skip)
    for row in rows:
        if row.verdict is Verdict.WARNING:
            console.note(f"doctor: {row.measured} [{row.id}]")
    require(rows, subject.recipe)
    return rows


def skipped(rows: Iterable[Row]) -> list[Mapping[str, str]]:
    """Return what the wheel's report says of checks that did not hold a build up: those skipped and those warned of."""
    kept = {Verdict.SKIPPED, Verdict.WARNING}
    return [
        {"id": row.id, "verdict": row.verdict.value, "measured": row.measured} for row in rows if row.verdict in kept
    ]


def blocking(rows: Iterable[Row]) -> list[str]:
    """Return the ids of the checks that block."""
    return [row.id for row in rows if row.verdict is Verdict.BLOCKED]


def _is_smaller(recipe: Recipe, subject: Subject) -> bool:
    """Return whether a recipe has less to compile than the subject; without costs, by components and archs."""
    if recipe.cost is not None and subject.recipe.cost is not None:
        return cpu_seconds(recipe, recipe.archs) < cpu_seconds(subject.recipe, subject.archs)
    size = len(recipe.components), len(recipe.archs)
    return size < (len(subject.recipe.components), len(subject.archs))


def smaller_subject(subject: Subject) -> Subject | None:
    """Return the same machine with the smallest recipe; None when what is asked for is not larger."""
    recipe: Recipe = load_recipe(SMALLEST)
    if subject.recipe.name == recipe.name or not _is_smaller(recipe, subject):
        return None
    return replace(subject, recipe=recipe, archs=recipe.archs, targets=(), python=None, torch=None)
