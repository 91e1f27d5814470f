"""The stock way: upstream's own `pip wheel --no-build-isolation --no-deps`, observed and not touched.

The same source, components, archs, jobs and toolchain as ours, and upstream's own build type and headers. Only the
patches without which these units cannot be built from PyPI alone are applied. The launcher stands before the compilers
to measure (seconds, memory) and to give objects names that do not depend on the directory, so that their device code
can be compared with ours; it schedules and caches nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.runs import Ledger, Taken, busy, run_part, unit_facts
from scripts.compile.compiler_cache import finished_events
from scripts.compile.device_steps import put_programs
from scripts.compile.fixed_paths import tree_paths
from scripts.compile.stable_names import map_names
from scripts.compile.tree import build_variables, compiler_definitions, dependency_definitions
from scripts.compile.units import read_units
from scripts.core.console import Console
from scripts.core.errors import BenchError
from scripts.core.files import digest, remove_tree
from scripts.core.process import capture
from scripts.cuda.archs import Arch, arch_list
from scripts.downloads.access import Access
from scripts.recipe.model import Recipe
from scripts.sources.patch import Patch, SourceTree
from scripts.toolchain.provide import Toolchain

FORMAT = 1  # raise when the stock run changes in a way that its key does not show
OURS_ONLY = ("lean-headers", "compress-mode")  # patches, by the end of their names, that stock does without


@dataclass(frozen=True)
class Stock:
    """A stock build: where, of what, with what."""

    path: Path
    source: SourceTree
    toolchain: Toolchain
    archs: tuple[Arch, ...]
    jobs: int
    environment: Mapping[str, str]

    @property
    def events(self) -> Path:
        """The launchers' event file."""
        return self.path / "events.jsonl"

    @property
    def sources(self) -> Path:
        """Its copy of the sources."""
        return self.path / "source"

    @property
    def ledger(self) -> Ledger:
        """What it took."""
        return Ledger(self.path / "taken.json")

    def forget(self) -> None:
        """Delete it all: it is then built from nothing."""
        remove_tree(self.path)

    def binary(self) -> Path | None:
        """Return CMake's binary directory, where the objects are; None before it ran."""
        return next(iter(sorted(self.sources.glob("build/temp.*"))), None)

    def wheel(self) -> Path | None:
        """Return the wheel; None before it was made."""
        return next(iter(sorted((self.path / "dist").glob("*.whl"))), None)


def stock_patches(patches: Sequence[Patch]) -> list[Patch]:
    """Return the patches that the stock build needs to compile the same units at all."""
    return [patch for patch in patches if not patch.name.removesuffix(".patch").endswith(OURS_ONLY)]


def plan_stock(
    recipe: Recipe,
    source: SourceTree,
    toolchain: Toolchain,
    archs: Sequence[Arch],
    *,
    jobs: int,
    dependencies: Mapping[str, Path],
    access: Access,
) -> Stock:
    """Return the stock build for these inputs, not yet run."""
    targets = [component.value for component in recipe.components]
    key = digest([FORMAT, source.key, toolchain.key, toolchain.host.version, arch_list(archs), targets, recipe.cmake])
    path = access.cache.place("bench", f"stock-{key}-{jobs}")
    version = f"{recipe.package.version}+stock"
    # The names of directories that are written into objects are those that our builds write.
    names = tree_paths(path, toolchain, dependencies).binds
    variables = {
        **build_variables(
            recipe, toolchain, archs, dependencies=dependencies, environment=access.environment, path=path
        ),
        "VLLM_VERSION_OVERRIDE": version,
        "SETUPTOOLS_SCM_PRETEND_VERSION": version,
        "MAX_JOBS": str(jobs),
        "CMAKE_ARGS": " ".join(_definitions(recipe, toolchain, path, dependencies)),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **map_names(names),
    }
    return Stock(path, source, toolchain, tuple(archs), jobs, variables)


def _definitions(recipe: Recipe, toolchain: Toolchain, path: Path, dependencies: Mapping[str, Path]) -> list[str]:
    cmake = {name: value for name, value in recipe.cmake.items() if name != "VLLM_COMPRESS_MODE"}
    values = {
        **compiler_definitions(toolchain, toolchain.python, path / "launcher.py", cmake),
        **dependency_definitions(recipe, dependencies),
    }
    return [f"-D{name}={value}" for name, value in values.items()]


def run_stock(stock: Stock, console: Console) -> Taken:
    """Run upstream's build, or return what it took when it ran already. Raises BenchError."""
    ledger = stock.ledger
    wheel = stock.wheel()
    if "stock" in ledger.done and wheel:
        return ledger.done["stock"]
    if not stock.sources.is_dir():
        _copy(stock)
    put_programs(stock.path, stock.toolchain.python)
    (stock.path / "failures").mkdir(exist_ok=True)
    console.stage("stock", f"pip wheel --no-build-isolation, {stock.jobs} jobs; log: {stock.path / 'stock.log'}")
    taken = run_part(
        "stock",
        [*pip(stock.environment), "--python", stock.toolchain.python, "wheel", "--verbose",
         "--no-build-isolation", "--no-deps", "--wheel-dir", stock.path / "dist", stock.sources],
        ledger,
        log=stock.path / "stock.log",
        cwd=stock.path,
        environment=stock.environment,
        fix=f"read {stock.path / 'stock.log'}; units that were compiled are kept",
    )  # fmt: skip
    taken = Taken(**{**vars(taken), "facts": _facts(stock)})
    ledger.finish("stock", taken)
    return taken


def _copy(stock: Stock) -> None:
    partial = stock.path / ".source.partial"
    remove_tree(partial)
    shutil.copytree(stock.source.path, partial, symlinks=True)
    partial.rename(stock.sources)


def pip(environment: Mapping[str, str]) -> list[str]:
    """Return the command of a pip: of our own environment, else of a python3 on PATH. Raises BenchError."""
    folders = environment.get("PATH", "").split(os.pathsep)
    outside = [found for folder in folders if (found := shutil.which("python3", path=folder))]
    for python in dict.fromkeys([sys.executable, *outside]):
        command = [python, "-m", "pip"]
        if capture([*command, "--version"], environment={})[0] == 0:
            return command
    raise BenchError(
        "there is no pip in wheelsmith's own environment",
        why="the stock way is pip's, and uv's environments come without it",
        fix="run it through nox, whose environments bring pip, or install pip for a python3 on PATH",
    )


def _facts(stock: Stock) -> dict[str, object]:
    wheel = stock.wheel()
    if wheel is None:
        raise BenchError("pip wheel ended well and left no wheel", fix=f"read {stock.path / 'stock.log'}")
    slots, cores = busy(list(finished_events(stock.events, 0)), jobs=stock.jobs)
    units = unit_facts(read_units(stock.events), jobs=stock.jobs)
    return {**units, "slots_busy": slots, "cores_busy": cores, "wheel_bytes": wheel.stat().st_size}
