"""Stage package: a wheel from the compiled objects, its platform tag measured by auditwheel, its contents checked."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts.compile.build import run_in, unit_count_in_log
from scripts.compile.older_glibc import PLATFORM, newer_versions
from scripts.compile.stable_names import source_date
from scripts.compile.tree import BuildTree
from scripts.core.console import Console, human_bytes
from scripts.core.errors import PackageError
from scripts.core.files import remove_tree
from scripts.core.process import Command, Finished
from scripts.package.abi3 import abi3_problems, oldest_python
from scripts.package.check import Wheel, check_wheel
from scripts.package.data_files import warn_of_missing, write_manifest
from scripts.package.finish import finish_wheel
from scripts.package.requires import wanted_torch, with_torch
from scripts.recipe.model import Recipe
from scripts.recipe.torch_pin import torch_requirement
from scripts.toolchain.adopt import other_torch

# Libraries that torch, CUDA's own wheels and the driver bring at run time: never to be copied into the wheel.
EXTERNAL_LIBRARIES = (
    "libtorch*.so*", "libc10*.so*", "libshm.so*", "libcuda.so*", "libcudart.so*", "libnvrtc*.so*", "libnvJitLink.so*",
    "libcublas*.so*", "libcudnn*.so*", "libcufft*.so*", "libcurand.so*", "libcusolver*.so*", "libcusparse*.so*",
    "libnccl.so*", "libnvToolsExt.so*", "libcupti.so*", "libcufile*.so*", "libnvshmem*.so*",
)  # fmt: skip
ABI_TAG = "cp38"  # upstream's own wheels: one abi3 wheel for all Pythons from here on


def package_wheel(
    tree: BuildTree, recipe: Recipe, *, jobs: int, console: Console, site: Path, libraries: Sequence[Path] = ()
) -> Wheel:
    """Build the wheel from the tree's objects, repair it and check it against the recipe. Raises PackageError.

    `site` and `libraries` are where the audit finds torch and further libraries.
    """
    version = recipe.version(tree.archs)
    console.stage("package", version)
    folder = tree.path / "package"
    remove_tree(folder)
    folder.mkdir()
    name = recipe.package.name.replace("-", "_")
    raw = _build(tree, name, version, folder, jobs)
    repaired = _repair(tree, raw, folder / "repaired", console)
    patches = [(patch.name, patch.sha256) for patch in tree.source.patches]
    from scripts.package.sbom import add_sbom, make_sbom  # noqa: PLC0415  (0.15 s that only a new wheel needs)

    sbom = make_sbom(recipe, version, patches=patches, packages=tree.toolchain.versions)
    torch = wanted_torch(repaired, recipe, tree.sources)
    ranged = torch != torch_requirement(recipe.torch.version)  # all of it is of torch's stable ABI
    another = ranged or bool(other_torch(recipe))
    change = partial(with_torch, wanted=torch, another=another) if ranged or recipe.pinned_torch else bytes
    described = add_sbom(repaired, sbom, folder / "described", change)
    finished = finish_wheel(
        described,
        folder / "finished",
        compiler=tree.toolchain.host.path,
        epoch=source_date(tree.environment),
        environment=tree.environment,
    )
    wheel = check_wheel(finished, recipe, version, requires=torch, archs=tree.archs, site=site, libraries=libraries)
    warn_of_missing(tree.source.path, finished, name, console)
    _abi3audit(tree, finished)
    console.note(
        f"{finished.name} ({human_bytes(wheel.size)}), abi3audit clean, RECORD and metadata right, SBOM inside"
    )
    return wheel


def _build(tree: BuildTree, name: str, version: str, folder: Path, jobs: int) -> Path:
    """Run `python -m build` on the patched tree; CMake and ninja find everything compiled."""
    config, seen = folder / "distutils.cfg", tree.inside(folder)
    write_manifest(tree.source.path, folder, name)
    config.write_text(
        f"[build]\nbuild_base = {seen / 'build'}\n[build_ext]\nbuild_temp = {tree.inside(tree.binary)}\n"
        f"[egg_info]\negg_base = {seen}\n[bdist_wheel]\npy_limited_api = {ABI_TAG}\n"
    )
    environment = {
        **tree.environment,
        "DIST_EXTRA_CONFIG": str(tree.inside(config)),
        "CMAKE_ARGS": " ".join(tree.definitions),
        "MAX_JOBS": str(jobs),
        "VLLM_VERSION_OVERRIDE": version,
        "SETUPTOOLS_SCM_PRETEND_VERSION": version,
    }
    before = unit_count_in_log(tree)
    options = ["-m", "build", "--wheel", "--no-isolation"]
    if tree.toolchain.torch:  # upstream's pyproject.toml asks for the torch that it pins
        options.append("--skip-dependency-check")
    python = tree.inside(tree.toolchain.python)
    command: Command = [python, *options, "--outdir", seen / "dist", tree.inside(tree.sources)]
    done = run_in(tree, command, cwd=folder, environment=environment)
    if done.code:
        raise _failed("python -m build failed", done.tail(), tree)
    compiled = unit_count_in_log(tree) - before
    if compiled:
        raise PackageError(
            f"packaging compiled {compiled} unit(s) again",
            why="setup.py configured CMake differently from the compile stage",
            fix=f"please report it with {tree.log}",
        )
    return _only_wheel(folder / "dist")


def _only_wheel(folder: Path) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise PackageError(f"expected one wheel in {folder}, found {len(wheels)}")
    return wheels[0]


def _repair(tree: BuildTree, raw: Path, target: Path, console: Console) -> Path:
    """Let auditwheel tag the wheel for torch's own platform, else for what it measures; it copies nothing into it."""
    wanted = f"{PLATFORM}_{platform.machine()}"
    if _auditwheel(tree, raw, target, "--plat", wanted, "--only-plat").code:
        done = _auditwheel(tree, raw, target)
        if done.code:
            raise _failed("auditwheel cannot repair the wheel", done.tail(), tree)
        newer = {found: path.name for path in tree.binary.glob("*.so") for found in newer_versions(path)}
        named = ", ".join(f"{path} needs {version}" for version, path in sorted(newer.items()))
        console.note(f"the wheel is for newer systems than {wanted}: {named or 'see the log'}")
    return _only_wheel(target)


def _auditwheel(tree: BuildTree, raw: Path, target: Path, *options: str) -> Finished:
    tools = Path(sys.executable).parent
    excluded = [word for name in EXTERNAL_LIBRARIES for word in ("--exclude", name)]
    environment = {**tree.environment, "PATH": f"{tools}:{tree.environment['PATH']}"}
    command: Command = [sys.executable, "-m", "auditwheel", "repair", *excluded, *options, "-w", target, raw]
    return run_in(tree, command, environment=environment, fixed=False)


def _abi3audit(tree: BuildTree, wheel: Path) -> None:
    """Refuse a wheel tagged abi3 that uses what the stable ABI of its oldest Python does not have."""
    report = tree.path / "package" / "abi3.json"
    command: Command = [sys.executable, "-m", "abi3audit", "--strict", "--report", "--output", report, wheel]
    done = run_in(tree, command, fixed=False)
    try:
        problems = abi3_problems(report.read_text(encoding="utf-8"), oldest_python(wheel))
    except (OSError, ValueError) as error:
        raise _failed(f"abi3audit gave no report: {error}", done.tail(), tree) from error
    if problems:
        raise PackageError(
            "the wheel does not keep to Python's stable ABI",
            why="; ".join(problems),
            fix="a patch of the recipe may have changed Py_LIMITED_API or the tag: compare with upstream's own build",
        )


def _failed(what: str, tail: str, tree: BuildTree) -> PackageError:
    if "No space left" in tail:
        return PackageError(what, why="no space left on the filesystem", fix=f"free space at {tree.path}")
    return PackageError(what, why="the end of its output is shown above", fix=f"read {tree.log}", detail=tail)
