"""CUDA releases: the driver each came with, the PTX version its compiler writes; and targets, a GPU with a driver.

Three rules decide whether a driver runs a wheel:

- SASS runs on every driver of the same CUDA major version or a later one ("minor version compatibility"), if the
  driver knows the GPU at all: CUDA 12.x code needs 525.60.13, CUDA 13.x code 580.65.06.
- PTX must be compiled by the driver (JIT), which refuses PTX of a newer ISA version than its own CUDA's:
  cudaErrorUnsupportedPtxVersion, "the provided PTX was compiled with an unsupported toolchain".
- A driver knows the GPUs that were out when it was made: the row of the first CUDA for an arch.

Sources: tables "CUDA Toolkit and Corresponding Driver Versions" (CUDA release notes) and "Release History" (PTX ISA).
The driver is the first for Linux x86_64. No older driver was tried for this project; an H100 with 580 was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.archs import Arch, architecture, gpu_name, parse_arch
from scripts.errors import UsageError


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA toolkit release line."""

    cuda: str
    driver: str
    """First Linux driver that supports all of it."""
    ptx: str
    """PTX ISA version that its nvcc writes by default."""


RELEASES = (
    CudaRelease("9.0", "384.81", "6.0"),
    CudaRelease("9.1", "387.26", "6.1"),
    CudaRelease("9.2", "396.26", "6.2"),
    CudaRelease("10.0", "410.48", "6.3"),
    CudaRelease("10.1", "418.39", "6.4"),
    CudaRelease("10.2", "440.33", "6.5"),
    CudaRelease("11.0", "450.36.06", "7.0"),
    CudaRelease("11.1", "455.23.05", "7.1"),
    CudaRelease("11.2", "460.27.03", "7.2"),
    CudaRelease("11.3", "465.19.01", "7.3"),
    CudaRelease("11.4", "470.42.01", "7.4"),
    CudaRelease("11.5", "495.29.05", "7.5"),
    CudaRelease("11.6", "510.39.01", "7.6"),
    CudaRelease("11.7", "515.43.04", "7.7"),
    CudaRelease("11.8", "520.61.05", "7.8"),
    CudaRelease("12.0", "525.60.13", "8.0"),
    CudaRelease("12.1", "530.30.02", "8.1"),
    CudaRelease("12.2", "535.54.03", "8.2"),
    CudaRelease("12.3", "545.23.06", "8.3"),
    CudaRelease("12.4", "550.54.14", "8.4"),
    CudaRelease("12.5", "555.42.02", "8.5"),
    CudaRelease("12.6", "560.28.03", "8.5"),
    CudaRelease("12.7", "565.57.01", "8.6"),
    CudaRelease("12.8", "570.26", "8.7"),
    CudaRelease("12.9", "575.51.03", "8.8"),
    CudaRelease("13.0", "580.65.06", "9.0"),
    CudaRelease("13.1", "590.44.01", "9.1"),
    CudaRelease("13.2", "595.45.04", "9.2"),
)
_BY_CUDA = {release.cuda: release for release in RELEASES}


def numbers(text: str) -> tuple[int, ...]:
    """Return a dotted version as integers: (570, 86, 10)."""
    return tuple(int(part) for part in text.split("."))


def release_for_ptx(version: tuple[int, int]) -> CudaRelease:
    """Return the first release whose driver compiles PTX of this ISA version; made up when newer than the table."""
    for release in RELEASES:
        if numbers(release.ptx) >= version:
            return release
    major, minor = version
    return CudaRelease(f"{major + 4}.{minor}", "", f"{major}.{minor}")  # PTX 9.x came with CUDA 13.x, 8.x with 12.x


def release(cuda: str) -> CudaRelease:
    """Return the release of a CUDA version; without a driver when it is not in the table."""
    return _BY_CUDA.get(cuda, CudaRelease(cuda, "", ""))


def newest(releases: Sequence[CudaRelease]) -> CudaRelease:
    """Return the latest of some releases."""
    return max(releases, key=lambda item: numbers(item.cuda))


def floor(arch: Arch, cuda_major: int) -> CudaRelease:
    """Return the first release whose driver runs SASS of a CUDA major version on a GPU: (12.0, 12) gives 12.8."""
    return newest([release(architecture(arch).first_cuda), release(f"{cuda_major}.0")])


@dataclass(frozen=True)
class Target:
    """A GPU, and maybe the driver it has."""

    gpu: str
    """Name for people: `RTX 5090`, `GPU 9.0`."""
    arch: Arch
    driver: str = ""
    """Driver as given, `12.8` (a CUDA version) or `570.86.10`; empty when the lowest is asked for."""
    cuda: str = ""
    """CUDA version of that driver."""

    @property
    def label(self) -> str:
        """Short name: `RTX 5090@12.8`."""
        return f"{self.gpu}@{self.driver}" if self.driver else self.gpu

    def __str__(self) -> str:
        """Return the target in words: `RTX 5090 with a CUDA 12.8 driver (570.x)`."""
        if not self.driver:
            return self.gpu
        if self.driver != self.cuda:
            return f"{self.gpu} with driver {self.driver} (CUDA {self.cuda})"
        branch = release(self.cuda).driver.split(".")[0]
        return f"{self.gpu} with a CUDA {self.cuda} driver" + (f" ({branch}.x)" if branch else "")


def parse_target(text: str) -> Target:
    """Read `GPU[@DRIVER]`: `rtx5090`, `H100@12.8`, `9.0@570.86.10`, `sm_120@580`. Raises UsageError."""
    gpu, _, driver = text.partition("@")
    arch = parse_arch(gpu)
    if arch.suffix or arch.ptx:
        raise UsageError(
            f"target {text!r} is not a GPU",
            why="a, f and +PTX belong to code, not to GPUs",
            fix=f"use {arch.number}, or a name such as {architecture(arch).gpus[0]}",
        )
    name = gpu_name(gpu) or f"GPU {arch.number}"
    return Target(name, arch, driver.strip(), _driver_cuda(driver.strip(), text) if driver else "")


def default_targets(archs: Sequence[Arch], cuda: str) -> tuple[Target, ...]:
    """Return a target for each GPU generation of an arch list, all with the driver of `cuda`."""
    unique = sorted({(arch.major, arch.minor) for arch in archs})
    return tuple(Target(architecture(Arch(*cc)).gpus[0], Arch(*cc), cuda, cuda) for cc in unique)


def _driver_cuda(driver: str, target: str) -> str:
    """Return the CUDA version of a driver given as such (`12.8`) or as its own version (`570`, `570.86.10`)."""
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,3}", driver):
        raise UsageError(
            f"target {target!r}: {driver!r} is not a driver",
            fix="give the CUDA version that nvidia-smi shows (12.8), or the driver's own version (570.86.10)",
        )
    given = numbers(driver)
    if given[0] < 100:
        if len(given) == 1:
            raise UsageError(f"target {target!r}: CUDA {driver} has no minor version", fix=f"write {driver}.0 or so")
        return f"{given[0]}.{given[1]}"
    older = [item for item in RELEASES if numbers(item.driver)[0] <= given[0]]
    if not older:
        raise UsageError(f"target {target!r}: driver {driver} is older than CUDA {RELEASES[0].cuda}'s")
    return older[-1].cuda
