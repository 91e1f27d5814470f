"""Options that several commands have, and what they mean together with the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.commands.cli import user_path
from scripts.core.cache import Cache, default_cache_dir
from scripts.core.console import Console
from scripts.core.errors import (
    UsageError,
)
from scripts.core.machine import Machine
from scripts.cuda.archs import Arch, check_cuda_can, parse_arch_list
from scripts.downloads.access import Access
from scripts.downloads.mirrors import VARIABLE, parse_mirrors
from scripts.recipe.model import Recipe

if TYPE_CHECKING:
    from scripts.toolchain.installed_torch import InstalledTorch


def open_access(options: argparse.Namespace, console: Console, recipe: Recipe | None = None) -> Access:
    """Return what --cache, --offline, --mirror (or WHEELSMITH_MIRROR, or the recipe) and the environment say.

    Raises UsageError or FetchError.
    """
    own = " ".join(f"{prefix}={target}" for prefix, target in (recipe.mirrors if recipe else {}).items())
    mirrors = parse_mirrors(options.mirror or os.environ.get(VARIABLE) or own)
    return Access(open_cache(options), console, mirrors, options.offline, os.environ)


def choose_archs(recipe: Recipe, text: str | None) -> tuple[Arch, ...]:
    """Return the archs of one --arch option, or the recipe's. Raises UsageError for what its CUDA cannot do."""
    archs = parse_arch_list(text) if text is not None else recipe.archs
    check_cuda_can(archs, recipe.toolchain.cuda)
    return archs


def choose_jobs(option: str | None, environment: Mapping[str, str], machine: Machine) -> int:
    """Return how many units to compile at once at most: --jobs, MAX_JOBS, else the cores. Raises UsageError."""
    for name, text in (("--jobs", option), ("MAX_JOBS", environment.get("MAX_JOBS"))):
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise UsageError(f"{name} is {text!r}", why="it must be a whole number of at least 1", fix=f"{name}=2")
            return int(text)
    return machine.cores


def recipe_argument(text: str) -> str:
    """Return a --recipe argument: a name as it is, a file's path made absolute."""
    return str(user_path(text)) if text.endswith(".toml") else text


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add --cache, for a command that fetches no sources and no packages."""
    parser.add_argument(
        "--cache",
        type=user_path,
        metavar="DIR",
        help="cache directory (default: WHEELSMITH_CACHE, else the platform's cache directory)",
    )
    parser.set_defaults(offline=False, mirror=None)


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Add --cache, --offline and --mirror."""
    add_cache_option(parser)
    parser.add_argument("--offline", action="store_true", help="use only what is in the cache")
    parser.add_argument(
        "--mirror",
        metavar="RULES",
        help="git repositories and Debian's archive from elsewhere: FROM=TO, URL prefixes (default: WHEELSMITH_MIRROR)",
    )


def add_torch_option(parser: argparse.ArgumentParser) -> None:
    """Add --torch."""
    parser.add_argument(
        "--torch",
        default="",
        metavar="PYTHON",
        help='compile against an installed torch: "installed" (the first on PATH), or the interpreter that imports it',
    )


def adopt_torch(options: argparse.Namespace, recipe: Recipe) -> tuple[Recipe, InstalledTorch | None]:
    """Return the recipe for the torch that --torch or the recipe names, and that torch. Raises ToolchainError."""
    if not options.torch and recipe.toolchain.kind != "installed":
        return recipe, None
    from scripts.toolchain.adopt import adopt  # noqa: PLC0415  (only for an installed torch)

    named = options.torch if options.torch in {"", "installed"} else str(user_path(options.torch))
    return adopt(recipe, named, os.environ)


def cache_folder(options: argparse.Namespace) -> Path:
    """Return the cache directory that --cache, WHEELSMITH_CACHE or the platform names; it need not exist."""
    named = os.environ.get("WHEELSMITH_CACHE")
    return options.cache or (user_path(named) if named else default_cache_dir())


def open_cache(options: argparse.Namespace) -> Cache:
    """Open that directory. Raises FetchError."""
    return Cache.open(cache_folder(options))


def add_skip_option(parser: argparse.ArgumentParser) -> None:
    """Add --skip."""
    parser.add_argument(
        "--skip", action="append", default=[], metavar="ID", help="pass a check of doctor over; repeated; in the report"
    )
