"""The main job: fetch, patch, toolchain, compile, package, prove; the wheel lands in wheelhouse/ with its report."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.doctor import add_skip_option
from scripts.commands.options import add_cache_options, choose_archs, choose_jobs, open_access, recipe_argument
from scripts.compile.compiler_cache import CacheSummary, read_settings
from scripts.compile.shards import parse_shard, plan_json
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.machine import read_machine
from scripts.core.paths import DEFAULT_RECIPE, WHEELHOUSE
from scripts.cuda.archs import arch_list
from scripts.doctor.examine import read_skips
from scripts.pipeline.plan import show_plan
from scripts.pipeline.split import split_wheel
from scripts.pipeline.wheel import Job, build_shard, build_wheel
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.fitting import for_archs


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
    add_skip_option(parser)
    add_cache_options(parser)
    return parser.parse_args(arguments)


def show_result(path: Path, report: Mapping[str, Any], console: Console) -> None:
    """Print the closing table."""
    components = [
        f"{item['name']}: {human_bytes(item['size'])}, {len(item['operators'])} operators, {_counts(item['cubins'])}"
        for item in report["components"]
    ]
    stages = [f"{name} {human_seconds(row['seconds'])}" for name, row in report["stages"].items()]
    peak = report["stages"].get("compile", {}).get("peak_bytes", 0)
    rows = [
        ("wheel", str(path)),
        ("size", human_bytes(report["wheel"]["size"])),
        ("sha256", report["wheel"]["sha256"]),
        ("for", f"torch {report['torch']['version']}, CUDA {report['torch']['cuda']}, {report['wheel']['platform']}"),
        *(("nvcc", text) for text in [_other_nvcc(report)] if text),
        *(("headers", text) for text in [_stock_headers(report)] if text),
        ("archs", report["archs"]),
        *(("component", text) for text in components),
        ("stages", ", ".join(stages)),
        *(("cache", CacheSummary(**data).line()) for data in [report.get("compiler_cache")] if data),
        ("memory", f"{human_bytes(peak)} at most while compiling"),
    ]
    if report["recipe"]["notice"]:
        rows.append(("note", report["recipe"]["notice"]))
    console.table("", rows)


def _other_nvcc(report: Mapping[str, Any]) -> str:
    """Say with which CUDA the kernels were compiled when that is not torch's."""
    nvcc = report["toolchain"].get("nvcc")
    return f"of CUDA {nvcc}: PTX needs a driver of {nvcc}" if nvcc not in {None, report["torch"]["cuda"]} else ""


def _stock_headers(report: Mapping[str, Any]) -> str:
    """Say how many units did not compile with the lean headers."""
    units = report.get("units", {}).get("stock_headers", [])
    return f"{len(units)} units needed torch's own headers: see units.stock_headers in the report" if units else ""


def _counts(counts: Mapping[str, int]) -> str:
    return "cubins " + (", ".join(f"sm_{arch}: {count}" for arch, count in counts.items()) or "none")


def main(arguments: Sequence[str], console: Console) -> int:
    """Build one wheel per --arch list, or print the plan."""
    options = read_arguments(arguments)
    if options.list:
        console.grid(["recipe", "what it builds"], [(name, load_recipe(name).description) for name in recipe_names()])
        return 0
    recipe = load_recipe(recipe_argument(options.recipe))
    lists = list(dict.fromkeys(choose_archs(recipe, text) for text in options.arch or [None]))
    if options.plan_json:
        plans = [plan_json(for_archs(recipe, archs), archs) for archs in lists]
        console.result(json.dumps(plans[0] if len(plans) == 1 else plans))
        return 0
    shard = parse_shard(options.shard) if options.shard is not None else None
    machine = read_machine()
    jobs = choose_jobs(options.jobs, os.environ, machine)
    if options.dry_run:
        for archs in lists:
            show_plan(
                for_archs(recipe, archs),
                archs,
                jobs=jobs,
                machine=machine,
                wheelhouse=options.wheelhouse,
                environment=os.environ,
                console=console,
            )
        return 0
    access = open_access(options, console, recipe)
    skip = read_skips(options.skip)
    for archs in lists:
        console.stage("wheel", f"{recipe.name}: {recipe.package.name} {recipe.version(archs)} for {arch_list(archs)}")
        settings = read_settings(os.environ, enabled=not options.no_compiler_cache, scheduler=options.dist)
        mine = for_archs(recipe, archs)
        for sentence in mine.lost:
            console.note(sentence)
        job = Job(mine, archs, jobs, access, options.wheelhouse, options.keep_going, settings, skip)
        if shard:
            build_shard(job, shard)
            continue
        path, report = build_wheel(job)
        show_result(path, report, console)
        if options.split and len(archs) > 1:
            split_wheel(path, report, archs, options.wheelhouse, console=console)
    return 0


if __name__ == "__main__":
    run(main)
