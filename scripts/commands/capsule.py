"""nox -s capsule: everything an offline machine needs for a recipe, in one file or in parts. See docs/capsule.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from scripts.capsule.contents import collect
from scripts.capsule.objects import give_objects, take_objects
from scripts.capsule.write import SCRIPT, parse_size, write_capsule
from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_options, choose_archs, open_access, open_cache, recipe_argument
from scripts.core.console import Console, human_bytes
from scripts.core.errors import ToolchainError, UsageError, nearest
from scripts.core.paths import DEFAULT_RECIPE, RECIPES
from scripts.cuda.archs import arch_list
from scripts.recipe.files import load_recipe
from scripts.toolchain.provide import find_host_compiler

PARTS = ("torch", "cuda")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
HERE = ".".join(map(str, sys.version_info[:2]))


def parse_parts(text: str) -> tuple[str, ...]:
    """Read `torch,cuda`. Raises UsageError."""
    names = tuple(sorted({name.strip() for name in text.split(",") if name.strip()}))
    for name in names:
        if name not in PARTS:
            raise UsageError(f"--with: there is no part {name!r}.{nearest(name, PARTS)}", fix="--with torch,cuda")
    return names


def main(arguments: Sequence[str], console: Console) -> int:
    """Write a capsule, or pack or take in objects."""
    parser = Parser("capsule", "Pack all that an offline machine needs to build a recipe, or take in what it compiled.")
    parser.add_argument("out", nargs="?", type=user_path, metavar="OUT", help="the folder of the capsule")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"name of a recipe (default {DEFAULT_RECIPE})")
    parser.add_argument("--arch", metavar="LIST", help="archs to build for there (default: the recipe's)")
    parser.add_argument(
        "--with", dest="parts", default="", metavar="torch,cuda", help="also torch, or NVIDIA's compiler, or both"
    )
    parser.add_argument("--split", default="", metavar="SIZE", help="parts of at most this size, such as 60M")
    parser.add_argument("--python", choices=PYTHONS, default=HERE, help=f"the Python there (default: {HERE}, as here)")
    parser.add_argument("--take", type=user_path, metavar="OBJECTS", help="take in what was compiled elsewhere")
    parser.add_argument("--give", type=user_path, metavar="OBJECTS", help="pack what was compiled here")
    add_cache_options(parser)
    options = parser.parse_args(arguments)
    if sum(item is not None for item in (options.out, options.take, options.give)) != 1:
        raise UsageError("name one thing to do", why="a folder OUT, --take OBJECTS or --give OBJECTS", fix="see --help")
    if options.take:
        return _take(options, console)
    if options.give:
        count = len(give_objects(open_cache(options), options.give, made_with()).results)
        console.result(f"{options.give}: {count} objects, {human_bytes(options.give.stat().st_size)}")
        return 0
    return _write(options, console)


def made_with() -> dict[str, str]:
    """Return what the keys of objects compiled here depend on, beside what a recipe pins, as far as it is here."""
    found = {"Python": platform.python_version()}
    with suppress(ToolchainError):
        found["the C++ compiler"] = find_host_compiler(os.environ).version
    return found


def _take(options: argparse.Namespace, console: Console) -> int:
    taken = take_objects(open_cache(options), options.take)
    console.result(f"{taken.total} objects, {taken.new} of them new here; build as usual: nox -s wheel")
    here = made_with()
    for name, there in taken.made_with.items():
        if here.get(name, there) != there:
            console.warn(f"{name} was {there} there and is {here[name]} here: a build takes no object of another one")
    return 0


def _write(options: argparse.Namespace, console: Console) -> int:
    recipe = load_recipe(recipe_argument(options.recipe))
    archs = arch_list(choose_archs(recipe, options.arch)) if options.arch else ""
    parts, limit = parse_parts(options.parts), parse_size(options.split) if options.split else 0
    access = open_access(options, console, recipe)
    about = {
        "recipe": recipe.name,
        "own_recipe": recipe.folder != RECIPES,
        "archs": archs,
        "with": list(parts),
        "python": options.python,
        "machine": os.uname().machine,
    }
    with tempfile.TemporaryDirectory(prefix=".capsule-", dir=access.cache.root) as folder:
        members = collect(recipe, parts, options.python, Path(folder), access)
        index = write_capsule(options.out, members, about, limit=limit)
    size = sum(part["size"] for part in index["parts"])
    console.result(f"{options.out}: {human_bytes(size)} in {len(index['parts'])} part(s), {len(members)} files")
    console.result(f"there: sh {SCRIPT} wheel")
    return 0


if __name__ == "__main__":
    run(main)
