"""Stage package: a wheel from the compiled objects, its platform tag measured by auditwheel, its contents checked."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from packaging.metadata import ExceptionGroup, InvalidMetadata, Metadata
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from scripts.compile.build import run_in, unit_count_in_log
from scripts.compile.stable_names import source_date
from scripts.compile.tree import BuildTree
from scripts.core.console import Console, human_bytes
from scripts.core.errors import PackageError
from scripts.core.files import remove_tree
from scripts.core.process import Command
from scripts.package.data_files import warn_of_missing, write_manifest
from scripts.package.finish import finish_wheel
from scripts.package.requires import wanted_torch, with_torch
from scripts.recipe.model import Component, Recipe
from scripts.recipe.torch_pin import torch_requirement
from scripts.toolchain.adopt import other_torch

# Libraries that torch, CUDA's own wheels and the driver bring at run time: never to be copied into the wheel.
EXTERNAL_LIBRARIES = (
    "libtorch*.so*", "libc10*.so*", "libshm.so*", "libcuda.so*", "libcudart.so*", "libnvrtc*.so*", "libnvJitLink.so*",
    "libcublas*.so*", "libcudnn*.so*", "libcufft*.so*", "libcurand.so*", "libcusolver*.so*", "libcusparse*.so*",
    "libnccl.so*", "libnvToolsExt.so*", "libcupti.so*", "libcufile*.so*", "libnvshmem*.so*",
)  # fmt: skip


# What zipfile and csv raise for a damaged archive; RuntimeError for one that is encrypted or compressed by other means.
UNREADABLE = (zipfile.BadZipFile, zlib.error, csv.Error, EOFError, RuntimeError)
ABI_TAG = "cp38"  # upstream's own wheels: one abi3 wheel for all Pythons from here on


@dataclass(frozen=True)
class Wheel:
    """A packaged and checked wheel."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    version: str
    platform: str
    """What auditwheel measured: `manylinux_2_34_x86_64`."""
    components: dict[str, int]
    """Size in bytes of each component's shared object, by component."""


def package_wheel(tree: BuildTree, recipe: Recipe, *, jobs: int, console: Console) -> Wheel:
    """Build the wheel from the tree's objects, repair and check it. Raises PackageError."""
    version = recipe.version(tree.archs)
    console.stage("package", version)
    folder = tree.path / "package"
    remove_tree(folder)
    folder.mkdir()
    name = recipe.package.name.replace("-", "_")
    raw = _build(tree, name, version, folder, jobs)
    repaired = _repair(tree, raw, folder / "repaired")
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
    wheel = check_wheel(finished, recipe, version, torch)
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


def _repair(tree: BuildTree, raw: Path, target: Path) -> Path:
    """Let auditwheel measure the platform tag; nothing is copied into the wheel."""
    tools = Path(sys.executable).parent
    excluded = [word for name in EXTERNAL_LIBRARIES for word in ("--exclude", name)]
    environment = {**tree.environment, "PATH": f"{tools}:{tree.environment['PATH']}"}
    command: Command = [sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", target, raw]
    done = run_in(tree, command, environment=environment, fixed=False)
    if done.code:
        raise _failed("auditwheel cannot repair the wheel", done.tail(), tree)
    return _only_wheel(target)


def _abi3audit(tree: BuildTree, wheel: Path) -> None:
    """Refuse a wheel tagged abi3 that uses symbols outside the stable ABI."""
    command: Command = [sys.executable, "-m", "abi3audit", "--strict", "--report", wheel]
    done = run_in(tree, command, fixed=False)
    if done.code:
        raise _failed("abi3audit found symbols outside Python's stable ABI", done.tail(), tree)


def _failed(what: str, tail: str, tree: BuildTree) -> PackageError:
    if "No space left" in tail:
        return PackageError(what, why="no space left on the filesystem", fix=f"free space at {tree.path}")
    return PackageError(what, why="the end of its output is shown above", fix=f"read {tree.log}", detail=tail)


def check_wheel(path: Path, recipe: Recipe, version: str, torch: str = "") -> Wheel:
    """Check RECORD, metadata, torch pin and components of a wheel. Raises PackageError naming all that is wrong."""
    try:
        _, found_version, _, tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            problems = record_problems(archive)
            problems += metadata_problems(archive, recipe, version, torch)
            components, wrong = component_sizes(archive, recipe.shared_objects)
    except (*UNREADABLE, ValueError, OSError) as error:
        raise PackageError(f"{path.name} cannot be read", why=str(error)) from error
    problems += wrong
    if found_version != Version(version):
        problems.append(f"the file name says version {found_version}, not {version}")
    if problems:
        raise PackageError(f"{path.name} is not what the recipe {recipe.name} says", why="; ".join(problems[:6]))
    platform = max((tag.platform for tag in tags), key=lambda name: (name.startswith("manylinux_"), name))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel(path, sha256, path.stat().st_size, version, platform, components)


def _member(archive: zipfile.ZipFile, name: str) -> str:
    found = [item for item in archive.namelist() if re.fullmatch(rf"[^/]+\.dist-info/{name}", item)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} files named .dist-info/{name}")
    return found[0]


def record_problems(archive: zipfile.ZipFile) -> list[str]:
    """Return what is wrong with a wheel's RECORD: wrong digests or sizes, files missing or named twice."""
    record = _member(archive, "RECORD")
    counts = Counter(archive.namelist())
    problems = [f"{name} is twice in the archive" for name, count in counts.items() if count > 1]
    listed: set[str] = set()
    for row in csv.reader(io.StringIO(archive.read(record).decode())):
        if row:
            problems += _row_problems(archive, row, record, listed)
            listed.add(row[0])
    files = {name for name in counts if not name.endswith("/")}
    return problems + [f"RECORD lacks {name}" for name in sorted(files - listed)]


def _row_problems(archive: zipfile.ZipFile, row: Sequence[str], record: str, listed: Collection[str]) -> list[str]:
    if len(row) != 3:
        return [f"RECORD has a line of {len(row)} fields, not 3: {row[0]}"]
    name, digest, size = row
    if name in listed:
        return [f"RECORD lists {name} twice"]
    if name == record:
        return []
    if name not in archive.namelist():
        return [f"RECORD lists {name}, which is not in the wheel"]
    data = archive.read(name)
    if digest != _record_digest(data):
        return [f"RECORD has a wrong digest for {name}"]
    return [] if size == str(len(data)) else [f"RECORD has a wrong size for {name}: {size or 'none'}, not {len(data)}"]


def _record_digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def metadata_problems(archive: zipfile.ZipFile, recipe: Recipe, version: str, torch: str = "") -> list[str]:
    """Return what is wrong with a wheel's METADATA: validity, version, and the pin of the torch it was made for.

    `torch`: the specifier that is wanted where it is not the recipe's version alone.
    """
    try:
        metadata = Metadata.from_email(archive.read(_member(archive, "METADATA")), validate=True)
    except (InvalidMetadata, ExceptionGroup) as error:
        return [f"METADATA is not valid: {error}"]
    problems = []
    if canonicalize_name(metadata.name) != recipe.package.name:
        problems.append(f"METADATA is of {metadata.name}, not {recipe.package.name}")
    if metadata.version != Version(version):
        problems.append(f"METADATA says version {metadata.version}, not {version}")
    pins = [item for item in metadata.requires_dist or [] if canonicalize_name(item.name) == "torch"]
    wanted = torch or torch_requirement(recipe.torch.version)
    if not any(item.specifier == SpecifierSet(wanted) for item in pins):
        problems.append(f"METADATA does not pin torch{wanted}")
    return problems


def component_sizes(archive: zipfile.ZipFile, wanted: Sequence[Component]) -> tuple[dict[str, int], list[str]]:
    """Return (bytes per component's shared object, problems: components missing, other shared objects inside)."""
    objects = {item.filename: item.file_size for item in archive.infolist() if _is_shared_object(item.filename)}
    sizes: dict[str, int] = {}
    problems = []
    for component in wanted:
        name = next((name for name in objects if name.split(".", 1)[0] == component.member), None)
        if name is None:
            problems.append(f"component {component.value} is missing ({component.member}.*.so)")
        else:
            sizes[component.value] = objects.pop(name)
    return sizes, problems + [f"{name} is not of a component of the recipe" for name in sorted(objects)]


def _is_shared_object(name: str) -> bool:
    return bool(re.search(r"\.so(\.[\d.]+)?$", PurePosixPath(name).name))
