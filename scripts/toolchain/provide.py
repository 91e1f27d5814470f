"""Stage toolchain: one build environment with torch, nvcc, cmake and ninja, verified before anything is compiled.

`kind = "pypi"`: NVIDIA's compiler wheels come with torch's own CUDA wheels into `site-packages/nvidia/cu13`, which is
not yet a CUDA_HOME: versioned sonames only, no `lib64`, no libcuda stub, and nvcc finds its root from the real path of
its binary. `shape_cuda_home` makes one of hard links (no extra disk). See docs/toolchain.md.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scripts.core.console import human_seconds
from scripts.core.errors import ToolchainError
from scripts.core.files import digest, file_sha256, write_json
from scripts.core.process import capture
from scripts.cuda.archs import Arch
from scripts.downloads.access import Access
from scripts.downloads.download import open_client
from scripts.recipe.model import Recipe
from scripts.toolchain.choice import needs_packages, provide_cuda
from scripts.toolchain.cuda_home import shape_cuda_home
from scripts.toolchain.environments import forget_damaged, make_environment, recorded_digests, site_packages
from scripts.toolchain.installed_torch import InstalledTorch
from scripts.toolchain.layered import LINK, make_layers
from scripts.toolchain.verify import verify_toolchain

SHAPE = 3  # raise when the layout of a toolchain in the cache changes
CUDA_13_ROOT = "nvidia/cu13"  # below site-packages, in the wheels of CUDA 13


@dataclass(frozen=True)
class HostCompiler:
    """The C++ compiler that nvcc and CMake use."""

    path: Path
    version: str
    """First line of its --version."""


@dataclass(frozen=True)
class Toolchain:
    """A verified build environment."""

    key: str
    environment: Path
    """Virtual environment with torch, cmake, ninja, setuptools and build."""
    cuda_home: Path
    host: HostCompiler
    versions: dict[str, str]
    """Installed distributions by name."""
    cuda_origin: str
    """Where the CUDA toolkit comes from: `package wheels`, `CUDA_HOME=/opt/cuda`, `redist 12.8.1`."""
    torch: InstalledTorch | None = None
    """The torch that lies behind the environment's own packages; None when it is one of them."""

    @property
    def site_packages(self) -> Path:
        """Where the environment's packages are."""
        return site_packages(self.environment)

    @property
    def torch_link(self) -> Path | None:
        """The link to an installed torch, beside the environment."""
        return self.environment.parent / LINK if self.torch else None

    @property
    def python_include(self) -> Path:
        """The headers of the environment's Python."""
        return self.torch.python_include if self.torch else Path(sysconfig.get_paths()["include"])

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.environment / "bin" / "python"

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables in which cmake, ninja, nvcc and setup.py are run.

        What could bring in another toolkit or other headers (CPATH, LD_LIBRARY_PATH, PYTHONPATH, …) is left out.
        """
        strange = re.compile(
            r"(CUDA|NVCC|CMAKE|VLLM|TORCH|CONDA|PYTHON|SCCACHE|CCACHE|PIP|UV|NOX|COVERAGE|LANG|LC)_?.*"
        )
        single = {"CPATH", "CPLUS_INCLUDE_PATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
        kept = {k: v for k, v in base.items() if not strange.fullmatch(k) and k not in single | {"CC", "CXX", "CFLAGS"}}
        if self.torch and self.torch.library_path:  # with which it could be imported
            kept["LD_LIBRARY_PATH"] = self.torch.library_path
        path = [self.environment / "bin", self.cuda_home / "bin", base.get("PATH", os.defpath)]
        return {
            **kept,
            "PATH": os.pathsep.join(str(part) for part in path),
            "CUDA_HOME": str(self.cuda_home),
            "VIRTUAL_ENV": str(self.environment),
            "CXX": str(self.host.path),
            "LANG": "C.UTF-8",  # ccache has it in its keys, and known failures are known by their English words
            "PYTHONNOUSERSITE": "1",
            "PYTHONHASHSEED": "0",
            "VLLM_DISABLE_SCCACHE": "1",
        }


def provide_toolchain(
    recipe: Recipe,
    archs: Sequence[Arch],
    access: Access,
    torch: InstalledTorch | None = None,
) -> Toolchain:
    """Return the recipe's toolchain, installed and verified once per (lock file, Python, compiler, archs).

    `torch`: the installed one that the recipe was adopted to (adopt.py); only the tools are installed then.
    Raises ToolchainError when something is missing or not what the recipe says.
    """
    host = find_host_compiler(access.environment)
    check_python_headers(torch)
    cache, console = access.cache, access.console
    where = f" of {torch.python}" if torch else ""
    console.stage("toolchain", f"torch {recipe.torch.version}{where}, CUDA {recipe.toolchain.cuda}, {host.version}")
    key = environment_key(recipe, torch)
    place = cache.place("toolchains", key, kind=ToolchainError)
    outside = None
    if not needs_packages(recipe):  # before the large download: it may not be there
        with open_client(access) as client:
            outside = provide_cuda(recipe, client, access)

    def make(target: Path) -> None:
        if torch:
            install = partial(make_environment, access=access, base=torch.python)
            seconds = make_layers(target, recipe.lock_file, torch, cuda=outside is None, install=install)
        else:
            console.note(
                f"first use: downloads about {recipe.cost.download_gb if recipe.cost else 3:.1f} GB "
                "(torch and the CUDA wheels it needs) unless uv has them in its cache"
            )
            seconds = make_environment(target / "venv", recipe.lock_file, access)
        if outside is None:
            shape_cuda_home(site_packages(target / "venv") / CUDA_13_ROOT, target / "cuda", compiler=host.path)
        console.note(f"installed in {human_seconds(seconds)}")

    cache.once(
        "toolchains",
        key,
        make,
        console=console,
        kind=ToolchainError,
        changing=("verified-*.json",),
        known=lambda made: recorded_digests(site_packages(made / "venv")),
        mourn=lambda old, found: forget_damaged(
            site_packages(old / "venv"), [old / change.path for change in found], access
        ),
    )
    versions = installed_versions(place / "venv", torch)
    if outside is None:
        toolchain = Toolchain(key, place / "venv", place / "cuda", host, versions, "package wheels", torch)
    else:
        joined = digest([key, str(outside.home.resolve()), outside.origin])
        toolchain = Toolchain(joined, place / "venv", outside.home, host, versions, outside.origin, torch)
    with cache.lock(f"verify-{key}", console, kind=ToolchainError):
        _verify_once(toolchain, recipe, archs, place, access)
    return toolchain


def environment_key(recipe: Recipe, torch: InstalledTorch | None = None) -> str:
    """Return the key of a recipe's build environment for the Python that runs this, or over an installed torch."""
    shape = SHAPE if needs_packages(recipe) else [SHAPE, "without CUDA"]
    if torch:
        layers = [torch.key, torch.python_version[:2], torch.python_base, torch.platform, list(map(str, torch.path))]
        return digest([shape, file_sha256(recipe.lock_file), layers])
    python = [sys.version_info[:2], sys.base_prefix, sysconfig.get_platform()]
    return digest([shape, file_sha256(recipe.lock_file), python])


def _verify_once(toolchain: Toolchain, recipe: Recipe, archs: Sequence[Arch], place: Path, access: Access) -> None:
    host = [str(toolchain.host.path), toolchain.host.version]
    known = digest([toolchain.key, *host, [str(arch) for arch in archs]])
    marker = place / f"verified-{known}.json"
    if marker.exists():
        return
    found = verify_toolchain(toolchain, recipe, archs, access.environment, toolchain.torch)
    access.console.note(
        f"verified: nvcc {found['nvcc']}, torch {found['torch']} with CUDA {found['torch_cuda']}, "
        f"a kernel compiled and linked for {found['archs']}"
    )
    write_json(marker, found)


def installed_versions(venv: Path, torch: InstalledTorch | None = None) -> dict[str, str]:
    """Return name and version of every distribution installed in an environment, a torch behind it included."""
    found = {"torch": torch.name} if torch else {}
    for name, version in (torch.packages if torch else {}).items():
        if re.match(r"(nvidia|cuda|triton|pytorch-triton)\b", name, re.IGNORECASE):
            found[name.replace("_", "-").lower()] = version
    for folder in site_packages(venv).glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[name.replace("_", "-").lower()] = version
    return dict(sorted(found.items()))


def find_host_compiler(environment: Mapping[str, str]) -> HostCompiler:
    """Return the C++ compiler: CXX, else g++, c++ or clang++ on PATH. Raises ToolchainError."""
    words = environment.get("CXX", "").split()
    named = [word for word in words if Path(word).name not in {"ccache", "sccache"}][:1]
    for name in named or ["g++", "c++", "clang++"]:
        path = shutil.which(name, path=environment.get("PATH", os.defpath))
        code, text = capture([path, "--version"], environment=environment) if path else (127, "")
        if path and code == 0 and text:
            return HostCompiler(Path(path), text.splitlines()[0].strip())
    raise ToolchainError(
        f"no C++ compiler: {'CXX names ' + named[0] + ', which does not run' if named else 'g++ is not on PATH'}",
        why="nvcc needs one for the host side of every kernel",
        fix=[
            "apt-get install g++   (Debian, Ubuntu)",
            "dnf install gcc-c++   (Fedora, RHEL)",
            "CXX=/path/to/g++ nox -s wheel -- ...",
        ],
    )


def check_python_headers(torch: InstalledTorch | None = None, include: str | None = None) -> None:
    """Refuse an interpreter without Python.h: the one of an installed torch, else this one. Raises ToolchainError."""
    folder = torch.python_include if torch else Path(include or sysconfig.get_paths()["include"])
    if not (folder / "Python.h").is_file():
        version = ".".join(str(part) for part in (torch.python_version if torch else sys.version_info)[:2])
        raise ToolchainError(
            f"Python {version} has no headers: {folder}/Python.h is missing",
            why="the extensions of vLLM are compiled against them",
            fix=[
                f"apt-get install python{version}-dev   (Debian, Ubuntu)",
                "dnf install python3-devel   (Fedora, RHEL)",
            ],
        )


def toolchain_report(toolchain: Toolchain) -> dict[str, Any]:
    """Return what the wheel's report says of the toolchain."""
    wanted = (
        "torch",
        "cmake",
        "ninja",
        "setuptools",
        "build",
        "wheel",
        "nvidia-cuda-nvcc",
        "nvidia-nvvm",
        "cuda-toolkit",
    )
    return {
        "key": toolchain.key,
        "python": sys.version.split()[0],
        "host_compiler": toolchain.host.version,
        "cuda": toolchain.cuda_origin,
        "packages": {name: toolchain.versions[name] for name in wanted if name in toolchain.versions},
    }
