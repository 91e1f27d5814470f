"""Checks of the host compiler, the C library and Python's headers."""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
import tempfile
from functools import lru_cache
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.compile.older_glibc import FLOOR
from scripts.core.process import capture
from scripts.doctor.checks.installed import judged
from scripts.doctor.registry import Result, Subject, Verdict, blocked, check, ok, unknown, warning
from scripts.toolchain.provide import HostCompiler, check_python_headers, find_host_compiler

NEWEST_GCC = {"11.8": 11, "12.0": 12, "12.1": 12, "12.2": 12, "12.3": 12, "12.4": 13, "12.5": 13, "12.6": 13,
              "12.7": 13, "12.8": 14, "12.9": 14, "13.0": 15, "13.1": 15, "13.2": 15}  # fmt: skip
"""Newest g++ that nvcc accepts. Source: NVIDIA's installation guide; 13.0 as in its crt/host_config.h."""
OLDEST_GCC = 9  # for C++17 as torch 2.9's headers use it
GLIBC_FOR_CUDA = {(2, 41): "12.9", (2, 42): "13.0"}
"""glibc and the last CUDA whose headers contradict its declarations of sinpi, cospi (2.41) and rsqrt (2.42)."""
_PROGRAM = (
    "#include <cstddef>\n#include <cmath>\n#include <optional>\nint main() { return std::optional<int>(0).value(); }\n"
)


def _compiler(subject: Subject) -> HostCompiler | None:
    """Return the compiler that builds would use, None when there is none (no-host-compiler says so)."""
    try:
        return find_host_compiler(subject.environment)
    except Exception:  # noqa: BLE001  (its own check shows the message)
        return None


def gcc_version(version: str) -> tuple[int, int] | None:
    """Return g++'s version from the first line of --version; None for another compiler."""
    match = re.search(r"(?:g\+\+|gcc|GCC|c\+\+)\S*\s.*?\b(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match and "clang" not in version else None


@check("no-host-compiler")
def host_compiler(subject: Subject) -> Result:
    """Check that there is a C++ compiler."""
    return ok(find_host_compiler(subject.environment).version)


@lru_cache(maxsize=16)
def _try_compiler(path: Path, version: str, tmp: str) -> str:
    """Compile and link a C++17 program; return what went wrong, "" when nothing did."""
    del version  # part of the key only
    with tempfile.TemporaryDirectory(prefix="wheelsmith-", dir=tmp if os.access(tmp, os.W_OK) else None) as folder:
        source = Path(folder) / "t.cpp"
        source.write_text(_PROGRAM)
        code, text = capture([path, "-std=c++17", source, "-o", Path(folder) / "t"])
    return "" if code == 0 else text.strip()[-300:] or f"exit code {code}"


@check("cxx-link-fails")
def host_compiler_works(subject: Subject) -> Result:
    """Check that the compiler makes a C++17 program."""
    compiler = _compiler(subject)
    if compiler is None:
        return unknown("there is no C++ compiler")
    said = _try_compiler(compiler.path, compiler.version, str(subject.tmp))
    return (
        blocked(f"{compiler.path} cannot make a program: {said}") if said else ok("a C++17 program compiles and links")
    )


@check("gcc-too-new-for-nvcc")
def compiler_not_too_new(subject: Subject) -> Result:
    """Check g++ against the newest that the recipe's nvcc accepts."""
    compiler, cuda = _compiler(subject), subject.recipe.toolchain.cuda
    found, newest = gcc_version(compiler.version) if compiler else None, NEWEST_GCC.get(cuda)
    if compiler is None or found is None or newest is None:
        return unknown("the compiler is not g++, or the table has no limit for this CUDA")
    major = found[0]
    text = f"g++ {major}; nvcc {cuda} accepts g++ up to {newest}"
    fix = f"apt-get install g++-{newest}; CXX=g++-{newest} nox -s wheel -- --recipe {subject.recipe.name}"
    return ok(text) if major <= newest else blocked(text, fix)


@check("gcc-or-nvcc-std-flag-ignored")
def compiler_not_too_old(subject: Subject) -> Result:
    """Check that g++ is new enough for torch's headers, and for what upstream's CMake asks for."""
    compiler = _compiler(subject)
    found = gcc_version(compiler.version) if compiler else None
    if found is None:
        return unknown("the compiler is not g++")
    who, oldest = "torch's headers", str(OLDEST_GCC)
    for component, version in subject.recipe.toolchain.host.gcc.items():
        if component in {"all", *subject.recipe.components} and Version(version) > Version(oldest):
            who, oldest = "vLLM's CMake" if component == "all" else component.value, version
    text = (
        f"g++ {found[0]}.{found[1]}; {who} needs {oldest}"
        if who != "torch's headers"
        else (f"g++ {found[0]}; {who} need {oldest}")
    )
    major = max(11, Version(oldest).major)
    fine = found >= Version(oldest).release[:2]
    return ok(text) if fine else blocked(text, f"apt-get install g++-{major}; CXX=g++-{major} nox -s wheel -- ...")


@check("inductor-libc-headers-missing")
def c_headers(subject: Subject) -> Result:
    """Check that libc's development headers are there."""
    found = [
        folder for folder in ("usr/include", "usr/local/include") if (subject.system / folder / "stdio.h").is_file()
    ]
    if found:
        return ok(f"/{found[0]}/stdio.h is there")
    return warning("libc's headers are not in /usr/include", "apt-get install libc6-dev (Debian, Ubuntu)")


@check("triton-no-c-compiler")
def c_compiler(subject: Subject) -> Result:
    """Check for a C compiler, which Triton needs where the wheel is served."""
    named = subject.environment.get("CC")
    found = named or next((name for name in ("cc", "gcc", "clang") if subject.which(name)), None)
    return ok(f"{found}") if found else warning("no cc, gcc or clang on PATH: matters where models are served")


@check("glibc-241-math-noexcept")
def glibc(subject: Subject) -> Result:
    """Check glibc against the CUDA headers that contradict its declarations."""
    found = glibc_version()
    if found is None:
        return blocked("this system's C library is not glibc", "build on Debian, Ubuntu, Fedora or RHEL")
    cuda = _numbers(subject.recipe.toolchain.cuda)
    text = f"glibc {found[0]}.{found[1]}, CUDA {subject.recipe.toolchain.cuda}"
    if any(found >= start and cuda <= _numbers(last) for start, last in GLIBC_FOR_CUDA.items()):
        return blocked(
            text, "docker run -v $PWD:/w -w /w ubuntu:22.04 ... (docs/production.md), or a recipe with a newer CUDA"
        )
    return ok(text)


def glibc_version() -> tuple[int, int] | None:
    """Return this system's glibc, None for another C library."""
    match = (
        re.fullmatch(r"glibc (\d+)\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
        if "glibc" in platform.libc_ver()[0]
        else None
    )
    return (int(match[1]), int(match[2])) if match else None


def _numbers(cuda: str) -> tuple[int, ...]:
    return tuple(int(part) for part in cuda.split("."))


@check("glibc-version-not-found")
def glibc_of_targets(_: Subject) -> Result:
    """Say which glibc the wheel will need: the one that torch's own wheels need, this system's at most."""
    found = glibc_version()
    if found is None:
        return unknown("no glibc here")
    wanted, here = (".".join(map(str, numbers)) for numbers in (min(FLOOR, found), found))
    return ok(f"the wheel will need glibc {wanted}, or at most this system's {here}")


@check("cmake-cannot-find-python")
def python_headers(subject: Subject) -> Result:
    """Check Python.h of the interpreter that builds."""
    check_python_headers(subject.torch)
    folder = subject.torch.python_include if subject.torch else sysconfig.get_paths()["include"]
    return ok(f"{folder}/Python.h is there")


@check("python-version-out-of-range")
def python_version(subject: Subject) -> Result:
    """Check that this Python, and an installed torch's, is one that vLLM and torch support."""
    if (theirs := judged(subject, "python-version-out-of-range", "")) and theirs.verdict is Verdict.BLOCKED:
        return theirs
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = subject.recipe.toolchain.host.python
    if not SpecifierSet(wanted).contains(version):
        return blocked(f"Python {version}; this vLLM wants {wanted}", "nox -s wheel --force-python 3.12 -- ...")
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return ok(f"Python {version}")
    return blocked(f"Python {version}; 3.10 to 3.13 are supported", "nox -s wheel --force-python 3.12 -- ...")


@check("uv-python-under-root-unreadable")
def python_readable(_: Subject) -> Result:
    """Say where Python is; one below /root serves root alone."""
    if sys.base_prefix.startswith("/root/") and os.getuid() == 0:
        return ok(f"Python is in {sys.base_prefix}: only root can use environments made with it")
    return ok(f"Python is in {sys.base_prefix}")


@check("rust-toolchain-missing")
def rust(subject: Subject) -> Result:
    """Check for cargo where the recipe insists on the Rust front end, which upstream makes optional."""
    wanted = any(re.match(r"setuptools[-_]rust", item) for item in subject.recipe.toolchain.build_requirements)
    insists = subject.recipe.environment.get("VLLM_REQUIRE_RUST_FRONTEND", "").lower() not in {"", "0", "false", "no"}
    if not wanted:
        return ok("the recipe needs no Rust")
    if not insists:
        return ok("the optional Rust front end is left out")
    found = subject.which("cargo")
    return ok(str(found)) if found else blocked("the recipe needs Rust, and cargo is not on PATH")


@check("nvcc11x-gcc11-parameter-packs")
def distribution_nvcc(subject: Subject) -> Result:
    """Check whether the distribution's nvcc is on PATH, which builds by hand would take."""
    nvcc = subject.system / "usr/bin/nvcc"
    if not nvcc.exists():
        return ok("no nvcc of the distribution in /usr/bin")
    return warning(
        "/usr/bin/nvcc is the distribution's; wheelsmith does not use it, builds by hand do",
        "apt-get remove nvidia-cuda-toolkit",
    )
