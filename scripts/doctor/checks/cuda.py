"""Checks of CUDA: toolkit, archs, kernels for them, drivers of targets."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.core.errors import ToolchainError, UsageError
from scripts.cuda.archs import Arch, arch_list, architecture, check_cuda_can, runs_on_cubin
from scripts.cuda.drivers import floor, numbers, release
from scripts.doctor.checks.installed import judged
from scripts.doctor.preflight import toolkit_problem
from scripts.doctor.registry import Result, Subject, blocked, check, ok, unknown, warning
from scripts.recipe.fitting import kernel_archs
from scripts.recipe.model import Component
from scripts.toolchain.choice import needs_packages
from scripts.toolchain.installed import find_system_toolkit, ways_to_get
from scripts.toolchain.verify import nvcc_release

HEADERS = ("cusparse.h", "cublas_v2.h", "cusolverDn.h", "curand.h", "nvrtc.h", "cuda_runtime_api.h")
LIBRARIES = ("libcudart.so", "libcudart_static.a", "libcudadevrt.a", "libnvrtc.so", "stubs/libcuda.so")
"""What v0.15.1 and 0.20.1 link: CMake adds the static runtime, torch's CMake files want nvrtc."""
"""What torch's own CUDA headers include."""
MANY_ARCHS = 9
TORCH_2_9_ARCHS = "7.0;7.5;8.0;8.6;9.0;10.0;12.0"


@check("nvcc-or-cuda-home-missing")
def toolkit(subject: Subject) -> Result:
    """Check that the recipe's CUDA toolkit is installed or can be had."""
    if needs_packages(subject.recipe):
        return ok(f"CUDA {subject.recipe.toolchain.cuda} comes with the build environment")
    problem = toolkit_problem(subject.recipe, subject.access)
    if problem:
        return blocked(problem, "; or: ".join(ways_to_get(subject.recipe.toolchain.cuda)[1:]))
    return ok(f"CUDA {subject.recipe.toolchain.cuda} is installed or can be fetched")


def _system_home(subject: Subject) -> Path | None:
    if needs_packages(subject.recipe) or subject.recipe.toolchain.kind == "redist":
        return None
    return find_system_toolkit(subject.recipe.toolchain.cuda, subject.environment).home


@check("partial-cuda-toolkit-headers")
def toolkit_whole(subject: Subject) -> Result:
    """Check that an installed toolkit has the headers that torch includes (others are checked when fetched)."""
    home = _system_home(subject)
    if home is None:
        return ok("the toolkit comes whole, from archives or packages")
    folders = (home / "include", home / "targets/x86_64-linux/include")
    missing = [name for name in HEADERS if not any((folder / name).is_file() for folder in folders)]
    if not missing:
        return ok(f"{home} has the headers that torch includes")
    label = subject.recipe.toolchain.cuda.replace(".", "-")
    return blocked(f"{home} lacks {', '.join(missing)}", f"apt-get install cuda-libraries-dev-{label}")


@check("ld-cannot-find-cuda-libs")
def toolkit_libraries(subject: Subject) -> Result:
    """Check that an installed toolkit has the libraries that torch's and vLLM's CMake files look for."""
    home = _system_home(subject)
    if home is None:
        return ok("the toolkit comes whole, from archives or packages")
    folders = [home / name for name in ("lib64", "lib", "targets/x86_64-linux/lib")]
    missing = [name for name in LIBRARIES if not any((folder / name).exists() for folder in folders)]
    label = subject.recipe.toolchain.cuda.replace(".", "-")
    if missing:
        return blocked(
            f"{home}/lib64 lacks {', '.join(missing)}",
            f"apt-get install cuda-cudart-dev-{label} cuda-nvrtc-dev-{label} cuda-driver-dev-{label}",
        )
    return ok(f"{home}/lib64 has libcudart, libcudadevrt, libnvrtc and the stub of libcuda")


@check("torch-cuda-vs-nvcc-mismatch")
def cuda_of_path(subject: Subject) -> Result:
    """Check the nvcc on PATH, which builds by hand would take."""
    nvcc, cuda = subject.which("nvcc"), subject.recipe.torch.cuda
    if nvcc is None:
        return ok("no nvcc on PATH: the recipe brings its own")
    try:
        found = nvcc_release(nvcc, subject.environment)
    except ToolchainError as error:
        return warning(f"{nvcc} on PATH does not run: {error.why}", "wheelsmith does not use it; builds by hand would")
    if found == cuda:
        return ok(f"{nvcc} is of CUDA {found}")
    fix = f"for builds by hand: export CUDA_HOME=/usr/local/cuda-{cuda} PATH=/usr/local/cuda-{cuda}/bin:$PATH"
    return warning(f"{nvcc} on PATH is of CUDA {found}, torch of {cuda}; wheelsmith does not use it", fix)


@check("unsupported-gpu-arch-nvcc-too-old")
def archs_known(subject: Subject) -> Result:
    """Check that the recipe's CUDA compiles for every arch."""
    cuda = subject.recipe.toolchain.cuda
    bad = [
        arch
        for arch in subject.archs
        if numbers(architecture(arch).first_cuda) > numbers(cuda) or _family_too_new(arch, cuda)
    ]
    if bad:
        first = architecture(bad[0]).first_cuda
        return blocked(
            f"nvcc {cuda} does not know {arch_list(bad)} (from CUDA {first} on)", f"--arch without {arch_list(bad)}"
        )
    return ok(f"nvcc {cuda} compiles for {arch_list(subject.archs)}")


def _family_too_new(arch: Arch, cuda: str) -> bool:
    return arch.suffix == "f" and numbers(cuda) < (12, 9)


@check("cuda13-dropped-old-archs")
def archs_still_known(subject: Subject) -> Result:
    """Check that the recipe's CUDA still compiles for every arch."""
    cuda = subject.recipe.toolchain.cuda
    bad = []
    for arch in subject.archs:
        last = architecture(arch).last_cuda
        if last and numbers(cuda) > numbers(last):
            bad.append(arch)
    if not bad:
        return ok(f"CUDA {cuda} has not dropped any of {arch_list(subject.archs)}")
    try:
        check_cuda_can(bad, cuda)
    except UsageError as error:
        return blocked(f"{error.what}: {error.why}", f"--arch without {arch_list(bad)}, or --recipe vllm-0.15.1-cu128")
    return ok("")


@check("sm100-vs-sm120-confusion")
def blackwell(subject: Subject) -> Result:
    """Check that both Blackwell families are not taken for one: 10.x (B200) and 12.x (RTX 50) share no code."""
    have = {arch.major for arch in subject.archs}
    lacking = [target for target in subject.targets if target.arch.major in {10, 12} and target.arch.major not in have]
    other = [target for target in lacking if (22 - target.arch.major) in have]
    if other:
        text = f"{other[0].gpu} is {other[0].arch.number}; {arch_list(subject.archs)} is for the other Blackwell"
        return blocked(text, f"--arch {other[0].arch.number}")
    if 10 in have and 12 not in have and not subject.targets:
        return ok("10.x is B200's and GB200's; an RTX 50 is 12.0")
    return ok(f"archs {arch_list(subject.archs)}")


@check("no-kernel-image")
def targets_have_code(subject: Subject) -> Result:
    """Check that each target GPU gets cubins, or PTX that it can compile."""
    if not subject.targets:
        return ok("no --target given: archs are what was asked for")
    none = [item.gpu for item in subject.targets if not _cubin(subject, item.arch) and not _ptx(subject, item.arch)]
    if none:
        return blocked(
            f"nothing in {arch_list(subject.archs)} runs on {', '.join(none)}",
            f"--arch {none[0].replace(' ', '').lower()}",
        )
    return ok(f"every target gets code of {arch_list(subject.archs)}")


def _cubin(subject: Subject, arch: Arch) -> bool:
    return any(runs_on_cubin(item, arch) for item in subject.archs)


def _ptx(subject: Subject, arch: Arch) -> bool:
    return any(item.ptx and (item.major, item.minor) <= (arch.major, arch.minor) for item in subject.archs)


@check("ptx-newer-than-driver")
def ptx_for_drivers(subject: Subject) -> Result:
    """Check PTX against the drivers of the targets: they compile PTX of their own CUDA version and older only."""
    cuda = subject.recipe.toolchain.cuda
    late = [item for item in subject.targets if item.cuda and numbers(item.cuda) < numbers(cuda)]
    families = _jit_families(subject, [item.arch for item in late])
    only = [item for item in late if not _cubin(subject, item.arch)]
    need = release(cuda).driver or f"CUDA {cuda}"
    if only:
        return blocked(
            f"{only[0].label} would get PTX of CUDA {cuda} only, and its driver refuses it",
            f"--arch {only[0].arch.number}, or driver {need} or newer",
        )
    if late and families:
        names = ", ".join(item.label for item in late)
        text = f"{names}: minor-version compatibility covers cubins, not PTX, and {families} come as PTX"
        return warning(text, f"driver {need} or newer, or a recipe with CUDA {late[0].cuda}")
    if not subject.targets:
        jit = _jit_families(subject, list(subject.archs))
        return ok(f"as PTX, which needs driver {need} or newer: {jit}" if jit else "every kernel comes as cubins")
    return ok("no target gets PTX that its driver refuses")


def _jit_families(subject: Subject, archs: list[Arch]) -> str:
    """Return the kernel families that some of the archs get as PTX only."""
    found = []
    for name, gets in kernel_archs(subject.recipe, subject.archs).items():
        lacks = [arch for arch in archs if not any(runs_on_cubin(item, arch) for item in gets)]
        if any(item.ptx and item < arch for arch in lacks for item in gets):
            found.append(name)
    return ", ".join(found)


@check("driver-too-old-for-torch")
def drivers(subject: Subject) -> Result:
    """Check the drivers of the targets, else this machine's, against the lowest that the wheel's CUDA runs on."""
    major = int(subject.recipe.torch.cuda.split(".")[0])
    for item in subject.targets:
        lowest = floor(item.arch, major)
        if item.cuda and numbers(item.cuda) < numbers(lowest.cuda):
            text = (
                f"{item.label}: CUDA {major} on {item.gpu} needs driver {lowest.driver} (CUDA {lowest.cuda}) or newer"
            )
            return blocked(text, "update the driver, or take a recipe of an older CUDA")
    if subject.targets:
        return ok("the drivers of the targets are new enough")
    return _own_driver(subject, major)


def _own_driver(subject: Subject, major: int) -> Result:
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", subject.text("proc/driver/nvidia/version"))
    if not match:
        return ok("no NVIDIA driver here: none is needed to build")
    lowest = release(f"{major}.0").driver
    text = f"driver {match[1]} here; CUDA {major} needs {lowest}"
    return (
        ok(text)
        if numbers(match[1]) >= numbers(lowest)
        else warning(text, "update the driver where the wheel is to run")
    )


@check("per-kernel-arch-filter-drops-target")
def families_for_archs(subject: Subject) -> Result:
    """Check which kernel families give an arch nothing at all."""
    lost = []
    for name, gets in kernel_archs(subject.recipe, subject.archs).items():
        without = [a for a in subject.archs if not any(runs_on_cubin(c, a) or (c.ptx and c < a) for c in gets)]
        lost += [f"{name} ({arch_list(without)})"] if without else []
    if not lost:
        return ok("every kernel family has code for every arch")
    return ok(f"{len(lost)} kernel families have nothing for some archs, as upstream intends: {'; '.join(lost[:3])}")


@check("flash-attn-needs-ampere")
def ampere(subject: Subject) -> Result:
    """Check for archs that FlashAttention does not run on."""
    old = [arch for arch in subject.archs if arch.major < 8]
    if old and Component.FLASH_ATTENTION_2 in subject.recipe.components:
        return warning(f"FlashAttention does not run on {arch_list(old)}")
    return ok("all archs are 8.0 or newer, or FlashAttention is not built")


@check("torch-not-built-for-gpu")
def torch_archs(subject: Subject) -> Result:
    """Check that torch's own kernels run on the archs, where it is known for which they are built."""
    archs = " ".join(subject.torch.archs) if subject.torch else ""
    if theirs := judged(subject, "torch-not-built-for-gpu", f"torch is built for {archs}"):
        return theirs
    if subject.recipe.torch.version != "2.9.1" or subject.recipe.torch.cuda != "12.8":
        return unknown(f"torch {subject.recipe.torch.version} says so itself once it is installed")
    built = {int(text.split(".")[0]) for text in TORCH_2_9_ARCHS.split(";")}
    bad = [arch for arch in subject.archs if arch.major not in built]
    if bad:
        return blocked(
            f"torch 2.9.1 (cu128) is built for {TORCH_2_9_ARCHS}, not {arch_list(bad)}",
            "leave the arch out, or take a recipe with another torch",
        )
    return ok(f"torch 2.9.1 (cu128) is built for {TORCH_2_9_ARCHS}")


@check("nvfatbin-relocation-overflow")
def many_archs(subject: Subject) -> Result:
    """Check for so many archs that a library may pass 2 GB."""
    count = len(subject.archs)
    if count >= MANY_ARCHS and Component.CORE in subject.recipe.components:
        return warning(f"{count} archs in one wheel", "two wheels: --arch LIST --arch LIST")
    return ok(f"{count} archs")


@check("optional-extension-silently-skipped")
def components_for_cuda(subject: Subject) -> Result:
    """Check that the recipe's CUDA builds the components that upstream leaves out without a word otherwise."""
    cuda = numbers(subject.recipe.toolchain.cuda)
    needs = {Component.FLASHMLA: (12, 9), Component.FLASH_ATTENTION_3: (12, 3), Component.DEEP_GEMM: (12, 3)}
    bad = [item.value for item in subject.recipe.components if cuda < needs.get(item, (0,))]
    if bad:
        return blocked(
            f"CUDA {subject.recipe.toolchain.cuda} is too old for {', '.join(bad)}",
            "leave the component out, or take a newer CUDA",
        )
    return ok(f"CUDA {subject.recipe.toolchain.cuda} builds all components of the recipe")


@check("fa3-nvcc-12-3-static-assert")
def flash_attention_3(subject: Subject) -> Result:
    """Check for the one CUDA release that FlashAttention 3 does not compile with."""
    if subject.recipe.toolchain.cuda == "12.3" and Component.FLASH_ATTENTION_3 in subject.recipe.components:
        return blocked("CUDA 12.3 does not compile FlashAttention 3")
    return ok("not CUDA 12.3 with FlashAttention 3")
