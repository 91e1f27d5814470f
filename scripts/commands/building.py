"""What `wheel` does when it builds: one job per arch list, and the closing table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from scripts.commands.options import open_access
from scripts.compile.compiler_cache import read_settings
from scripts.compile.shards import Shard
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.cuda.archs import Arch, arch_list
from scripts.doctor.examine import read_skips
from scripts.pipeline.split import split_wheel
from scripts.pipeline.wheel import Job, build_shard, build_wheel
from scripts.recipe.fitting import for_archs
from scripts.recipe.model import Recipe
from scripts.report.models import BuildReport
from scripts.toolchain.installed_torch import InstalledTorch

T = TypeVar("T")


def build_all(
    options: argparse.Namespace,
    recipe: Recipe,
    lists: Sequence[tuple[Arch, ...]],
    *,
    jobs: int,
    shard: Shard | None,
    torch: InstalledTorch | None,
    console: Console,
) -> None:
    """Build one wheel per list of archs, or the shard of each, as the options of `wheel` say.

    `torch`: the installed one that the recipe was adopted to.
    """
    access = open_access(options, console, recipe)
    skip = read_skips(options.skip)
    for archs in lists:
        console.stage("wheel", f"{recipe.name}: {recipe.package.name} {recipe.version(archs)} for {arch_list(archs)}")
        settings = read_settings(os.environ, enabled=not options.no_compiler_cache, scheduler=options.dist)
        mine = for_archs(recipe, archs)
        for sentence in mine.lost:
            console.note(sentence)
        job = Job(mine, archs, jobs, access, options.wheelhouse, options.keep_going, settings, skip, torch)
        if shard:
            build_shard(job, shard)
            continue
        path, report = build_wheel(job)
        show_result(path, report, console)
        if options.split and len(archs) > 1:
            split_wheel(path, report, archs, options.wheelhouse, cuda=mine.toolchain.cuda, console=console)


def show_result(path: Path, report: BuildReport, console: Console) -> None:
    """Print the closing table."""
    components = [
        f"{item.name}: {human_bytes(item.size)}, {len(item.operators)} operators, {_counts(item.cubins)}"
        for item in report.components
    ]
    stages = [f"{name} {human_seconds(row.seconds)}" for name, row in report.stages.items()]
    peak = report.stages["compile"].peak_bytes if "compile" in report.stages else 0
    rows = [
        ("wheel", str(path)),
        ("size", human_bytes(report.wheel.size)),
        ("sha256", report.wheel.sha256),
        *(
            ("for", f"torch {torch.version}, CUDA {torch.cuda}, {report.wheel.platform}")
            for torch in _some(report.torch)
        ),
        *(("nvcc", text) for text in _other_nvcc(report)),
        *(("headers", text) for text in _stock_headers(report)),
        ("archs", report.archs),
        *(("component", text) for text in components),
        ("stages", ", ".join(stages)),
        *(("cache", cache.line()) for cache in _some(report.compiler_cache)),
        ("memory", f"{human_bytes(peak)} at most while compiling"),
    ]
    if report.recipe.notice:
        rows.append(("note", report.recipe.notice))
    console.table("", rows)


def _some(value: T | None) -> list[T]:
    return [] if value is None else [value]


def _other_nvcc(report: BuildReport) -> Iterator[str]:
    """Say with which CUDA the kernels were compiled when that is not torch's."""
    nvcc = report.toolchain.nvcc if report.toolchain else None
    if nvcc and report.torch and nvcc != report.torch.cuda:
        yield f"of CUDA {nvcc}: PTX needs a driver of {nvcc}"


def _stock_headers(report: BuildReport) -> Iterator[str]:
    """Say how many units did not compile with the lean headers."""
    units = report.units.stock_headers if report.units else ()
    if units:
        yield f"{len(units)} units needed torch's own headers: see units.stock_headers in the report"


def _counts(counts: Mapping[str, int]) -> str:
    return "cubins " + (", ".join(f"sm_{arch}: {count}" for arch, count in counts.items()) or "none")
