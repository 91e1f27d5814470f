"""Command patches: does a recipe's series fit a real source tree? Nothing is built and no tree is changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from scripts.core.errors import PatchError
from scripts.recipe.model import Recipe
from scripts.sources.patch import HunkProblem, Patch, apply_to, load_patches


class PatchVerdict(str, Enum):
    """What a patch does to a tree."""

    APPLIES = "applies"
    UPSTREAM = "already upstream"
    NOTHING = "applies to nothing"
    CONFLICT = "conflicts"
    UNNEEDED = "not needed"


@dataclass(frozen=True)
class PatchFinding:
    """One patch against one tree."""

    patch: str
    verdict: PatchVerdict
    detail: str = ""
    """Where it conflicts, or why it is not needed."""


def check_series(tree: Path, patches: Sequence[Patch]) -> tuple[PatchFinding, ...]:
    """Return what each patch does after those before it; one that does not fit is left out for the next ones."""
    contents: dict[str, list[str] | None] = {}
    findings = []
    for patch in patches:
        after = {name: None if lines is None else list(lines) for name, lines in contents.items()}
        problems = apply_to(tree, patch, after)
        if not problems:
            contents = after
        findings.append(_finding(patch, problems))
    return tuple(findings)


def _finding(patch: Patch, problems: Sequence[HunkProblem]) -> PatchFinding:
    if not problems:
        return PatchFinding(patch.name, PatchVerdict.APPLIES)
    shown = "; ".join(f"{problem.file}:{problem.line}: {problem.why}" for problem in problems)
    if all(problem.reversed_applies for problem in problems):
        return PatchFinding(patch.name, PatchVerdict.UPSTREAM, shown)
    if all(problem.why == "there is no such file" for problem in problems):
        return PatchFinding(patch.name, PatchVerdict.NOTHING, shown)
    return PatchFinding(patch.name, PatchVerdict.CONFLICT, shown)


def recipe_patches(recipe: Recipe) -> tuple[tuple[Patch, ...], tuple[PatchFinding, ...]]:
    """Return the patches that a recipe's build environment needs, and findings for those it does not need.

    A patch whose header says `When: setuptools<77` is needed only when the lock file pins such a version.
    """
    locked = locked_versions(recipe.lock_file)
    needed, others = [], []
    for patch in load_patches(recipe):
        condition = _condition(patch)
        version = locked.get(canonicalize_name(condition.name)) if condition else None
        if condition is None or (version and condition.specifier.contains(version, prereleases=True)):
            needed.append(patch)
        else:
            has = f"{condition.name} is {version}" if version else f"there is no {condition.name}"
            others.append(
                PatchFinding(patch.name, PatchVerdict.UNNEEDED, f"for {condition}; in the build environment {has}")
            )
    return tuple(needed), tuple(others)


def _condition(patch: Patch) -> Requirement | None:
    match = re.search(r"^When: (.+)$", patch.text.split("\n--- ", 1)[0], re.MULTILINE)
    if match is None:
        return None
    try:
        return Requirement(match[1])
    except InvalidRequirement as error:
        raise PatchError(
            f"patch {patch.name!r}: When: {match[1]!r} is not a requirement", fix="write it as setuptools<77"
        ) from error


def locked_versions(lock: Path) -> dict[str, str]:
    """Return the versions that a lock file pins, by name (of several, the last)."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}
