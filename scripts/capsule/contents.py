"""What goes into a capsule: wheelsmith itself, its tools, the recipe with its sources, and packages to build with."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.markers import Marker

from scripts.core.errors import FetchError
from scripts.core.paths import RECIPES, ROOT
from scripts.core.process import Command, call
from scripts.downloads.access import Access
from scripts.recipe.model import Recipe
from scripts.sources.bundle import write_bundle
from scripts.sources.fetch import fetch_for_bundle, fetch_recipe
from scripts.toolchain.layered import tools_lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = (
    "noxfile.py",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "scripts",
    "recipes",
    "patches",
    "requirements",
    "docs",
)
Entry = tuple[str, Path]
"""A member's name, and the file that it is made of."""


def collect(recipe: Recipe, parts: Sequence[str], python: str, folder: Path, access: Access) -> list[Entry]:
    """Fetch all that a capsule of `recipe` needs into `folder` and the cache; return its members in order.

    `parts`: "torch", "cuda" or both, which are left out otherwise. `python`: the version there, such as "3.12". Raises
    FetchError.
    """
    fetch_recipe(recipe, access)
    bundle = folder / "sources.tar"
    write_bundle(
        recipe,
        bundle,
        access=replace(access, offline=True),
        archive_of=lambda item: fetch_for_bundle(item, access, recipe.folder),
    )
    wheels = folder / "wheels"
    wheels.mkdir()
    text = recipe.lock_file.read_text(encoding="utf-8")
    lock = folder / "environment.txt"
    lock.write_text(text if "torch" in parts else tools_lock(text, cuda="cuda" in parts))
    for requirements in (ROOT / "requirements" / "tools.txt", lock):
        access.console.stage("capsule", f"packages of {requirements.name}")
        download_wheels(requirements, wheels, python, access)
    members = [("sources.tar", bundle), *_project(), *_recipe_files(recipe)]
    members += [(f"wheels/{path.name}", path) for path in wheels.iterdir()]
    return sorted(members)


def download_wheels(requirements: Path, target: Path, python: str, access: Access) -> None:
    """Download the wheels that a hash-locked file names for a Python version and this machine. Raises FetchError."""
    pinned = target.with_name("pinned.txt")
    pinned.write_text(lock_for(requirements.read_text(encoding="utf-8"), python))
    options = ["--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    options += ["--python-version", python]
    command: Command = [sys.executable, "-m", "pip", "download", *options, "-d", target, "-r", pinned]
    done = call(command, environment=access.environment, limit=None, cwd=access.cache.root)
    if done.code:
        lines = done.error_text.strip().splitlines()
        raise FetchError(
            f"the packages of {requirements.name} could not be downloaded",
            why=next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else ""),
            fix=f"check the network and PIP_INDEX_URL; every package must have a wheel for Python {python}",
            detail="\n".join(lines[-8:]),
        )


def lock_for(text: str, python: str) -> str:
    """Return what of a lock file applies to a Python version on this machine, without markers.

    pip would judge markers by the Python that it runs on, whatever `--python-version` says. What only some of a minor
    version's releases need is kept.
    """
    releases = [{"python_version": python, "python_full_version": f"{python}.{patch}"} for patch in (0, 99)]
    kept = []
    for block in re.split(r"\n(?=\S)", text):
        first, line_end, rest = block.partition("\n")
        requirement, _, marker = first.removesuffix("\\").partition(" ; ")
        if not marker or any(Marker(marker.strip()).evaluate(release) for release in releases):
            kept.append(f"{requirement.rstrip()} \\{line_end}{rest}" if marker else block)
    return "\n".join(kept)


def _project() -> Iterator[Entry]:
    """Yield wheelsmith's own files."""
    for name in PROJECT:
        top = ROOT / name
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                yield f"project/{path.relative_to(ROOT)}", path


def _recipe_files(recipe: Recipe) -> Iterator[Entry]:
    """Yield a recipe of the user's own: its file, what it extends beside it, and the files that it names there."""
    if recipe.folder == RECIPES:
        return
    name: object = recipe.name
    while isinstance(name, str) and (path := recipe.folder / f"{name}.toml").is_file():
        yield f"recipe/{path.name}", path
        parent = tomllib.loads(path.read_text(encoding="utf-8")).get("extends")
        name = parent if parent != name else None
    named = [recipe.toolchain.lock, *recipe.patches, *([recipe.cost.data] if recipe.cost and recipe.cost.data else [])]
    for item in named:
        if (path := recipe.folder / item).is_file():
            yield f"recipe/{item}", path
