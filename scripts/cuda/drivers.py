"""CUDA releases: the driver each came with, the PTX version its compiler writes; and targets, a GPU with a driver.

Three rules decide whether a driver runs a wheel:

- SASS runs on every driver of the same CUDA major version or a later one ("minor version compatibility"), if the
  driver knows the GPU at all: CUDA 12.x code needs 525.60.13, CUDA 13.x code 580.65.06.
- PTX must be compiled by the driver (JIT), which refuses PTX of a newer ISA version than its own CUDA's:
  cudaErrorUnsupportedPtxVersion, "the provided PTX was compiled with an unsupported toolchain".
- A driver knows the GPUs that were out when it was made: the row of the first CUDA for an arch.

- Drivers drop old GPUs: the last branch in the table of archs (580 for Maxwell, Pascal and Volta).

Sources: tables "CUDA Toolkit and Corresponding Driver Versions" (CUDA release notes) and "Release History" (PTX ISA);
the PTX versions of 13.1 to 13.5 were asked of their own ptxas (`Unsupported .version 9.99; current version is ...`).
The driver is the first for Linux x86_64; 13.4's is that of its general release, 13.5's was not found. No older driver
was tried for this project; an H100 with 580 was. What is newer than the last row is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.core.errors import UsageError
from scripts.cuda.archs import NATIVE, Arch, architecture, gpu_name, parse_arch
from scripts.cuda.nvml import local_gpus


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA toolkit release line."""

    cuda: str
    driver: str
    """First Linux driver that supports all of it, "" when it is not known."""
    ptx: str
    """PTX ISA version that its nvcc writes by default."""

    @property
    def known(self) -> bool:
        """Whether it is in the table."""
        return self.cuda in _BY_CUDA

    def __str__(self) -> str:
        """Return it in words: `a CUDA 12.9 driver (575.51.03)`."""
        if not self.known:
            return f"a driver newer than CUDA {RELEASES[-1].cuda}'s (the last that wheelsmith knows)"
        return f"a CUDA {self.cuda} driver ({self.driver or 'its number is not known'})"


RELEASES = (
    CudaRelease("6.5", "340.29", "4.1"),
    CudaRelease("7.0", "346.46", "4.2"),
    CudaRelease("7.5", "352.31", "4.3"),
    CudaRelease("8.0", "367.48", "5.0"),
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
    CudaRelease("13.3", "610.43.02", "9.3"),
    CudaRelease("13.4", "615.71.09", "9.4"),
    CudaRelease("13.5", "", "9.5"),
)
_BY_CUDA = {release.cuda: release for release in RELEASES}
FIRST_WITH_ZSTD = _BY_CUDA["12.4"]
"""The first whose driver reads zstd inside fat binaries (CUDA 12.8's release notes, nvcc's --compress-mode)."""
_WITH_DRIVER = [release for release in RELEASES if release.driver]


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
    return max(releases, key=lambda item: numbers(item.cuda or "0"))


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
    """CUDA version of that driver; empty when the driver is newer than the table."""

    @property
    def newer(self) -> bool:
        """Whether its driver is newer than the table: it runs older code, of newer code nothing is known."""
        return bool(self.driver) and not release(self.cuda).known

    @property
    def branch(self) -> int:
        """Branch of its driver (580), or the highest known below it; 0 without a driver."""
        if not self.driver:
            return 0
        given = numbers(self.driver)
        if given[0] >= _FIRST_BRANCH:
            return given[0]
        older = [item for item in _WITH_DRIVER if numbers(item.cuda) <= given]
        return numbers(older[-1].driver)[0] if older else 0

    @property
    def label(self) -> str:
        """Short name: `RTX 5090@12.8`."""
        return f"{self.gpu}@{self.driver}" if self.driver else self.gpu

    def __str__(self) -> str:
        """Return the target in words: `RTX 5090 with a CUDA 12.8 driver (570.x)`."""
        if not self.driver:
            return self.gpu
        if self.driver != self.cuda:
            known = f"CUDA {self.cuda}" if self.cuda else f"newer than CUDA {_WITH_DRIVER[-1].cuda}'s, the last known"
            return f"{self.gpu} with driver {self.driver} ({known})"
        branch = release(self.cuda).driver.split(".")[0]
        return f"{self.gpu} with a CUDA {self.cuda} driver" + (f" ({branch}.x)" if branch else "")


_FIRST_BRANCH = 100  # CUDA versions are below, drivers from 340 on


def parse_target(text: str) -> Target:
    """Read `GPU[@DRIVER]`: `rtx5090`, `H100@12.8`, `9.0@570.86.10`, `sm_120@580`, `native`. Raises UsageError."""
    gpu, at, driver = (part.strip() for part in text.partition("@"))
    if at and not driver:
        raise UsageError(f"target {text!r} names no driver behind the @", fix=f"write {gpu}, or {gpu}@12.8")
    if gpu.lower() == NATIVE:
        local = local_gpus()[0]
        gpu, driver = local.name, driver or local.driver
        if not gpu_name(gpu):
            arch = parse_arch(local.number)
            return Target(gpu, arch, driver, _driver_cuda(driver, text))
    arch = parse_arch(gpu)
    if arch.suffix or arch.ptx:
        raise UsageError(
            f"target {text!r} is not a GPU",
            why="a, f and +PTX belong to code, not to GPUs",
            fix=f"use {arch.number}, or a name such as {architecture(arch).gpus[0]}",
        )
    return Target(gpu_name(gpu) or f"GPU {arch.number}", arch, driver, _driver_cuda(driver, text) if driver else "")


def default_targets(archs: Sequence[Arch], cuda: str) -> tuple[Target, ...]:
    """Return a target for each GPU generation of an arch list, with the driver of `cuda` or of the GPU's first CUDA.

    `cuda`: a release, or a major version alone (`13`, from libcudart.so.13), which means its first release.
    """
    cuda = cuda if "." in cuda else f"{cuda}.0"
    unique = sorted({(arch.major, arch.minor) for arch in archs})
    return tuple(_default(Arch(*cc), cuda) for cc in unique)


def _default(arch: Arch, cuda: str) -> Target:
    row = architecture(arch)
    needed = newest([release(cuda), release(row.first_cuda)]).cuda if row.first_cuda else cuda
    return Target(row.gpus[0], arch, needed, needed)


def _driver_cuda(driver: str, target: str) -> str:
    """Return the CUDA version of a driver given as such (`12.8`) or as its own version (`570`, `570.86.10`).

    "" for a driver that is newer than the table. Raises UsageError for what never was a CUDA or a driver.
    """
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,3}", driver):
        raise UsageError(
            f"target {target!r}: {driver!r} is not a driver",
            fix="give the CUDA version that nvidia-smi shows (12.8), or the driver's own version (570.86.10)",
        )
    given = numbers(driver)
    if given[0] < _FIRST_BRANCH:
        return _checked_cuda(driver, target)
    if given[0] > numbers(_WITH_DRIVER[-1].driver)[0]:
        return ""
    older = [item for item in _WITH_DRIVER if numbers(item.driver)[0] <= given[0]]
    if not older:
        raise UsageError(f"target {target!r}: driver {driver} is older than CUDA {RELEASES[0].cuda}'s")
    return older[-1].cuda


def _checked_cuda(text: str, target: str) -> str:
    given = numbers(text)
    if len(given) == 1:
        raise UsageError(f"target {target!r}: CUDA {text} has no minor version", fix=f"write {text}.0 or so")
    cuda, last = f"{given[0]}.{given[1]}", numbers(RELEASES[-1].cuda)
    plausible = last < given[:2] <= (last[0] + 1, 9)
    if cuda not in _BY_CUDA and not plausible:
        raise UsageError(
            f"target {target!r}: there is no CUDA {cuda}",
            why=f"wheelsmith knows CUDA {RELEASES[0].cuda} to {RELEASES[-1].cuda}",
            fix="give the CUDA version that nvidia-smi shows (12.8), or the driver's own version (570.86.10)",
        )
    return cuda
