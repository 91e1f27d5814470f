"""What a build will take, before anything is started: sources, patches, toolchain, units, time, memory, disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.compile.expectation import compile_seconds
from scripts.core.console import Console, human_seconds
from scripts.core.machine import RESERVE, Machine
from scripts.cuda.archs import Arch, arch_list, runs_on_cubin
from scripts.recipe.costs import CostBook, CostData, Estimate, cost_book, cpu_seconds, native_seconds, unit_count
from scripts.recipe.expected import Need, expected_units, largest_unit
from scripts.recipe.fitting import kernel_archs, native_archs
from scripts.recipe.model import Cost, Recipe
from scripts.recipe.sources import describe
from scripts.sources.series import recipe_patches
from scripts.toolchain.choice import needs_packages
from scripts.toolchain.installed import find_system_toolkit


def show_plan(
    recipe: Recipe,
    archs: Sequence[Arch],
    *,
    own: CostData | None,
    jobs: int,
    machine: Machine,
    wheelhouse: Path,
    environment: Mapping[str, str],
    console: Console,
) -> None:
    """Print the plan of one wheel; `own`: what units of earlier builds took on this machine."""
    rows = [
        ("recipe", f"{recipe.name}: {recipe.description}"),
        ("wheel", f"{wheelhouse}/{recipe.package.name}-{recipe.version(archs)}-…whl"),
        ("source", f"{recipe.package.name} {recipe.package.version}: {describe(recipe.source)}"),
        *(
            ("dependency", f"{name} {item.version}: {describe(item.source)}")
            for name, item in recipe.needed_dependencies().items()
        ),
        *(("patch", f"{patch.name}: {patch.subject}") for patch in recipe_patches(recipe)[0]),
        ("toolchain", _toolchain(recipe, environment)),
        ("archs", arch_list(archs)),
        *(("lost", sentence) for sentence in recipe.lost),
        *_family_rows(recipe, archs),
        ("components", ", ".join(component.value for component in recipe.components)),
        ("jobs", f"at most {jobs} at a time ({machine.cores} cores, {machine.memory_gb:.1f} GB of memory free)"),
    ]
    book = cost_book(recipe, own)
    if recipe.cost:
        rows += _cost_rows(recipe, recipe.cost, archs, jobs=jobs, machine=machine, book=book)
    rows.append(("memory", _memory(largest_unit(recipe, archs, book), machine)))
    rows += _side_by_side(expected_units(recipe, archs, book), jobs, machine)
    if recipe.package.notice:
        rows.append(("note", recipe.package.notice))
    console.table("plan (nothing is started)", rows)


def _family_rows(recipe: Recipe, archs: Sequence[Arch]) -> list[tuple[str, str]]:
    """Return what upstream will compile each kernel family for, and the archs that this leaves to PTX or to nothing."""
    rows = []
    for name, gets in kernel_archs(recipe, archs).items():
        lacks = [arch for arch in archs if not any(runs_on_cubin(cubin, arch) for cubin in gets)]
        jit = [arch for arch in lacks if any(have.ptx and not have.suffix and have < arch for have in gets)]
        none = [arch for arch in lacks if arch not in jit]
        left = [f"JIT on {arch_list(jit)}"] if jit else []
        left += [f"nothing for {arch_list(none)}"] if none else []
        rows.append(("kernels", f"{name}: {arch_list(gets) or 'none'}" + (f" ({'; '.join(left)})" if left else "")))
    return rows


def _toolchain(recipe: Recipe, environment: Mapping[str, str]) -> str:
    where = {
        "pypi": "nvcc from NVIDIA's wheels on the package index",
        "system": "an installed CUDA toolkit",
        "redist": "NVIDIA's redistributable archives",
        "auto": "an installed CUDA toolkit, else NVIDIA's redistributable archives",
    }[recipe.toolchain.kind]
    if recipe.toolchain.kind in {"auto", "system"} and not needs_packages(recipe):
        found = find_system_toolkit(recipe.toolchain.cuda, environment)
        if found.home:
            where = f"{found.home}, found as {found.place}"
        elif recipe.toolchain.redist and recipe.toolchain.kind == "auto":
            where = f"none is installed: NVIDIA's archives of {recipe.toolchain.redist.release}, into the cache"
        else:
            where = "none is installed"
    return f"CUDA {recipe.toolchain.cuda} ({where}), torch {recipe.torch.version}; locked in {recipe.toolchain.lock}"


def _cost_rows(
    recipe: Recipe, cost: Cost, archs: Sequence[Arch], *, jobs: int, machine: Machine, book: CostBook
) -> list[tuple[str, str]]:
    total, native = cpu_seconds(recipe, archs), native_seconds(recipe, archs)
    extra = f"{human_seconds(native)} of this for native code for {arch_list(native_archs(recipe, archs))}"
    wall = compile_seconds(recipe, archs, book, jobs=jobs, memory_gb=machine.memory_gb)
    return [
        ("units", f"about {unit_count(recipe, cost, archs)}"),
        ("time", f"about {human_seconds(wall)} of compiling ({human_seconds(total)} of one core)"),
        *([("native", f"{extra}; `native = false` leaves it to the driver's compiler")] if native else []),
        ("download", f"about {cost.download_gb:.1f} GB with an empty cache"),
        ("disk", f"about {cost.disk_gb:.1f} GB"),
        ("measured", cost.measured),
    ]


def _room(machine: Machine) -> int:
    return int(max(0.0, machine.memory_gb - RESERVE) * 1e9)


def _memory(need: Need, machine: Machine) -> str:
    """Return whether the largest unit can be compiled here: doctor refuses what cannot."""
    if need.gb > machine.capacity_gb:
        end = "so it is not built here" if need.unit else "so it may fail"
        return f"{need.sentence}, and this machine has {machine.capacity_gb:.1f} GB in all: {end}"
    if need.bytes > _room(machine):
        return f"{need.sentence}, and {machine.memory_gb:.1f} GB are free: it is compiled alone, and may fail"
    return f"{need.sentence}; others start beside it as memory allows"


def _side_by_side(units: Mapping[str, Estimate], jobs: int, machine: Machine) -> list[tuple[str, str]]:
    """Return how many of the measured units fit as many at a time as there are jobs."""
    wide = sum(1 for item in units.values() if item.peak_bytes * jobs <= _room(machine))
    if not units or jobs == 1:
        return []
    rest = len(units) - wide
    others = f"; {rest} larger ones fewer at a time, each as soon as it fits" if rest else ""
    return [("at once", f"{wide} of {len(units)} measured units fit {jobs} at a time{others}")]
