"""Stage compile: configure with CMake, compile with ninja, in a build tree that stays.

The tree is keyed by everything that decides its objects; a killed run loses the units in flight, nothing else.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.archs import Arch, arch_list
from scripts.cache import Cache, digest, file_sha256, remove_tree, write_json
from scripts.console import Console, human_seconds
from scripts.errors import CompileError, UsageError, from_os_error
from scripts.launcher import EVENTS, FAILURES
from scripts.patch import SourceTree
from scripts.process import Finished, capture, run_logged
from scripts.recipe import Recipe
from scripts.toolchain import Toolchain
from scripts.units import Failure, UnitRecord, UnitWatch, read_failures, read_units

FORMAT = 1  # raise when configuring changes in a way that the key does not show
_LINKING = re.compile(r"\bld(\.\w+)?: |undefined reference|ld returned \d")
LAUNCHER = Path(__file__).with_name("launcher.py")


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

    @property
    def sources(self) -> Path:
        """The tree's own copy of the sources: upstream generates arch-dependent files into them."""
        return self.path / "source"

    @property
    def binary(self) -> Path:
        """CMake's binary directory."""
        return self.path / "build"

    @property
    def log(self) -> Path:
        """Everything that cmake, ninja and the compilers said."""
        return self.path / "compile.log"


@dataclass(frozen=True)
class Compiled:
    """What was compiled."""

    units: tuple[UnitRecord, ...]
    """All units, those that earlier runs compiled included."""
    units_now: int
    """How many of them this run compiled."""
    seconds: float
    peak_bytes: int
    """Peak memory of ninja and all compilers together."""


def plan_tree(
    recipe: Recipe,
    source: SourceTree,
    toolchain: Toolchain,
    archs: Sequence[Arch],
    *,
    dependencies: Mapping[str, Path],
    cache: Cache,
    environment: Mapping[str, str],
) -> BuildTree:
    """Return the build tree for these inputs (not yet on disk)."""
    targets = tuple(component.value for component in recipe.components)
    given = {item.variable: str(dependencies[name]) for name, item in recipe.needed_dependencies().items()}
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
            {name: item.cmake for name, item in recipe.needed_dependencies().items()},
            given,
            file_sha256(LAUNCHER),
        ]
    )
    path = cache.place("builds", key)
    variables = {
        **toolchain.variables(environment),
        **recipe.environment,
        **given,
        "TORCH_CUDA_ARCH_LIST": arch_list(archs),
        "VLLM_COMPONENTS": ";".join(targets),
        "VLLM_TARGET_DEVICE": "cuda",
        "CMAKE_BUILD_TYPE": "Release",
        "NVCC_THREADS": "1",
        EVENTS: str(path / "events.jsonl"),
        FAILURES: str(path / "failures"),
    }
    definitions = _definitions(recipe, toolchain, path, dependencies)
    return BuildTree(key, path, source, toolchain, tuple(archs), targets, variables, definitions)


def _definitions(recipe: Recipe, toolchain: Toolchain, path: Path, dependencies: Mapping[str, Path]) -> tuple[str, ...]:
    launcher = ";".join([str(toolchain.python), "-S", "-E", str(path / "launcher.py")])
    values = {
        "CMAKE_BUILD_TYPE": "Release",
        "VLLM_TARGET_DEVICE": "cuda",
        "VLLM_PYTHON_EXECUTABLE": toolchain.python,
        "FETCHCONTENT_BASE_DIR": path / "fetched",
        "FETCHCONTENT_FULLY_DISCONNECTED": "ON",  # everything is given as a directory; a clone would be a bug
        "NVCC_THREADS": "1",
        "CMAKE_CUDA_COMPILER": toolchain.cuda_home / "bin" / "nvcc",
        "CMAKE_CUDA_HOST_COMPILER": toolchain.host.path,
        "CMAKE_CXX_COMPILER": toolchain.host.path,
        "CUDA_TOOLKIT_ROOT_DIR": toolchain.cuda_home,
        "CUDAToolkit_ROOT": toolchain.cuda_home,
        "CMAKE_CUDA_COMPILER_LAUNCHER": launcher,
        "CMAKE_CXX_COMPILER_LAUNCHER": launcher,
        **recipe.cmake,
    }
    for name, dependency in recipe.needed_dependencies().items():
        values.update({key: dependencies[name] / folder for key, folder in dependency.cmake.items()})
    definitions = tuple(f"-D{name}={value}" for name, value in values.items())
    if any(re.search(r"\s", word) for word in definitions):
        raise UsageError(
            "a path that the build uses has a blank in it",
            why="upstream's setup.py splits CMAKE_ARGS at blanks: " + next(d for d in definitions if " " in d),
            fix="point WHEELSMITH_CACHE at a directory without blanks",
        )
    return definitions


def configure(tree: BuildTree, *, console: Console) -> None:
    """Run CMake unless the tree is configured already. Raises CompileError."""
    marker = tree.path / "configured.json"
    if marker.exists():
        return
    _copy_sources(tree)
    tree.binary.mkdir(exist_ok=True)
    (tree.path / "failures").mkdir(exist_ok=True)
    (tree.path / "fetched").mkdir(exist_ok=True)
    shutil.copyfile(LAUNCHER, tree.path / "launcher.py")
    cmake = tree.toolchain.environment / "bin" / "cmake"
    begin = tree.log.stat().st_size if tree.log.exists() else 0
    done = run_logged(
        [cmake, "-S", tree.sources, "-B", tree.binary, "-G", "Ninja", *tree.definitions],
        log=tree.log,
        cwd=tree.path,
        environment=tree.environment,
    )
    if done.code:
        raise _configure_error(tree, begin)
    console.note(f"configured in {human_seconds(done.seconds)}")
    write_json(marker, list(tree.definitions))


def _copy_sources(tree: BuildTree) -> None:
    partial = tree.path / ".source.partial"
    try:
        remove_tree(partial)
        remove_tree(tree.sources)
        shutil.copytree(tree.source.path, partial, symlinks=True)
        partial.rename(tree.sources)
    except OSError as error:
        raise from_os_error(CompileError, error, doing="copying the sources", path=tree.sources) from error
    except shutil.Error as error:
        raise CompileError(f"copying the sources failed: {tree.sources}", why=str(error.args[0][:1])) from error


def _configure_error(tree: BuildTree, begin: int) -> CompileError:
    text = tree.log.read_bytes()[begin:].decode("utf-8", "replace")
    errors = re.findall(r"CMake Error.*?(?=\n\n\n|\n-- |\Z)", text, re.DOTALL)
    return CompileError(
        "CMake could not configure vLLM",
        why="the first error is shown above",
        fix=f"the whole output is in {tree.log}",
        detail=errors[0].strip() if errors else text[-3000:],
        output=text,
    )


def compile_units(tree: BuildTree, *, jobs: int, expected_seconds: float, console: Console) -> Compiled:
    """Compile and link the tree's targets. Raises CompileError with each failed unit's output, once."""
    failures = tree.path / "failures"
    for old in failures.glob("*.json"):
        old.unlink()
    total, todo = count_units(tree)
    watch = UnitWatch(Path(tree.environment[EVENTS]), total, todo, jobs, expected_seconds)
    watch.begin()
    console.stage("compile", f"{todo} of {total} units to do, {jobs} at a time; log: {tree.log}")
    ninja = tree.toolchain.environment / "bin" / "ninja"

    with console.progress(watch.render, watch.plain) as progress:

        def tick() -> None:
            watch.update()
            progress.tick()

        done = run_logged(
            [ninja, "-C", tree.binary, "-j", str(jobs), *tree.targets],
            log=tree.log,
            cwd=tree.path,
            environment=tree.environment,
            tick=tick,
        )
    watch.update()
    if done.code:
        raise _compile_error(tree, done, read_failures(failures))
    return Compiled(tuple(read_units(watch.events)), len(watch.finished), done.seconds, done.peak_bytes)


def count_units(tree: BuildTree) -> tuple[int, int]:
    """Return (units of the targets, units that are out of date), as ninja sees it. Raises CompileError."""
    ninja = tree.toolchain.environment / "bin" / "ninja"
    launcher = str(tree.path / "launcher.py")
    counts = []
    for mode in (["-t", "commands"], ["-n", "-v"]):
        code, text = capture([ninja, "-C", tree.binary, *mode, *tree.targets], environment=tree.environment)
        if code:
            raise CompileError(
                "ninja cannot read the build tree",
                why=text.strip()[-500:],
                fix=f"delete {tree.path} and run again: it is then configured anew",
            )
        counts.append(sum(1 for line in text.splitlines() if launcher in line))
    return counts[0], counts[1]


def _compile_error(tree: BuildTree, done: Finished, failures: Sequence[Failure]) -> CompileError:
    if not failures:
        tail = done.tail()
        full = "No space left" in tail
        return CompileError(
            "linking failed" if _LINKING.search(tail) else "ninja failed",
            why="no space left on the filesystem" if full else "the end of its output is shown above",
            fix=f"free space at {tree.path}" if full else f"the whole output is in {tree.log}",
            detail=tail,
        )
    shown = "\n\n".join(f"{item.unit}\n{item.output}\nrepeat it with:\n{item.command}" for item in failures)
    text = "".join(item.output for item in failures)
    why, fix = "the compiler's output is shown above", "nothing compiled is lost: run again after correcting the cause"
    if "No space left" in text:
        why, fix = "no space left on the filesystem", f"free space at {tree.path} and TMPDIR, then run again"
    elif any(item.killed for item in failures):
        why = "the compiler was killed, most likely by the kernel because memory ran out"
        fix = "run again with fewer units at a time: --jobs 1"
    names = ", ".join(item.unit for item in failures[:3])
    return CompileError(f"{len(failures)} unit(s) failed: {names}", why=why, fix=fix, detail=shown)


def unit_count_in_log(tree: BuildTree) -> int:
    """Return how many launcher starts the tree has seen, to prove that packaging compiles nothing."""
    events = Path(tree.environment[EVENTS])
    return events.read_bytes().count(b'"start"') if events.exists() else 0
