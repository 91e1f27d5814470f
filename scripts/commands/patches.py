"""nox -s patches: does a recipe's patch series fit a source tree? See patches/README.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_options, open_access, recipe_argument
from scripts.core.console import Console
from scripts.core.errors import PatchError, UsageError
from scripts.core.files import write_json
from scripts.core.paths import DEFAULT_RECIPE
from scripts.downloads.access import Access
from scripts.downloads.listing import find_sdist
from scripts.recipe.files import load_recipe
from scripts.recipe.sources import MembersSource, SdistSource, WheelSource
from scripts.sources.fetch import source_tree
from scripts.sources.series import PatchVerdict, check_series, recipe_patches


def _against(text: str, access: Access) -> SdistSource:
    match = re.fullmatch(r"vllm==(\S+)", text)
    if match is None:
        raise UsageError(f"--against {text!r} is not a release", fix="--against vllm==0.16.0")
    sha256 = find_sdist("vllm", match[1], access)
    if sha256 is None:
        raise UsageError(f"the index has no sdist of vllm {match[1]}", fix="choose a release that has one")
    return SdistSource(kind="sdist", name="vllm", version=match[1], sha256=sha256)


def main(arguments: Sequence[str], console: Console) -> int:
    """Check a recipe's patches against its source, or against another release."""
    parser = Parser("patches", "Apply a recipe's patches to a real source tree without building, and report each.")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"name of a recipe (default {DEFAULT_RECIPE})")
    parser.add_argument("--against", default="", help="a release to check instead of the recipe's: vllm==0.16.0")
    parser.add_argument("--json", type=user_path, help="write the findings to this file")
    add_cache_options(parser)
    options = parser.parse_args(arguments)
    recipe = load_recipe(recipe_argument(options.recipe))
    access = open_access(options, console, recipe)
    source = _against(options.against, access) if options.against else recipe.source
    if isinstance(source, WheelSource | MembersSource):
        raise UsageError(f"recipe {recipe.name} is built from a wheel, which is not patched")
    patches, unneeded = recipe_patches(recipe)
    tree = source_tree(source, access)
    findings = (*check_series(tree, patches), *unneeded)
    console.stage("patches", f"{recipe.name} against {options.against or recipe.package.version}")
    console.grid(("patch", "verdict", "detail"), [(item.patch, item.verdict.value, item.detail) for item in findings])
    if options.json:
        write_json(options.json, [asdict(item) for item in findings])
    wrong = [item for item in findings if item.verdict in {PatchVerdict.CONFLICT, PatchVerdict.NOTHING}]
    return PatchError.exit_code if wrong else 0


if __name__ == "__main__":
    run(main)
