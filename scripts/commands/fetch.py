"""nox -s fetch: a recipe's sources into the cache, or into and out of one file. See docs/sources.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_options, open_access, recipe_argument
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.core.paths import DEFAULT_RECIPE
from scripts.recipe.files import load_recipe
from scripts.sources.bundle import read_bundle, write_bundle
from scripts.sources.fetch import fetch_for_bundle, fetch_recipe


def main(arguments: Sequence[str], console: Console) -> int:
    """Fetch a recipe's sources into the cache, or from and into a bundle."""
    parser = Parser("fetch", "Download a recipe's pinned sources into the cache and check them.")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"name of a recipe (default {DEFAULT_RECIPE})")
    parser.add_argument("--bundle", type=user_path, metavar="FILE", help="also write all sources into one file")
    parser.add_argument("--from-bundle", type=user_path, metavar="FILE", help="take all sources from such a file")
    add_cache_options(parser)
    options = parser.parse_args(arguments)
    if options.bundle and options.from_bundle:
        raise UsageError("--bundle writes a file and --from-bundle reads one: give one of them, not both")
    recipe = load_recipe(recipe_argument(options.recipe))
    access = open_access(options, console, recipe)
    if options.from_bundle:
        read_bundle(options.from_bundle, access)
        access = replace(access, offline=True)
    fetched = fetch_recipe(recipe, access)
    if options.bundle:
        write_bundle(
            recipe, options.bundle, access=access, archive_of=lambda item: fetch_for_bundle(item, access, recipe.folder)
        )
    for name, folder in {"source": fetched.source.path, **fetched.dependencies}.items():
        console.result(f"{name}: {folder}")
    return 0


if __name__ == "__main__":
    run(main)
