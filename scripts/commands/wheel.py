"""The main job: fetch, patch, toolchain, compile, package, prove; the wheel lands in wheelhouse/ with its report."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import (
    add_cache_options,
    add_skip_option,
    add_torch_option,
    adopt_torch,
    cache_folder,
    choose_archs,
    choose_jobs,
    recipe_argument,
)
from scripts.compile.shards import parse_shard, plan_json
from scripts.core.console import Console
from scripts.core.machine import read_machine
from scripts.core.paths import DEFAULT_RECIPE, WHEELHOUSE
from scripts.pipeline.plan import show_plan
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.fitting import for_archs
from scripts.recipe.measured import own_costs


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises UsageError."""
    parser = Parser("wheel", "Build a wheel of a recipe: fetch, patch, toolchain, compile, package, prove.")
    known = ", ".join(recipe_names())
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, metavar="R", help=f"a recipe file, or one of: {known}")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="LIST",
        help='archs, such as "9.0" or "8.0;12.0" or H100 (default: the recipe\'s); repeated: one wheel each',
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        help="units compiled at once at most (default: MAX_JOBS, else all cores); fewer where memory does not reach",
    )
    parser.add_argument("--keep-going", action="store_true", help="compile on when a unit fails; show all that failed")
    parser.add_argument("--split", action="store_true", help="also cut a slim wheel per arch out of the result")
    parser.add_argument(
        "--shard", metavar="I/N", help="compile the I-th of N parts of the units into the compiler cache, and stop"
    )
    parser.add_argument("--plan-json", action="store_true", help="print the plan with a CI matrix of shards, and stop")
    parser.add_argument(
        "--no-compiler-cache", action="store_true", help="compile everything; read and fill no cache of objects"
    )
    parser.add_argument(
        "--dist", default="", metavar="URL", help="experimental: compile on the builders of an sccache-dist scheduler"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("--wheelhouse", type=user_path, default=WHEELHOUSE, metavar="DIR", help="where the wheel goes")
    add_torch_option(parser)
    add_skip_option(parser)
    add_cache_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], console: Console) -> int:
    """Build one wheel per --arch list, or print the plan."""
    options = read_arguments(arguments)
    if options.list:
        console.grid(["recipe", "what it builds"], [(name, load_recipe(name).description) for name in recipe_names()])
        return 0
    recipe, torch = adopt_torch(options, load_recipe(recipe_argument(options.recipe)))
    lists = list(dict.fromkeys(choose_archs(recipe, text) for text in options.arch or [None]))
    if options.plan_json:
        plans = [plan_json(for_archs(recipe, archs), archs) for archs in lists]
        console.result(json.dumps(plans[0] if len(plans) == 1 else plans))
        return 0
    shard = parse_shard(options.shard) if options.shard is not None else None
    machine = read_machine()
    jobs = choose_jobs(options.jobs, os.environ, machine)
    if options.dry_run:
        own = own_costs(cache_folder(options), recipe)
        for archs in lists:
            show_plan(
                for_archs(recipe, archs),
                archs,
                own=own,
                jobs=jobs,
                machine=machine,
                wheelhouse=options.wheelhouse,
                environment=os.environ,
                console=console,
            )
        return 0
    from scripts.commands.building import build_all  # noqa: PLC0415  (0.4 s that --help and --dry-run do not need)

    build_all(options, recipe, lists, jobs=jobs, shard=shard, torch=torch, console=console)
    return 0


if __name__ == "__main__":
    run(main)
