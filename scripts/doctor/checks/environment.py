"""Checks of environment variables and system settings that change builds without being asked to."""

from __future__ import annotations

from pathlib import Path

from scripts.doctor.registry import Result, Subject, check, ok, warning
from scripts.toolchain.installed import find_system_toolkit

HEADER_VARIABLES = (
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "CFLAGS",
    "CXXFLAGS",
    "NVCC_APPEND_FLAGS",
    "NVCC_PREPEND_FLAGS",
)
UNSET = "unset {} (wheelsmith leaves it out of its own builds)"


def _library_folders(subject: Subject) -> list[Path]:
    return [Path(part) for part in subject.environment.get("LD_LIBRARY_PATH", "").split(":") if part]


def _shadowing(subject: Subject, pattern: str, what: str) -> Result:
    """Check that no folder of LD_LIBRARY_PATH holds a library that would be loaded before torch's own."""
    found = [str(folder) for folder in _library_folders(subject) if any(folder.glob(pattern))]
    if found:
        return warning(f"LD_LIBRARY_PATH has {', '.join(found)} with {what}", "unset LD_LIBRARY_PATH")
    return ok(f"LD_LIBRARY_PATH brings no {what}")


@check("nvjitlink-symbol-missing")
def nvjitlink(subject: Subject) -> Result:
    """Check for another libnvJitLink before torch's."""
    return _shadowing(subject, "libnvJitLink.so*", "libnvJitLink")


@check("nccl-symbol-missing")
def nccl(subject: Subject) -> Result:
    """Check for another NCCL before torch's."""
    named = [name for name in ("LD_PRELOAD", "VLLM_NCCL_SO_PATH") if "nccl" in subject.environment.get(name, "")]
    if named:
        return warning(f"{', '.join(named)} names an NCCL of its own", f"unset {' '.join(named)}")
    return _shadowing(subject, "libnccl.so*", "libnccl")


@check("libcudart-soname-missing")
def cudart(subject: Subject) -> Result:
    """Check for another CUDA runtime before torch's."""
    return _shadowing(subject, "libcudart.so*", "libcudart")


@check("glibcxx-version-not-found")
def libstdcxx(subject: Subject) -> Result:
    """Check for another libstdc++ before the system's."""
    return _shadowing(subject, "libstdc++.so*", "libstdc++")


@check("cuda-stub-library-loaded")
def stubs(subject: Subject) -> Result:
    """Check for the link-time stubs among the folders of libraries."""
    found = [str(folder) for folder in _library_folders(subject) if folder.name == "stubs"]
    if found:
        return warning(f"LD_LIBRARY_PATH has {', '.join(found)}, which is for linking only", "unset LD_LIBRARY_PATH")
    return ok("LD_LIBRARY_PATH has no stubs")


@check("cuda-error-803-compat-lib")
def compat(subject: Subject) -> Result:
    """Check for CUDA's forward-compatibility libraries in LD_LIBRARY_PATH and ld.so.conf.d."""
    found = [str(folder) for folder in _library_folders(subject) if folder.name == "compat"]
    for file in sorted((subject.system / "etc/ld.so.conf.d").glob("*.conf")):
        lines = file.read_text(errors="replace").splitlines()
        found += [
            f"{line.strip()} ({file.name})" for line in lines if "/cuda" in line and line.strip().endswith("/compat")
        ]
    if found:
        return warning(
            f"{', '.join(found)}: for drivers older than the toolkit only",
            "remove it and run ldconfig where the driver is newer",
        )
    return ok("no CUDA compat libraries are in the way")


@check("stale-compiler-variables")
def headers(subject: Subject) -> Result:
    """Check for variables that bring headers and flags into every compilation."""
    found = [name for name in HEADER_VARIABLES if subject.environment.get(name)]
    return (
        warning(f"{', '.join(found)} set", UNSET.format(" ".join(found)))
        if found
        else ok("no header or flag variables are set")
    )


@check("conda-environment-active")
def conda(subject: Subject) -> Result:
    """Check for an active conda environment."""
    prefix = subject.environment.get("CONDA_PREFIX")
    if not prefix:
        return ok("no conda environment is active")
    compilers = [name for name in ("g++", "ld", "nvcc") if (Path(prefix) / "bin" / name).exists()]
    inside = f" with its own {', '.join(compilers)}" if compilers else ""
    return warning(f"the conda environment {prefix} is active{inside}", "conda deactivate")


@check("cuda-home-elsewhere")
def cuda_home(subject: Subject) -> Result:
    """Check that CUDA_HOME and CUDA_PATH, when set, name the recipe's toolkit."""
    cuda = subject.recipe.toolchain.cuda
    wrong = []
    for name in ("CUDA_HOME", "CUDA_PATH"):
        value = subject.environment.get(name)
        if value:
            found = find_system_toolkit(cuda, {name: value}, prefix=Path("/nonexistent"))
            if found.home is None:
                wrong.append(f"{name}={value}: {found.rejected[0].why}")
    return (
        warning("; ".join(wrong), f"unset CUDA_HOME CUDA_PATH, or point them at CUDA {cuda}")
        if wrong
        else ok("CUDA_HOME is not set, or is the recipe's toolkit")
    )


@check("no-gpu-in-build-default-archs")
def arch_variable(subject: Subject) -> Result:
    """Check for an arch list that was set for other builds."""
    value = subject.environment.get("TORCH_CUDA_ARCH_LIST")
    if value:
        return warning(f"TORCH_CUDA_ARCH_LIST={value} is not used", f'nox -s wheel -- --arch "{value}"')
    return ok("archs come from --arch or the recipe, not from the GPU at hand")


@check("pip-C-cmake-define-ignored")
def cmake_arguments(subject: Subject) -> Result:
    """Check for CMake and setup.py settings that wheelsmith does not pass on."""
    found = [
        name for name in ("CMAKE_ARGS", "PIP_CONFIG_SETTINGS", "VLLM_USE_PRECOMPILED") if subject.environment.get(name)
    ]
    return (
        warning(f"{', '.join(found)} set: not used", 'put CMake variables into the recipe: [cmake] NAME = "VALUE"')
        if found
        else ok("no CMake settings outside the recipe")
    )


@check("locale-not-utf8")
def locale(subject: Subject) -> Result:
    """Check that the locale can write all characters."""
    value = next(
        (subject.environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if subject.environment.get(name)), ""
    )
    if "utf" in value.lower() or subject.environment.get("PYTHONUTF8") == "1":
        return ok(value or "PYTHONUTF8=1")
    if value in {"", "C", "POSIX"}:
        return ok(f"locale {value or 'not set'}: Python reads and writes UTF-8 all the same (PEP 540)")
    return warning(f"the locale {value} is not UTF-8", "export LANG=C.UTF-8 LC_ALL=C.UTF-8")


@check("stale-python-variables")
def user_site(subject: Subject) -> Result:
    """Check for Python variables that change what interpreters import."""
    found = [name for name in ("PYTHONPATH", "PYTHONHOME") if subject.environment.get(name)]
    fix = f"unset {' '.join(found)} (wheelsmith leaves them out of its own builds)"
    return warning(f"{', '.join(found)} set", fix) if found else ok("no Python variables are set")
