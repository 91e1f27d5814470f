"""Which recipe a wheel was built by, and which GPUs and drivers it is judged for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

from scripts.audit.subject import AuditSubject
from scripts.core.paths import DEFAULT_RECIPE
from scripts.cuda.archs import Arch, parse_arch
from scripts.cuda.drivers import Target, default_targets, parse_target
from scripts.cuda.labels import cuda_label
from scripts.formats.wheel import wheel_name
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.model import Recipe

_STANDARD = re.compile(r"cu\d+|sm\d+[af]?(ptx)?")


def matching_recipe(path: Path) -> Recipe | None:
    """Return the recipe a wheel was made from, judged by name, version and label; None for others' wheels."""
    version = _version(path)
    if version is None:
        return None
    local = (version.local or "").split(".")
    recipes = [load_recipe(name) for name in recipe_names()]
    same = [
        recipe
        for recipe in recipes
        if path.name.startswith(f"{recipe.package.name}-") and version.public == recipe.package.version
    ]
    if version.local is None and same:  # upstream's own wheel: nothing less than the fullest recipe may be inside
        return max(same, key=lambda recipe: len(recipe.components))
    notes = ".".join(part for part in local if not _STANDARD.fullmatch(part))
    return next((r for r in same if r.package.label == notes and cuda_label(r.toolchain.cuda) in local), None)


def _version(path: Path) -> Version | None:
    if path.suffix != ".whl":
        return None
    try:
        return Version(wheel_name(path).version)
    except InvalidVersion:
        return None


def label_archs(path: Path) -> tuple[Arch, ...]:
    """Return the archs that a wheel's version label names: 9.0 and 12.0 for `0.20.1+cu130.sm90.sm120`."""
    version = _version(path)
    parts = (version.local or "").split(".") if version else []
    return tuple(parse_arch(part.removesuffix("ptx")) for part in parts if re.fullmatch(r"sm\d+[af]?(ptx)?", part))


def targets_for(
    recipe: Recipe | None, archs: Sequence[Arch]
) -> Sequence[Target] | Callable[[AuditSubject], list[Target]]:
    """Return the targets when none are given: the recipe's, else the default recipe's archs, else what is inside.

    The driver is that of the CUDA the wheel was compiled with: the recipe's toolchain, else what its code tells.
    """
    if recipe is not None:
        return default_targets(archs or recipe.archs, recipe.toolchain.cuda)
    if DEFAULT_RECIPE in recipe_names() and not archs:
        default = load_recipe(DEFAULT_RECIPE)
        return lambda subject: list(default_targets(default.archs, subject.cuda() or default.toolchain.cuda))
    return lambda subject: [parse_target(arch.number) for arch in (archs or subject.archs())]
