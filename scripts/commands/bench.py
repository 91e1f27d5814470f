"""Measure wheelsmith against the stock way on this machine, side by side: `nox -s bench -- --recipe quickstart`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from scripts.bench.ours import PARTS, Ours, plan_ours, run_ours
from scripts.bench.proof import SAMPLE, SAMPLE_ARCHS, SAMPLE_RECIPE, HeadersProof, prove_build, prove_units, report
from scripts.bench.steps_proof import SAMPLE as STEPS_SAMPLE
from scripts.bench.steps_proof import prove_steps, report_steps
from scripts.bench.stock import Stock, plan_stock, run_stock, stock_patches
from scripts.bench.table import bench_json, show
from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import (
    add_cache_options,
    add_torch_option,
    adopt_torch,
    choose_archs,
    choose_jobs,
    open_access,
    recipe_argument,
)
from scripts.core.console import Console
from scripts.core.errors import BenchError, UsageError, nearest
from scripts.core.files import write_json
from scripts.core.machine import read_machine
from scripts.core.paths import RECIPES
from scripts.cuda.archs import parse_arch_list
from scripts.recipe.files import load_recipe, recipe_names
from scripts.sources.fetch import fetch_recipe
from scripts.sources.patch import prepare_tree
from scripts.sources.series import recipe_patches
from scripts.toolchain.provide import provide_toolchain

ALL = ("stock", *PARTS)


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises UsageError."""
    parser = Parser("bench", "Measure wheelsmith against upstream's own pip wheel: the same kernels, side by side.")
    known = ", ".join(recipe_names())
    parser.add_argument("--recipe", default="quickstart", metavar="R", help=f"a recipe file, or one of: {known}")
    parser.add_argument("--arch", metavar="LIST", help="archs (default: the recipe's)")
    parser.add_argument("--jobs", metavar="N", help="units compiled at once (default: MAX_JOBS, else all cores)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"run only some of: {', '.join(ALL)}")
    parser.add_argument("--again", nargs="+", default=[], metavar="PART", help="measure these anew (default: resume)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write ratios and raw figures to this file")
    parser.add_argument(
        "--prove-headers",
        action="store_true",
        help="instead: compile with torch's headers and with the lean ones, and compare device code and operators",
    )
    parser.add_argument(
        "--prove-steps",
        action="store_true",
        help="instead: compile units by nvcc and by its steps, and compare the objects byte for byte",
    )
    parser.add_argument("--units", nargs="+", metavar="PATTERN", help="with --prove-…: only units that match")
    add_torch_option(parser)
    add_cache_options(parser)
    options = parser.parse_args(arguments)
    if options.units and not (options.prove_headers or options.prove_steps):
        raise UsageError(
            "--units goes with --prove-headers or --prove-steps", fix="nox -s bench -- --prove-headers --units '*topk*'"
        )
    if options.torch and (options.prove_headers or options.prove_steps):
        raise UsageError("the proofs compile against the recipe's own torch", fix="leave --torch out")
    _check_parts(options.only + options.again)
    return options


def _check_parts(names: Sequence[str]) -> None:
    for name in names:
        if name not in ALL:
            raise UsageError(
                f"there is no part {name!r} of a bench.{nearest(name, ALL)}", fix=f"the parts: {', '.join(ALL)}"
            )


def plan(options: argparse.Namespace, console: Console) -> tuple[Stock, Ours]:
    """Fetch, patch and install what both ways need, so that neither measures a download."""
    recipe, torch = adopt_torch(options, load_recipe(recipe_argument(options.recipe)))
    archs = choose_archs(recipe, options.arch)
    jobs = choose_jobs(options.jobs, os.environ, read_machine())
    access = open_access(options, console, recipe)
    patches, _ = recipe_patches(recipe)
    fetched = fetch_recipe(recipe, access)
    source = prepare_tree(fetched.source, stock_patches(patches), access)
    toolchain = provide_toolchain(recipe, archs, access, torch)
    stock = plan_stock(
        recipe,
        source,
        toolchain,
        archs,
        jobs=jobs,
        dependencies=fetched.dependencies,
        access=access,
    )
    return stock, plan_ours(recipe, patches, toolchain, archs, jobs=jobs, access=access)


def prove(options: argparse.Namespace, console: Console) -> int:
    """Compare device code and operators of both headers; without --units all of the recipe and a sample of `_C`."""
    if options.units:
        subject = _subject(options, console)
        return report(prove_units(subject, options.units, console), console)
    jobs = choose_jobs(options.jobs, os.environ, read_machine())
    stock, ours = plan(options, console)
    with ours.access.cache.lock("bench", console):
        code = report(prove_build(stock, ours, console), console)
    if ours.recipe.folder != RECIPES:
        return code
    recipe = load_recipe(SAMPLE_RECIPE)
    access = open_access(options, console, recipe)
    sample = HeadersProof(recipe, parse_arch_list(SAMPLE_ARCHS), jobs, access)
    return max(code, report(prove_units(sample, SAMPLE, console), console))


def _subject(options: argparse.Namespace, console: Console) -> HeadersProof:
    recipe = load_recipe(recipe_argument(options.recipe))
    jobs = choose_jobs(options.jobs, os.environ, read_machine())
    return HeadersProof(recipe, choose_archs(recipe, options.arch), jobs, open_access(options, console, recipe))


def main(arguments: Sequence[str], console: Console) -> int:
    """Run both ways, or prove that the lean headers change no device code, or that steps make nvcc's objects."""
    options = read_arguments(arguments)
    if options.prove_headers:
        return prove(options, console)
    if options.prove_steps:
        return report_steps(prove_steps(_subject(options, console), options.units or STEPS_SAMPLE, console), console)
    stock, ours = plan(options, console)
    for name in options.again:
        (stock.forget() if name == "stock" else ours.forget(name))
    wanted = options.only or ALL
    with ours.access.cache.lock("bench", console):
        if "stock" in wanted:
            run_stock(stock, console)
        for name in PARTS:
            if name in wanted:
                run_ours(ours, name, console)
    result = bench_json(stock, ours)
    if options.json:
        write_json(options.json, result)
    show(result, console)
    return 0 if result["complete"] or options.only else BenchError.exit_code


if __name__ == "__main__":
    run(main)
