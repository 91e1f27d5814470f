"""An installed CUDA toolkit: the first whose nvcc is exactly the recipe's CUDA, and why the others are not it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.core.errors import ToolchainError
from scripts.toolchain.verify import nvcc_release

USR_LOCAL = Path("/usr/local")


@dataclass(frozen=True)
class Rejected:
    """A place that was looked at and is not the toolkit wanted."""

    place: str
    """Where it came from: `CUDA_HOME=/opt/cuda`."""
    why: str


@dataclass(frozen=True)
class SystemToolkit:
    """What the search found; `home` is None when nothing fits."""

    home: Path | None
    place: str
    rejected: tuple[Rejected, ...]
    release: str = ""
    """CUDA of its nvcc: `12.8`."""


def find_system_toolkit(cuda: str, environment: Mapping[str, str], *, prefix: Path = USR_LOCAL) -> SystemToolkit:
    """Look for CUDA `cuda` (`12.8`): CUDA_HOME, CUDA_PATH, /usr/local/cuda-X.Y, /usr/local/cuda, nvcc on PATH."""
    rejected: list[Rejected] = []
    seen: set[Path] = set()
    for place, home in _places(cuda, environment, prefix):
        real = home.resolve()
        if real in seen:
            continue
        seen.add(real)
        why = _why_not(home, cuda, environment)
        if not why:
            return SystemToolkit(home, place, tuple(rejected), cuda)
        rejected.append(Rejected(place, why))
    return SystemToolkit(None, "", tuple(rejected))


def find_fitting_toolkit(cuda: str, environment: Mapping[str, str], *, prefix: Path = USR_LOCAL) -> SystemToolkit:
    """Look in the same places for CUDA `cuda`, else for the first of its major version."""
    found = find_system_toolkit(cuda, environment, prefix=prefix)
    if found.home is not None:
        return found
    for place, home in _places(cuda, environment, prefix):
        try:
            release = nvcc_release(home / "bin" / "nvcc", environment)
        except ToolchainError:
            continue
        if release.partition(".")[0] == cuda.partition(".")[0] and not _why_not(home, release, environment):
            return SystemToolkit(home, place, found.rejected, release)
    return found


def need_system_toolkit(cuda: str, environment: Mapping[str, str], *, prefix: Path = USR_LOCAL) -> SystemToolkit:
    """Return the system's toolkit. Raises ToolchainError that lists what was rejected and the ways to get one."""
    found = find_system_toolkit(cuda, environment, prefix=prefix)
    if found.home is None:
        raise ToolchainError(
            f"no CUDA {cuda} is installed",
            why="looked at: " + "; ".join(f"{item.place}: {item.why}" for item in found.rejected),
            fix=ways_to_get(cuda),
            docs="docs/production.md#toolkit",
        )
    return found


def ways_to_get(cuda: str) -> list[str]:
    """Return what a user can do to have CUDA `cuda`, the easiest first."""
    return [
        "let wheelsmith fetch NVIDIA's archives into its cache (no root): toolchain.kind = 'redist' or 'auto'",
        f"install CUDA {cuda} beside what you have and name it: CUDA_HOME=/usr/local/cuda-{cuda}",
        f"run in NVIDIA's image nvidia/cuda:{cuda}.1-devel-ubuntu22.04 (docs/production.md has the line)",
    ]


def _places(cuda: str, environment: Mapping[str, str], prefix: Path) -> Iterator[tuple[str, Path]]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if value := environment.get(variable):
            yield f"{variable}={value}", Path(value)
    for folder in (prefix / f"cuda-{cuda}", prefix / "cuda"):
        yield str(folder), folder
    for part in environment.get("PATH", "").split(os.pathsep):
        nvcc = Path(part) / "nvcc"
        if part and nvcc.exists():
            yield f"{nvcc} on PATH", nvcc.resolve().parent.parent


def _why_not(home: Path, cuda: str, environment: Mapping[str, str]) -> str:
    nvcc = home / "bin" / "nvcc"
    if not home.is_dir():
        return "there is no such folder"
    if not nvcc.is_file() or not os.access(nvcc, os.X_OK):
        return "it has no bin/nvcc"
    try:
        release = nvcc_release(nvcc, environment)
    except ToolchainError as error:
        return f"its nvcc does not run ({error.why or error.what})"
    if release != cuda:
        return f"its nvcc is of CUDA {release}, not {cuda}"
    if not any((home / part / "cuda_runtime.h").is_file() for part in ("include", "targets/x86_64-linux/include")):
        return "it has no headers (include/cuda_runtime.h): only the runtime is installed"
    return ""
