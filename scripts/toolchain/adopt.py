"""From a recipe and an installed torch to the recipe that is built: its torch, and the CUDA toolkit that fits it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from scripts.core.errors import ToolchainError
from scripts.cuda.archs import Arch
from scripts.recipe.fitting import without_what_is_too_new
from scripts.recipe.model import Component, Recipe, Torch
from scripts.toolchain.installed import USR_LOCAL, find_fitting_toolkit
from scripts.toolchain.installed_torch import DOCS, INSTALLED, InstalledTorch, find_torch
from scripts.toolchain.torch import FLOAT8_TYPE, names_float8, runs_on

OLDEST_PYTHON = (3, 10)
OLDEST_STANDARD = 17  # of C++: of all torches that can be compiled against
NEEDED = (
    "include/torch/csrc/api/include/torch/all.h",
    "include/ATen/ATen.h",
    "include/ATen/cuda/CUDAContext.h",
    "include/c10/cuda/CUDAStream.h",
    "lib/libtorch_cuda.so",
    "lib/libc10_cuda.so",
    "share/cmake/Torch/TorchConfig.cmake",
)
"""What compiling and linking an extension reads of the package torch."""
STABLE = "include/torch/csrc/stable/library.h"
SOURCES = {".cu", ".cuh", ".cpp", ".h", ".hpp"}


@dataclass(frozen=True)
class Problem:
    """Why a torch cannot be compiled against."""

    id: str
    """The failure of the catalogue that it would be."""
    what: str
    fix: str


def adopt(
    recipe: Recipe, choice: str, environment: Mapping[str, str], *, prefix: Path = USR_LOCAL
) -> tuple[Recipe, InstalledTorch | None]:
    """Return the recipe as it is built against the torch of `choice` ("" leaves it to the recipe), and that torch.

    The toolkit is an installed one of torch's CUDA, else of its major version, else the compiler wheels that the
    recipe's lock file brings. Raises ToolchainError.
    """
    named = choice or (recipe.toolchain.python or INSTALLED if recipe.toolchain.kind == "installed" else "")
    if not named:
        return recipe, None
    torch = find_torch(named, environment)
    if not torch.cuda:
        raise ToolchainError(
            f"torch {torch.version} of {torch.python} is a build without CUDA",
            why="kernels for a GPU cannot be compiled against it",
            fix=[
                "install a CUDA build of torch there, or name another interpreter: --torch /opt/venv/bin/python",
                "leave --torch out: wheelsmith then installs the torch that the recipe pins, apart from yours",
            ],
            docs=DOCS,
        )
    kind, cuda = _toolkit(recipe, torch, environment, prefix)
    update = {
        "torch": Torch.model_construct(version=torch.name, cuda=torch.cuda),
        "toolchain": recipe.toolchain.model_copy(update={"kind": kind, "cuda": cuda, "python": ""}),
        "pinned_torch": recipe.torch.version,
    }
    return without_what_is_too_new(recipe.model_copy(update=update)), torch


def _toolkit(recipe: Recipe, torch: InstalledTorch, environment: Mapping[str, str], prefix: Path) -> tuple[str, str]:
    """Return (kind, CUDA release) of the toolkit for a torch. Raises ToolchainError when there is none."""
    found = find_fitting_toolkit(torch.cuda, environment, prefix=prefix)
    if found.home:
        return "system", found.release
    major = torch.cuda.split(".")[0]
    if recipe.toolchain.cuda_packages and recipe.toolchain.cuda.split(".")[0] == major:
        return "pypi", recipe.toolchain.cuda
    raise ToolchainError(
        f"no CUDA {major} toolkit is installed, and torch {torch.version} is built with CUDA {torch.cuda}",
        why="looked at: " + "; ".join(f"{item.place}: {item.why}" for item in found.rejected),
        fix=[
            f"install CUDA {torch.cuda} (nvcc and headers) and name it: CUDA_HOME=/usr/local/cuda-{torch.cuda}",
            f"any CUDA {major}.x will do; another major version's kernels do not load beside this torch",
        ],
        docs=DOCS,
    )


def problems(torch: InstalledTorch, recipe: Recipe, archs: Iterable[Arch]) -> Iterator[Problem]:
    """Yield all that makes compiling against a torch fail, or what comes out of it."""
    where = f"torch {torch.version} of {torch.python}"
    again = f"install that torch again: {torch.python} -m pip install --force-reinstall torch=={torch.name}"
    if torch.python_version[:2] < OLDEST_PYTHON:
        shown = ".".join(map(str, torch.python_version))
        yield Problem("python-version-out-of-range", f"{torch.python} is Python {shown}", "take Python 3.10 or newer")
    if not torch.cxx11_abi:
        text = f"{where} has the C++ ABI from before C++11: kernels that g++ compiles would not find its symbols"
        yield Problem("cxx11-abi-flag-mismatch", text, "take a torch of 2.7 or newer, or a build with the C++11 ABI")
    if (standard := cxx_standard(torch)) > recipe.toolchain.host.cxx:
        text = f"{where} needs C++{standard}, and {recipe.name} compiles its source as C++{recipe.toolchain.host.cxx}"
        fix = f"take an older torch: the recipe pins {recipe.pinned_torch or recipe.torch.version}; or a newer source"
        yield Problem("torch-needs-cxx20", text, fix)
    needed = [*NEEDED, *([STABLE] if Component.CORE_STABLE in recipe.components else [])]
    gone = [name for name in needed if not (torch.root / "torch" / name).is_file()]
    gone += [name for name in torch.changed if not (torch.root / name).exists()]
    if gone:
        names = list(dict.fromkeys(name.removeprefix("torch/") for name in gone))
        more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
        yield Problem("torch-header-gone", f"{where} lacks {', '.join(names[:3])}{more} in {torch.root}/torch", again)
    if missing := [arch for arch in archs if not runs_on(torch.archs, arch)]:
        text = f"{where} has no kernels that run on {', '.join(map(str, missing))}: it has {' '.join(torch.archs)}"
        yield Problem("torch-not-built-for-gpu", text, "leave the arch out of --arch, or take another torch")


def cxx_standard(torch: InstalledTorch) -> int:
    """Return the C++ standard that a torch's headers ask for, 17 where they do not say.

    ATen/ATen.h has an #error for it, which says C++17 in torch 2.12 and 2.13 and C++20 in 2.14 (read there).
    """
    header = torch.root / "torch" / "include" / "ATen" / "ATen.h"
    text = header.read_text(encoding="utf-8", errors="replace") if header.is_file() else ""
    found = re.search(r"^\s*#\s*error\s+C\+\+(\d\d) or later", text, re.MULTILINE)
    return int(found[1]) if found else OLDEST_STANDARD


def check(torch: InstalledTorch, recipe: Recipe, archs: Sequence[Arch], source: Path) -> None:
    """Refuse what `problems` finds, and a torch without the type that a source tree names. Raises ToolchainError."""
    found = list(problems(torch, recipe, archs))
    if found:
        raise ToolchainError(
            f"torch {torch.version} of {torch.python} cannot be compiled against",
            why="; ".join(item.what for item in found),
            fix=list(dict.fromkeys(item.fix for item in found)),
            docs=DOCS,
        )
    if not names_float8(torch.include) and (file := wants_float8(source)):
        raise ToolchainError(
            f"torch {torch.version} of {torch.python} has no type {FLOAT8_TYPE}",
            why=f"{file} of {recipe.package.name} {recipe.package.version} needs it; torch has it from 2.7 on",
            fix=f"take a newer torch; the recipe {recipe.name} pins {recipe.pinned_torch or recipe.torch.version}",
            docs=DOCS,
        )


def wants_float8(source: Path) -> str:
    """Return the first file of upstream's kernels that names the type Float8_e8m0fnu, "" when none does."""
    for path in sorted((source / "csrc").rglob("*")):
        if path.suffix in SOURCES and FLOAT8_TYPE in path.read_text(encoding="utf-8", errors="replace"):
            return str(path.relative_to(source))
    return ""


def other_torch(recipe: Recipe) -> str:
    """Return in words how an adopted torch differs from upstream's pin, "" when it does not."""
    if not recipe.pinned_torch or _release(recipe.torch.version) == _release(recipe.pinned_torch):
        return ""
    return (
        f"{recipe.package.name} {recipe.package.version} is made for torch {recipe.pinned_torch}; "
        f"this is torch {recipe.torch.version}"
    )


def _release(version: str) -> str:
    try:
        return Version(version).public
    except InvalidVersion:
        return re.split(r"[+]", version, maxsplit=1)[0]
