"""Checks of Python packages: the recipe's lock file, and an environment that is named with --python.

wheelsmith builds in an environment of its own, so the lock file decides. One that the user names is judged as well: it
is where builds by hand fail (an NGC image's setuptools 70.3, its torch without a type, its HPC-X deleted).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from scripts.core.errors import DoctorError, WheelsmithError
from scripts.core.process import capture
from scripts.doctor.checks.installed import judged
from scripts.doctor.registry import Result, Subject, blocked, check, ok, unknown, warning
from scripts.formats.dynamic import read_dynamic
from scripts.formats.elf import open_elf
from scripts.toolchain.provide import environment_key
from scripts.toolchain.torch import names_float8

PEP639 = Version("77.0.3")  # first setuptools that reads `license = "Apache-2.0"` with license-files
FLOAT8 = Version("2.7")  # first torch with Float8_e8m0fnu
_ASK = (
    "import json, sys, sysconfig\nfrom importlib.metadata import distributions\n"
    "p = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in distributions() if d.metadata['Name']}\n"
    "print(json.dumps([p, sysconfig.get_paths()['purelib'], sysconfig.get_paths()['platlib'], sys.path]))"
)


@dataclass(frozen=True)
class Environment:
    """What is installed for an interpreter."""

    versions: dict[str, str]
    torch: Path | None
    """Folder of the package torch."""
    torch_cuda: str
    """CUDA version that it was built with, "" for none."""


@lru_cache(maxsize=4)
def read_environment(python: Path) -> Environment:
    """Ask an interpreter for its packages, without importing any. Raises DoctorError when it does not run."""
    code, text = capture([python, "-c", _ASK])
    if code:
        raise DoctorError(
            f"{python} does not run", why=text.strip()[-200:], fix="name an interpreter: --python .venv/bin/python"
        )
    versions, _pure, _plat, path = json.loads(text.strip().splitlines()[-1])
    torch = next((Path(part) / "torch" for part in path if part and (Path(part) / "torch/version.py").is_file()), None)
    said = (torch / "version.py").read_text() if torch else ""
    cuda = re.search(r"^cuda\b.*?=\s*['\"]([\d.]+)['\"]", said, re.MULTILINE)
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", said, re.MULTILINE)
    if version:
        versions["torch"] = version[1]
    return Environment(versions, torch, cuda[1] if cuda else "")


def _places(subject: Subject) -> list[tuple[str, dict[str, str]]]:
    """Return what is judged: the recipe's lock file, and the environment that was named."""
    places = [(f"the lock file ({subject.recipe.lock_file.name})", subject.locked)]
    return [*places, (str(subject.python), read_environment(subject.python).versions)] if subject.python else places


def _at_least(subject: Subject, name: str, lowest: Version, fix: str) -> Result:
    """Check a package's version wherever it is installed."""
    seen, bad = [], []
    for place, versions in _places(subject):
        if name in versions:
            seen.append(f"{name} {versions[name]} in {place}")
            if Version(versions[name]) < lowest:
                bad.append(seen[-1])
    if bad:
        return blocked(f"{'; '.join(bad)}; {lowest} or newer is needed", fix)
    return ok("; ".join(seen)) if seen else unknown(f"{name} is not in the lock file")


def _pip(subject: Subject) -> str:
    return (
        f"{subject.python} -m pip install -U"
        if subject.python
        else "nox -s upgrade, or in an environment of your own: pip install -U"
    )


@check("pep639-license-parse")
def setuptools_license(subject: Subject) -> Result:
    """Check that setuptools reads the project's license field (PEP 639)."""
    return _at_least(subject, "setuptools", PEP639, f'{_pip(subject)} "setuptools>=77.0.3,<81" "packaging>=24.2"')


@check("setuptools-needs-packaging-licenses")
def packaging_licenses(subject: Subject) -> Result:
    """Check that packaging is new enough for that setuptools."""
    return _at_least(subject, "packaging", Version("24.2"), f'{_pip(subject)} "packaging>=24.2"')


@check("pkg-resources-removed")
def setuptools_not_too_new(subject: Subject) -> Result:
    """Check that setuptools is below what vLLM's build admits (81)."""
    wanted = next(
        (Requirement(item) for item in subject.recipe.toolchain.build_requirements if item.startswith("setuptools")),
        None,
    )
    bad = [
        f"setuptools {versions['setuptools']} in {place}"
        for place, versions in _places(subject)
        if "setuptools" in versions
        and wanted
        and Version(versions["setuptools"]) >= Version("81")
        and "<81" in str(wanted.specifier)
    ]
    return (
        blocked("; ".join(bad), f'{_pip(subject)} "setuptools>=77.0.3,<81"')
        if bad
        else ok("setuptools is below 81, or the recipe allows it")
    )


@check("cmake-4-policy-floor")
def cmake_version(subject: Subject) -> Result:
    """Check that CMake still takes projects written for CMake before 3.5."""
    version = subject.locked.get("cmake")
    if version is None:
        return unknown("cmake is not in the lock file")
    if Version(version) < Version("4") or subject.recipe.environment.get("CMAKE_POLICY_VERSION_MINIMUM"):
        return ok(f"cmake {version}")
    return ok(f"cmake {version}: refuses projects for CMake before 3.5; none of the pinned sources is one")


@check("no-ninja-serial-build")
def ninja(subject: Subject) -> Result:
    """Check that ninja is in the build environment, and that the one that will run answers."""
    home = subject.cache / "toolchains" / environment_key(subject.recipe, subject.torch) / "venv/bin/ninja"
    if home.exists():
        code, text = capture([home, "--version"], environment=subject.environment)
        return (
            ok(f"ninja {text.strip()} ({home})")
            if code == 0
            else blocked(f"{home} does not run", f"rm -rf {home.parents[2]}")
        )
    if "ninja" in subject.locked:
        return ok(f"ninja {subject.locked['ninja']} of the lock file will run, whatever is on PATH")
    return blocked("ninja is not in the lock file", "add ninja to toolchain.build_requirements, then nox -s upgrade")


@check("no-isolation-missing-build-deps")
def build_requirements(subject: Subject) -> Result:
    """Check that the lock file holds all that the recipe needs to build."""
    missing = []
    for text in subject.recipe.toolchain.build_requirements:
        item = Requirement(text)
        have = subject.locked.get(item.name.lower().replace("_", "-"))
        if have is None or not item.specifier.contains(have, prereleases=True):
            missing.append(f"{text} (locked: {have or 'no'})")
    if missing:
        return blocked(f"the lock file lacks {', '.join(missing)}", "nox -s upgrade")
    return ok(f"{len(subject.recipe.toolchain.build_requirements)} build requirements are locked")


@check("isolation-redownloads-other-torch")
def one_torch(subject: Subject) -> Result:
    """Check that there is one torch: the recipe's, in the lock file and in an environment that was named."""
    wanted = subject.recipe.torch
    if subject.torch:
        return ok(f"one torch: {subject.torch.version} of {subject.torch.python} for CUDA {wanted.cuda}")
    locked = subject.locked.get("torch")
    if locked is None:
        return unknown("the lock file has no torch: it is checked once installed")
    if locked.split("+")[0] != wanted.version:
        return blocked(f"the lock file has torch {locked}, the recipe wants {wanted.version}", "nox -s upgrade")
    if subject.python:
        have = read_environment(subject.python)
        version = have.versions.get("torch")
        if version and (version.split("+")[0] != wanted.version or have.torch_cuda != wanted.cuda):
            text = (
                f"{subject.python} has torch {version} (CUDA {have.torch_cuda or 'none'}); "
                f"the build would download torch {wanted.version} for CUDA {wanted.cuda}, about 5 GB"
            )
            return blocked(
                text,
                f"leave --python out: wheelsmith uses one torch of its own; or pip install torch=={wanted.version}",
            )
    return ok(f"one torch: {wanted.version} for CUDA {wanted.cuda}")


@check("torch-lacks-float8-e8m0fnu")
def float8(subject: Subject) -> Result:
    """Check that torch has the type Float8_e8m0fnu, by version and in the headers of an environment that was named."""
    if subject.torch:
        if names_float8(subject.torch.include):
            return ok(f"the headers of torch {subject.torch.version} name Float8_e8m0fnu")
        return warning(
            f"the headers of torch {subject.torch.version} do not name Float8_e8m0fnu",
            "take torch 2.7 or newer: the build stops before it compiles when the source needs the type",
        )
    result = _at_least(subject, "torch", FLOAT8, f"{_pip(subject)} torch=={subject.recipe.torch.version}")
    if result.verdict.value != "ok" or not subject.python:
        return result
    torch = read_environment(subject.python).torch
    if torch and (torch / "include").is_dir() and not names_float8(torch / "include"):
        return blocked(
            f"the headers of torch in {torch} do not name Float8_e8m0fnu",
            f"{_pip(subject)} torch=={subject.recipe.torch.version}",
        )
    return result


@check("unknown-runtime-environment")
def torch_with_cuda(subject: Subject) -> Result:
    """Check that the torch of an environment that was named is a CUDA build."""
    if subject.torch:
        return ok(f"torch {subject.torch.version} for CUDA {subject.torch.cuda}, which {subject.torch.python} imports")
    if not subject.python:
        return ok(f"torch of the lock file is for CUDA {subject.recipe.torch.cuda}; it says more once installed")
    have = read_environment(subject.python)
    if have.torch is None:
        return unknown(f"{subject.python} has no torch")
    if not have.torch_cuda:
        return blocked(
            f"{subject.python} has torch {have.versions['torch']}, a build without CUDA",
            "leave --python out: wheelsmith brings a CUDA torch",
        )
    return ok(f"torch {have.versions['torch']} for CUDA {have.torch_cuda}")


@check("hpcx-libs-removed-from-ngc")
def torch_libraries(subject: Subject) -> Result:
    """Check that the libraries beside CUDA that an environment's torch is linked to (HPC-X in NGC images) are there."""
    torch = _torch(subject)
    if torch is None:
        return ok("torch of the package index needs no HPC-X")
    missing = sorted(_hpcx_needed(torch / "lib", _search_path(subject)))
    if missing:
        return blocked(
            f"torch in {torch} needs {', '.join(missing)}, and it is nowhere",
            "restore /opt/hpcx (start from the image anew), or use the index's torch",
        )
    return ok(f"torch in {torch} finds its MPI and UCX libraries, or needs none")


def _torch(subject: Subject) -> Path | None:
    """Return the package torch that is compiled against, or of an environment that was named."""
    if subject.torch:
        return subject.torch.root / "torch"
    return read_environment(subject.python).torch if subject.python else None


def _search_path(subject: Subject) -> list[Path]:
    named = [Path(part) for part in subject.environment.get("LD_LIBRARY_PATH", "").split(":") if part]
    usual = [
        subject.system / part for part in ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "lib64", "usr/local/lib")
    ]
    return [*named, *usual, *sorted((subject.system / "opt/hpcx").glob("*/lib"))]


def _hpcx_needed(folder: Path, search: list[Path]) -> set[str]:
    missing = set()
    for library in folder.glob("*.so*"):
        try:
            with open_elf(library) as elf:
                dynamic = read_dynamic(elf)
        except WheelsmithError:
            continue
        own = [Path(part.replace("$ORIGIN", str(folder))) for part in dynamic.rpath]
        for name in dynamic.needed:
            known = re.match(r"lib(mpi|ucc|ucs|ucp|uct|ucm|oshmem|open-rte|open-pal)\w*\.so", name)
            if known and not any((place / name).exists() for place in [*own, *search]):
                missing.add(name)
    return missing


@check("libtorch-cuda-missing")
def torch_cuda_library(subject: Subject) -> Result:
    """Check that an environment's torch has the library of its CUDA half."""
    torch = read_environment(subject.python).torch if subject.python else None
    if torch is None or not read_environment(subject.python or Path()).torch_cuda:
        return ok("no environment with a CUDA torch was named")
    library = torch / "lib/libtorch_cuda.so"
    return (
        ok(str(library))
        if library.exists()
        else blocked(f"{library} is missing", f"{_pip(subject)} --force-reinstall torch")
    )


@check("torchvision-op-mismatch")
def torchvision(subject: Subject) -> Result:
    """Check that torch and torchvision of an environment that was named are builds for one CUDA."""
    versions = read_environment(subject.python).versions if subject.python else {}
    vision, torch = versions.get("torchvision"), versions.get("torch")
    if not vision or not torch:
        return ok("no torchvision is involved")
    parts = [text.split("+")[1] if "+" in text else "" for text in (torch, vision)]
    text = f"torch {torch}, torchvision {vision}"
    return ok(text) if parts[0] == parts[1] else blocked(text, "install both in one command from one index")


@check("cxx11-abi-flag-mismatch")
def abi(subject: Subject) -> Result:
    """Check that the recipe's torch is one with the C++11 ABI, as g++ makes it."""
    if theirs := judged(subject, "cxx11-abi-flag-mismatch", "the installed torch has the C++11 ABI"):
        return theirs
    old = Version(subject.recipe.torch.version) < FLOAT8
    return (
        blocked(f"torch {subject.recipe.torch.version} may have the old ABI")
        if old
        else ok("the recipe's torch has the C++11 ABI")
    )
