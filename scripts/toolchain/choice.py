"""Which CUDA toolkit a recipe gets: an installed one, NVIDIA's archives, or (CUDA 13) the package index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.core.console import human_bytes
from scripts.core.errors import ToolchainError, WheelsmithError
from scripts.downloads.access import Access
from scripts.recipe.model import Recipe
from scripts.toolchain.installed import USR_LOCAL, Rejected, find_system_toolkit, need_system_toolkit, ways_to_get
from scripts.toolchain.redist import provide_redist

if TYPE_CHECKING:
    from scripts.downloads.download import Client

DOCS = "docs/production.md#toolkit"


@dataclass(frozen=True)
class CudaToolkit:
    """A toolkit outside the build environment, not verified yet."""

    home: Path
    origin: str
    """For the report: `CUDA_HOME=/opt/cuda`, `redist 12.8.1`."""
    rejected: tuple[Rejected, ...] = ()


def needs_packages(recipe: Recipe) -> bool:
    """Whether the recipe's toolkit comes with its build environment. Raises ToolchainError for CUDA 12 from there."""
    kind, cuda = recipe.toolchain.kind, recipe.toolchain.cuda
    if kind == "pypi" and cuda.startswith("12."):
        raise ToolchainError(
            f"toolchain.kind 'pypi' cannot provide CUDA {cuda}",
            why="the wheels of nvidia-cuda-nvcc-cu12 hold ptxas and libnvvm, but no nvcc; those of CUDA 13 do",
            fix=ways_to_get(cuda),
            docs=DOCS,
        )
    return kind == "pypi" or (kind == "auto" and bool(recipe.toolchain.cuda_packages))


def provide_cuda(recipe: Recipe, client: Client, access: Access, *, prefix: Path = USR_LOCAL) -> CudaToolkit:
    """Return the toolkit of a recipe of kind `system`, `redist` or `auto`.

    Raises ToolchainError or FetchError that says what was rejected and what else can be done.
    """
    kind, cuda = recipe.toolchain.kind, recipe.toolchain.cuda
    if kind == "installed":  # whoever builds against it has adopted the recipe to it (adopt.py)
        raise ToolchainError(
            f"the recipe {recipe.name} is for an installed torch, which this command does not take",
            fix="name a recipe whose toolchain is locked; wheel and doctor take an installed torch",
            docs="docs/installed-torch.md",
        )
    if kind == "system":
        system = need_system_toolkit(cuda, access.environment, prefix=prefix)
    else:
        system = find_system_toolkit(cuda, access.environment, prefix=prefix)
    if kind != "redist" and system.home is not None:
        access.console.note(f"CUDA {cuda}: {system.home} ({system.place})")
        return CudaToolkit(system.home, system.place, system.rejected)
    redist = recipe.toolchain.redist
    if redist is None:
        raise ToolchainError(
            f"recipe {recipe.name} does not say which archives to take", fix="add [toolchain.redist]", docs=DOCS
        )
    for item in system.rejected if kind == "auto" else ():
        access.console.note(f"not CUDA {cuda}: {item.place}: {item.why}")
    try:
        toolkit = provide_redist(redist, client, access)
    except WheelsmithError as error:
        raise _neither(error, cuda, system.rejected) from error
    access.console.note(
        f"CUDA {redist.release}: NVIDIA's archives ({human_bytes(toolkit.size)}) in {toolkit.cuda_home}"
    )
    return CudaToolkit(toolkit.cuda_home, f"redist {redist.release}", system.rejected)


def _neither(error: WheelsmithError, cuda: str, rejected: tuple[Rejected, ...]) -> ToolchainError:
    shown = "; ".join(f"{item.place}: {item.why}" for item in rejected)
    return ToolchainError(
        f"no CUDA {cuda} is installed, and NVIDIA's archives could not be fetched",
        why=f"{error.what} ({error.why})" + (f"; looked at {shown}" if shown else ""),
        fix=[*ways_to_get(cuda)[1:], *error.fix],
        docs=DOCS,
    )
