"""Prove that the lean headers change no device code and no operator: `nox -s bench -- --prove-headers`.

A recipe's whole build: the stock build's objects and wheel against our cold build's, both of the benchmark, which are
run first unless they are there. Units that are named, and a sample of the large extension `_C`: compiled with
VLLM_LEAN_HEADERS off and on, in two build trees that otherwise have the same options, through the compiler cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from scripts.bench.device_code import Comparison, Outcome, compare
from scripts.bench.operators import operator_differences, registered_operators
from scripts.bench.ours import COLD, Ours, run_ours
from scripts.bench.stock import Stock, run_stock
from scripts.compile.build import configure, list_units
from scripts.compile.cached import compile_cached
from scripts.compile.compiler_cache import CacheSettings
from scripts.compile.fixed_paths import refusal
from scripts.compile.tree import BuildTree, plan_tree
from scripts.core.console import Console, human_bytes
from scripts.core.errors import BenchError, UsageError
from scripts.cuda.archs import Arch, arch_list
from scripts.downloads.access import Access
from scripts.recipe.costs import Unit, cost_book
from scripts.recipe.model import Recipe
from scripts.sources.fetch import fetch_recipe
from scripts.sources.patch import prepare_tree
from scripts.sources.series import recipe_patches
from scripts.toolchain.provide import provide_toolchain

SWITCH = "VLLM_LEAN_HEADERS"  # of patches/vllm/0006-lean-headers.patch
SAMPLE_RECIPE, SAMPLE_ARCHS = "vllm-0.20.1-cu130", "9.0"
SAMPLE = (  # light units of all kinds: element-wise, reductions, cub, fp8, quantized GEMM, IPC, and the registration
    "_C/activation_kernels.cu",
    "_C/layernorm_kernels.cu",
    "_C/pos_encoding_kernels.cu",
    "_C/sampler.cu",
    "_C/quantization/w8a8/fp8/common.cu",
    "_C/quantization/awq/gemm_kernels.cu",
    "_C/custom_all_reduce.cu",
    "_C/torch_bindings.cpp",
)


@dataclass(frozen=True)
class HeadersProof:
    """What is compiled both ways."""

    recipe: Recipe
    archs: tuple[Arch, ...]
    jobs: int
    access: Access


def prove_build(stock: Stock, ours: Ours, console: Console) -> list[Comparison]:
    """Compare all objects of the benchmark's two builds, and what their wheels register. Raises BenchError."""
    run_stock(stock, console)
    run_ours(ours, COLD, console)
    tree, binary = ours.tree(COLD), stock.binary()
    wheels = stock.wheel(), ours.wheel(COLD)
    if tree is None or binary is None or wheels[0] is None or wheels[1] is None:
        raise BenchError("a build of the bench is gone", fix="nox -s bench -- --again stock cold")
    found = compare_folders(binary, tree / "build")
    console.stage("operators", "both wheels loaded with the torch they were compiled for")
    sides = [registered_operators(wheel, ours.recipe, stock.toolchain) for wheel in wheels if wheel]
    differences = operator_differences(*sides)
    count = sum(len(names) for names in sides[0].values())
    outcome = Outcome.DIFFERENT if differences else Outcome.SAME
    return [*found, Comparison("operators when loaded", outcome, schemas=count, why="; ".join(differences[:5]))]


def compare_folders(stock: Path, lean: Path) -> list[Comparison]:
    """Compare the objects of two binary directories of CMake; one that only one of them has differs."""
    names = [
        {str(path.relative_to(folder)) for path in folder.glob("CMakeFiles/*/csrc/**/*.o")} for folder in (stock, lean)
    ]
    missing = [Comparison(name, Outcome.DIFFERENT, why="only one build has it") for name in sorted(names[0] ^ names[1])]
    return missing + [compare(name, stock / name, lean / name) for name in sorted(names[0] & names[1])]


def prove_units(subject: HeadersProof, patterns: Sequence[str], console: Console) -> list[Comparison]:
    """Compile the units that match both ways and compare them. Raises UsageError where none does, CompileError."""
    trees = {state: _tree(subject, state) for state in ("OFF", "ON")}
    found = {}
    for state, tree in trees.items():
        with subject.access.cache.lock(f"build-{tree.key}", console):
            tree.path.mkdir(exist_ok=True)
            configure(tree, console=console)
            found[state] = choose_units(list_units(tree, tree.targets)[0], patterns)
            if found[state]:
                console.stage("headers", f"{SWITCH}={state}: {len(found[state])} units for {arch_list(subject.archs)}")
                compile_cached(
                    tree,
                    subject.access,
                    jobs=subject.jobs,
                    book=cost_book(subject.recipe),
                    settings=CacheSettings(),
                    only=found[state],
                )
    if not found["OFF"]:
        raise UsageError(f"no unit matches {' '.join(patterns)}", fix="a unit is named as in `_moe_C/moe/topk*.cu`")
    stock, lean = trees["OFF"].binary, trees["ON"].binary
    return [compare(unit.object, stock / unit.object, lean / unit.object) for unit in found["OFF"]]


def choose_units(units: Sequence[Unit], patterns: Sequence[str]) -> list[Unit]:
    """Return the units whose name, or a part of whose name, matches one of the patterns."""
    return [
        unit for unit in units if any(fnmatch(unit.name, text) or fnmatch(unit.name, f"*/{text}") for text in patterns)
    ]


def _tree(subject: HeadersProof, state: str) -> BuildTree:
    """Return the planned build tree of a recipe with the lean headers switched `ON` or `OFF`."""
    recipe = subject.recipe
    patches, _ = recipe_patches(recipe)
    if not any(SWITCH in patch.text for patch in patches):
        raise UsageError(f"recipe {recipe.name} has no lean headers: there is nothing to compare")
    return subject_tree(subject, recipe.model_copy(update={"cmake": {**recipe.cmake, SWITCH: state}}))


def subject_tree(subject: HeadersProof, variant: Recipe | None = None) -> BuildTree:
    """Return the planned build tree of a recipe, or of a variant of it, after fetching what it needs."""
    recipe, access = variant or subject.recipe, subject.access
    patches, _ = recipe_patches(subject.recipe)
    fetched = fetch_recipe(subject.recipe, access)
    return plan_tree(
        recipe,
        prepare_tree(fetched.source, patches, access),
        provide_toolchain(subject.recipe, subject.archs, access),
        subject.archs,
        dependencies=fetched.dependencies,
        access=access,
        fixed=not refusal(),
    )


def report(found: Sequence[Comparison], console: Console) -> int:
    """Print the comparisons and return the exit code: 0 when nothing differs."""
    console.stage("headers", "torch's own headers and the lean ones, compiled both ways")
    console.grid(["unit", "cubins", "PTX", "device code", "operators", "verdict"], [_row(item) for item in found])
    wrong = [item for item in found if item.outcome is Outcome.DIFFERENT]
    for item in wrong:
        console.warn(f"{item.unit}: {item.why}")
    for item in found:
        if item.outcome in {Outcome.NAMES, Outcome.KERNELS}:
            console.note(f"{item.unit}: {item.why}")
    console.note(f"{len(found) - len(wrong)} of {len(found)} comparisons found no difference of code")
    return BenchError.exit_code if wrong else 0


def _row(item: Comparison) -> tuple[str, ...]:
    name = item.unit.removeprefix("CMakeFiles/").replace(".dir/csrc", "")
    numbers = [str(count) if count else "" for count in (item.cubins, item.ptx)]
    size = human_bytes(item.size) if item.size else ""
    return (name, *numbers, size, str(item.schemas or ""), item.outcome.value)
