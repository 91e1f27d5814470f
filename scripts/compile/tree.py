"""The plan of a build tree: its key, and with what CMake, ninja and compilers are called in it. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.compile.fixed_paths import LAYOUT, FixedPaths, tree_paths
from scripts.compile.fixed_paths import ROOT as FIXED_ROOT
from scripts.compile.older_glibc import SCRIPT
from scripts.compile.stable_names import LINKER, map_names, source_date
from scripts.compile.standalone.launcher import ADMISSION, EVENTS, FAILURES
from scripts.core.errors import UsageError
from scripts.core.files import digest
from scripts.cuda.archs import Arch, arch_list
from scripts.downloads.access import Access
from scripts.recipe.model import Recipe
from scripts.sources.patch import SourceTree
from scripts.toolchain.provide import Toolchain

# Raise when configuring changes in a way that the key does not show, or the launcher changes what compilers are given.
FORMAT = 8
OLDER_GLIBC = "older-glibc"  # folder of the linker script


@dataclass(frozen=True)
class BuildTree:
    """A build tree: where it is, and with what it is configured, compiled and packaged."""

    key: str
    path: Path
    source: SourceTree
    toolchain: Toolchain
    archs: tuple[Arch, ...]
    targets: tuple[str, ...]
    """CMake targets: the recipe's components."""
    environment: dict[str, str]
    """Environment for cmake, ninja and setup.py."""
    definitions: tuple[str, ...]
    """`-DNAME=VALUE` for CMake; setup.py gets the same through CMAKE_ARGS."""
    basis: str = ""
    """A key for the host compiler and the dependencies, the same on every machine."""
    dependencies: tuple[Path, ...] = ()
    """Where upstream's CMake is told to take the dependencies from, as compilers see it."""
    paths: FixedPaths = field(default_factory=FixedPaths)
    """The names under which cmake, ninja and compilers see the tree, the toolchain and the dependencies."""

    def inside(self, path: Path) -> Path:
        """Return the path under which compilers see a file of the tree or its tools."""
        return self.paths.inside(path)

    @property
    def prefix(self) -> tuple[str | Path, ...]:
        """What comes before a command to run it under the tree's fixed paths."""
        return self.paths.enter

    @property
    def sources(self) -> Path:
        """The tree's own copy of the sources: upstream generates arch-dependent files into them."""
        return self.path / "source"

    @property
    def binary(self) -> Path:
        """CMake's binary directory."""
        return self.path / "build"

    @property
    def events(self) -> Path:
        """The launchers' event file."""
        return self.path / "events.jsonl"

    @property
    def enter(self) -> Path:
        """A script that runs a command under the tree's fixed paths."""
        return self.path / "enter"

    @property
    def log(self) -> Path:
        """Everything that cmake, ninja and the compilers said."""
        return self.path / "compile.log"


def plan_tree(
    recipe: Recipe,
    source: SourceTree,
    toolchain: Toolchain,
    archs: Sequence[Arch],
    *,
    dependencies: Mapping[str, Path],
    access: Access,
    fixed: bool = False,
) -> BuildTree:
    """Return the build tree for these inputs (not yet on disk); `fixed`: compiled under the same paths everywhere."""
    targets = tuple(component.value for component in recipe.components)
    given = {item.variable: dependencies[name] for name, item in recipe.needed_dependencies().items()}
    contents = {name: f"{path.parent.name}/{path.name}" for name, path in given.items()}  # keyed by what is in them
    key = digest(
        [
            FORMAT,
            source.key,
            toolchain.key,
            toolchain.host.version,
            arch_list(archs),
            targets,
            recipe.cmake,
            recipe.environment,
            recipe.native,
            {name: item.cmake for name, item in recipe.needed_dependencies().items()},
            contents,
            [str(FIXED_ROOT), LAYOUT] if fixed else [],
        ]
    )
    path = access.cache.place("builds", key)
    names = tree_paths(path, toolchain, dependencies)
    paths = names if fixed else FixedPaths()
    variables = {
        **build_variables(
            recipe, toolchain, archs, dependencies=dependencies, environment=access.environment, path=path
        ),
        "CMAKE_BUILD_TYPE": "Release",
        "NVCC_THREADS": "1",
        **map_names({} if fixed else names.binds),
        ADMISSION: str(path / "admission"),
    }
    definitions = _definitions(recipe, toolchain, path, dependencies, paths)
    basis = digest([toolchain.host.version, contents])
    seen = paths.variables(variables)
    places = tuple(map(paths.inside, given.values()))
    return BuildTree(key, path, source, toolchain, tuple(archs), targets, seen, definitions, basis, places, paths)


def build_variables(
    recipe: Recipe,
    toolchain: Toolchain,
    archs: Sequence[Arch],
    *,
    dependencies: Mapping[str, Path],
    environment: Mapping[str, str],
    path: Path,
) -> dict[str, str]:
    """Return what upstream's build takes from the environment, and our launcher's own variables; `path`: the build."""
    needed = recipe.needed_dependencies()
    return {
        **toolchain.variables(environment),
        **recipe.environment,
        **{item.variable: str(dependencies[name]) for name, item in needed.items()},
        "TORCH_CUDA_ARCH_LIST": arch_list(archs),
        "VLLM_COMPONENTS": ";".join(component.value for component in recipe.components),
        "VLLM_TARGET_DEVICE": "cuda",
        "SOURCE_DATE_EPOCH": str(source_date(environment)),
        EVENTS: str(path / "events.jsonl"),
        FAILURES: str(path / "failures"),
    }


def compiler_definitions(
    toolchain: Toolchain, python: Path, launcher: Path, cmake: Mapping[str, str]
) -> dict[str, str | Path]:
    """Return CMake's variables for the toolchain's compilers behind the launcher, and the recipe's own (`cmake`)."""
    started = ";".join(map(str, (python, "-S", "-E", launcher)))
    return {
        "FETCHCONTENT_FULLY_DISCONNECTED": "ON",  # everything is given as a directory; a clone would be a bug
        "CMAKE_CUDA_COMPILER": toolchain.cuda_home / "bin" / "nvcc",
        "CMAKE_CUDA_HOST_COMPILER": toolchain.host.path,
        "CMAKE_CXX_COMPILER": toolchain.host.path,
        "CUDA_TOOLKIT_ROOT_DIR": toolchain.cuda_home,
        "CUDAToolkit_ROOT": toolchain.cuda_home,
        "CMAKE_CUDA_COMPILER_LAUNCHER": started,
        "CMAKE_CXX_COMPILER_LAUNCHER": started,
        **cmake,
    }


def dependency_definitions(recipe: Recipe, dependencies: Mapping[str, Path]) -> dict[str, str | Path]:
    """Return CMake's variables that name folders inside dependencies."""
    return {
        variable: dependencies[name] / folder
        for name, item in recipe.needed_dependencies().items()
        for variable, folder in item.cmake.items()
    }


def _definitions(
    recipe: Recipe, toolchain: Toolchain, path: Path, dependencies: Mapping[str, Path], paths: FixedPaths
) -> tuple[str, ...]:
    python, launcher = paths.inside(toolchain.python), paths.inside(path / "launcher.py")
    values: dict[str, str | Path] = {
        "CMAKE_BUILD_TYPE": "Release",
        "VLLM_TARGET_DEVICE": "cuda",
        "VLLM_PYTHON_EXECUTABLE": toolchain.python,
        "FETCHCONTENT_BASE_DIR": path / "fetched",
        "NVCC_THREADS": "1",
        "CMAKE_SKIP_BUILD_RPATH": "ON",  # installing would leave room for the path, as long as it is here
        "CMAKE_MODULE_LINKER_FLAGS": LINKER,
        "CMAKE_CXX_STANDARD_LIBRARIES": path / OLDER_GLIBC / SCRIPT,
        "CMAKE_CUDA_STANDARD_LIBRARIES": path / OLDER_GLIBC / SCRIPT,
        "VLLM_NATIVE_ARCHS": "ON" if recipe.native and recipe.native_families else "OFF",
        **compiler_definitions(toolchain, python, launcher, recipe.cmake),
        **dependency_definitions(recipe, dependencies),
    }
    if paths.binds:
        values["Python_INCLUDE_DIR"] = paths.binds["python"]
    shown = {name: paths.inside(value) if isinstance(value, Path) else value for name, value in values.items()}
    definitions = tuple(f"-D{name}={value}" for name, value in shown.items())
    if any(re.search(r"\s", word) for word in definitions):
        raise UsageError(
            "a path that the build uses contains a blank",
            why="upstream's setup.py splits CMAKE_ARGS at blanks: " + next(d for d in definitions if " " in d),
            fix="point WHEELSMITH_CACHE at a directory without blanks",
        )
    return definitions
