"""Spread a compilation over machines: which units are whose, and how many machines a CI service's limits ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.compile.expectation import compile_seconds
from scripts.compile.schedule import Task, split
from scripts.core.errors import UsageError
from scripts.core.machine import RESERVE
from scripts.cuda.archs import Arch, arch_list
from scripts.recipe.costs import TOOLCHAIN_GB, CostBook, Estimate, Unit, cost_book, cpu_seconds, unit_count
from scripts.recipe.expected import expected_units, largest_unit
from scripts.recipe.model import Recipe

# GitHub's standard runner for Linux: 4 cores, 16 GB of memory, 14 GB of disk, 6 hours a job.
RUNNER_CORES = 4
RUNNER_MEMORY_GB = 16.0
RUNNER_DISK_GB = 14.0
JOB_SECONDS = 6 * 3600.0
# Of these, what is left for compiling after fetching, installing and an estimate that was too low.
USABLE = 0.75
MOST = 256  # jobs of one matrix


@dataclass(frozen=True)
class Shard:
    """One of several machines that compile a part of the units each: `2/5`."""

    index: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read `I/N`. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,3})/([0-9]{1,3})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"--shard is {text!r}",
            why="it is I/N: of N machines this is the I-th, counted from 1",
            fix="--shard 1/4 on the first of four machines",
        )
    return Shard(int(match[1]), int(match[2]))


def units_of(shard: Shard, units: Sequence[Unit], book: CostBook) -> list[Unit]:
    """Return the shard's units: the same parts on every machine that has the same recipe and sources."""
    named = {f"{unit.name} {unit.object}": unit for unit in units}
    tasks = [Task(name, *_figures(book.estimate(unit))) for name, unit in named.items()]
    return [named[task.name] for task in split(tasks, shard.count)[shard.index - 1]]


def _figures(estimate: Estimate) -> tuple[float, int]:
    return estimate.cpu_seconds, estimate.peak_bytes


def plan_json(recipe: Recipe, archs: Sequence[Arch]) -> dict[str, Any]:
    """Return the plan of one wheel with a matrix for GitHub Actions: as many shards as fit its limits.

    `matrix` goes into `strategy.matrix` as it is. Raises UsageError for a recipe without a cost model, or one that does
    not fit however many machines there are.
    """
    cost = recipe.cost
    if not cost:
        raise UsageError(
            f"the recipe {recipe.name} has no [cost]",
            why="without it wheelsmith cannot tell time and disk",
            fix="add it",
        )
    total = cpu_seconds(recipe, archs)
    book = cost_book(recipe)
    longest = max((item.cpu_seconds for item in expected_units(recipe, archs, book).values()), default=0.0)
    need = largest_unit(recipe, archs, book)
    if need.gb > RUNNER_MEMORY_GB - RESERVE:
        raise UsageError(
            f"{recipe.name} does not fit a runner with {RUNNER_MEMORY_GB:.0f} GB of memory",
            why=need.sentence,
            fix="use larger runners, or fewer archs",
        )
    wall = compile_seconds(recipe, archs, book, jobs=RUNNER_CORES, memory_gb=RUNNER_MEMORY_GB)
    fixed_gb = min(cost.disk_gb, TOOLCHAIN_GB + cost.download_gb)
    room_gb = RUNNER_DISK_GB - fixed_gb
    by_time = math.ceil(wall / (JOB_SECONDS * USABLE))
    by_disk = math.ceil((cost.disk_gb - fixed_gb) / room_gb) if room_gb > 0 else MOST + 1
    count = max(1, by_time, by_disk)
    if count > MOST:
        raise UsageError(
            f"{recipe.name} does not fit {RUNNER_DISK_GB:.0f} GB of disk and 6 hours, however you split it",
            why=f"downloads and toolchain take {fixed_gb:.1f} GB, compiling {total / 3600:.1f} core-hours",
            fix="use larger runners, or fewer archs",
        )
    return {
        "recipe": recipe.name,
        "version": recipe.version(archs),
        "archs": arch_list(archs),
        "units": unit_count(recipe, cost, archs),
        "core_seconds": round(total),
        "largest_unit_bytes": need.bytes,
        "shards": count,
        "shard_seconds": round(max(wall / count, longest)),
        "shard_disk_gb": round(fixed_gb + (cost.disk_gb - fixed_gb) / count, 1),
        "link_disk_gb": cost.disk_gb,
        "runner": {
            "cores": RUNNER_CORES,
            "memory_gb": RUNNER_MEMORY_GB,
            "disk_gb": RUNNER_DISK_GB,
            "jobs": RUNNER_CORES,
        },
        "measured": cost.measured,
        "matrix": {"shard": [f"{index}/{count}" for index in range(1, count + 1)]},
    }
