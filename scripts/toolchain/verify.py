"""Checks of a toolchain before the first unit: versions agree, and a kernel compiles and links for every arch."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from scripts.core.errors import ToolchainError
from scripts.core.process import capture
from scripts.cuda.archs import Arch, arch_list
from scripts.recipe.model import Recipe
from scripts.toolchain.installed_torch import InstalledTorch
from scripts.toolchain.torch import check_layers, check_torch, torch_facts

_KERNEL = """#include <cuda.h>
#include <cuda_runtime.h>
__global__ void twice(float *x) { x[threadIdx.x] *= 2; }
int main() { twice<<<1, 32>>>(nullptr); return cudaGetLastError() == cudaSuccess; }
"""


class Tools(Protocol):
    """What is verified: a Python with torch and a CUDA_HOME."""

    @property
    def python(self) -> Path:
        """The environment's interpreter."""

    @property
    def cuda_home(self) -> Path:
        """The toolkit's root."""

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        """Environment for running the tools."""


def verify_toolchain(
    tools: Tools,
    recipe: Recipe,
    archs: Sequence[Arch],
    environment: Mapping[str, str],
    installed: InstalledTorch | None = None,
) -> dict[str, str]:
    """Return what was found, checked against the recipe; `environment` is the user's. Raises ToolchainError.

    `installed`: the torch that must be the one that the tools import; what it is for was checked in adopt.py.
    """
    variables = tools.variables(environment)
    nvcc = nvcc_release(tools.cuda_home / "bin" / "nvcc", variables)
    if nvcc != recipe.toolchain.cuda:
        raise ToolchainError(
            f"nvcc is of CUDA {nvcc}, the recipe {recipe.name} wants {recipe.toolchain.cuda}",
            why=f"{tools.cuda_home} is another toolkit",
            fix="renew the recipe's lock file (nox -s upgrade) or correct toolchain.cuda",
        )
    torch = torch_facts(tools.python, variables)
    if installed is None:
        check_torch(torch, recipe.torch, archs)
    else:
        check_layers(torch, installed)
    compile_kernel(tools.cuda_home / "bin" / "nvcc", archs, variables)
    return {"nvcc": nvcc, "torch": torch.version, "torch_cuda": torch.cuda, "archs": arch_list(archs)}


def nvcc_release(nvcc: Path, environment: Mapping[str, str]) -> str:
    """Return the CUDA release (`13.0`) that an nvcc reports. Raises ToolchainError."""
    code, text = capture([nvcc, "--version"], environment=environment)
    match = re.search(r"release (\d+\.\d+)", text)
    if code or not match:
        raise ToolchainError(f"{nvcc} does not run", why=text.strip()[-300:], fix="delete the toolchain and run again")
    return match[1]


def gencode(arch: Arch) -> list[str]:
    """Return nvcc's options for an arch: a cubin, and PTX when the arch has +PTX."""
    options = ["-gencode", f"arch={arch.compute},code={arch.sm}"]
    return [*options, "-gencode", f"arch={arch.compute},code={arch.compute}"] if arch.ptx else options


def compile_kernel(nvcc: Path, archs: Sequence[Arch], environment: Mapping[str, str]) -> None:
    """Compile and link a two-line kernel for all archs with the host compiler in CXX. Raises ToolchainError."""
    host = environment["CXX"]
    with tempfile.TemporaryDirectory(prefix="wheelsmith-") as folder:
        source = Path(folder) / "kernel.cu"
        source.write_text(_KERNEL)
        options = [option for arch in archs for option in gencode(arch)]
        command: list[str | Path] = [nvcc, "-ccbin", host, *options, source, "-o", Path(folder) / "kernel", "-lcuda"]
        command += [f"-L{nvcc.parent.parent}/lib64/stubs"]
        values = {**environment, "TMPDIR": folder}  # nvcc leaves its files there when it is killed
        code, text = capture(command, environment=values, timeout=600, scratch=Path(folder))
    if code == 0:
        return
    why, fix = f"host compiler {host}", ["read the compiler's output above"]
    if "unsupported GNU version" in text or "unsupported clang version" in text:
        why = f"{host} is newer than this nvcc accepts"
        fix = ["install an older g++ beside it (apt-get install g++-13) and name it: CXX=g++-13"]
    elif "Unsupported gpu architecture" in text:
        why, fix = (
            "this nvcc does not know one of the archs",
            ["leave the arch out, or take a recipe with a newer CUDA"],
        )
    elif "No space left" in text:
        why, fix = f"no space left in {tempfile.gettempdir()}", ["free space there, or point TMPDIR at a larger disk"]
    raise ToolchainError(
        f"a two-line kernel does not compile for {arch_list(archs)}", why=why, fix=fix, detail=text.strip()[-3000:]
    )
