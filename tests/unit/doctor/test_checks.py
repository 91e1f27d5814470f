"""Every check of doctor: silent on a healthy machine, and made to fire by the thing it looks for."""

from __future__ import annotations

import json
import os
import platform
import pwd
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.core.machine import Machine
from scripts.cuda.archs import parse_arch_list
from scripts.cuda.drivers import parse_target
from scripts.doctor.checks import compiler as compiler_checks
from scripts.doctor.checks.disk import cache_need
from scripts.doctor.registry import CHECKS, Subject, Verdict, blocked, check
from scripts.recipe.files import load_recipe
from scripts.recipe.measured import keep_own
from scripts.recipe.model import Recipe
from scripts.toolchain.provide import environment_key
from tests.subjects import answer, make_subject
from tests.support import make_recipe

PRODUCTION = "vllm-0.15.1-cu128"
LOCK = "locks/vllm-0.20.1-cu130.txt"
COST = {
    "units": 10,
    "cpu_seconds": 360000.0,
    "cpu_seconds_per_arch": 50.0,
    "unit_memory_gb": 8.0,
    "download_gb": 1.0,
    "disk_gb": 1e6,
    "measured": "by the tests",
}
Case = Callable[[Path, pytest.MonkeyPatch], Subject]
CASES: list[tuple[str, Verdict, str, Case]] = []


def fires(name: str, text: str, *, verdict: Verdict = Verdict.WARNING) -> Callable[[Case], Case]:
    def keep(case: Case) -> Case:
        CASES.append((name, verdict, text, case))
        return case

    return keep


def blocks(name: str, text: str) -> Callable[[Case], Case]:
    return fires(name, text, verdict=Verdict.BLOCKED)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python(version: tuple[int, int, int]) -> SimpleNamespace:
    """This Python's `sys` with another version; to change sys itself would change it for what imports meanwhile."""
    return SimpleNamespace(version_info=(*version, "final", 0), base_prefix=sys.base_prefix)


def file(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def recipe(cuda: str = "13.0", kind: str = "pypi", **changes: Any) -> Recipe:
    toolchain = {"kind": kind, "cuda": cuda, "lock": LOCK, "build_requirements": ["ninja"]}
    toolchain |= changes.pop("toolchain", {})
    torch = {"version": "2.11.0", "cuda": cuda}
    return make_recipe(Path("recipes"), **{"toolchain": toolchain, "torch": torch, **changes})


def gxx(folder: Path, version: str, **changes: Any) -> Subject:
    program(folder / "bin/g++", f"echo 'g++ (Debian {version}) {version}'")
    return make_subject(folder, environment={"PATH": f"{folder}/bin:/usr/bin:/bin"}, **changes)


def variable(name: str, value: str) -> Case:
    return lambda folder, _: make_subject(folder, environment={name: value})


def library(name: str) -> Case:
    def case(folder: Path, _: pytest.MonkeyPatch) -> Subject:
        file(folder / "libs" / name)
        return make_subject(folder, environment={"LD_LIBRARY_PATH": f"{folder}/libs"})

    return case


def toolkit(folder: Path, *parts: str, release: str = "12.8") -> Path:
    home = folder / "cuda"
    program(home / "bin/nvcc", f"echo release {release}")
    for part in ("include/cuda_runtime.h", *parts):
        file(home / part)
    return home


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_silent_on_a_healthy_machine(name: str, tmp_path: Path) -> None:
    program(tmp_path / "bin/g++", 'exec /usr/bin/g++ "$@"')
    row = answer(name, make_subject(tmp_path))
    assert row.verdict in {Verdict.OK, Verdict.UNKNOWN}, row
    assert "the check itself failed" not in row.measured
    assert row.fix == ""


# disks: sizes are asked of the real filesystem; tests/integration/doctor/test_doctor.py has real small ones
@blocks("disk-full-ci-or-docker", "1000.2 TB needed")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe(cost={**COST, "disk_gb": 1000200.0}))


@fires("tmp-too-small-for-nvcc", "for 900000 units at once")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, jobs=900000)


@blocks("wheelhouse-not-writable", "/proc/wheels")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, wheelhouse=Path("/proc/wheels"))


@blocks("cache-dir-not-writable", "/proc")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, environment={"TMPDIR": "/proc"})


# memory and limits
@blocks("oom-nvcc-cicc-killed", "and this machine has 1.2 GB in all")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, machine=Machine(8, 1.1, 1.2))  # a unit of quickstart takes 1.4


@blocks("oom-nvcc-cicc-killed", "12.4 GB of memory (w4a8_mm_entry.cu, measured)")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, "vllm-0.20.1-cu130", machine=Machine(8, 7.0, 8.0))


@fires("oom-nvcc-cicc-killed", "it is compiled alone")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe(cost=COST), machine=Machine(32, 0.7, 30.0))


def test_a_machine_too_small_for_one_arch_is_told_which_of_the_list_it_can_compile(tmp_path: Path) -> None:
    small = make_subject(tmp_path, "vllm-0.20.1-cu130", machine=Machine(8, 7.0, 8.0))
    assert answer("oom-nvcc-cicc-killed", small).fix.endswith('leave out what needs it: --arch "8.0;8.6;8.9;12.0"')
    alone = replace(small, archs=parse_arch_list("9.0"))
    assert answer("oom-nvcc-cicc-killed", alone).verdict is Verdict.BLOCKED
    assert "--arch" not in answer("oom-nvcc-cicc-killed", alone).fix
    other = replace(small, archs=parse_arch_list("12.0"))
    assert answer("oom-nvcc-cicc-killed", other).verdict is Verdict.OK


def test_what_a_unit_took_here_counts_more_than_what_it_took_elsewhere(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, machine=Machine(8, 3.0, 4.0))
    assert answer("oom-nvcc-cicc-killed", subject).verdict is Verdict.OK
    unit, source = "CMakeFiles/_moe_C.dir/csrc/moe/router_gemm.cu.o", "/x/csrc/moe/router_gemm.cu"
    took = {"seconds": 9, "cpu_seconds": 9, "peak_kb": 5_000_000, "code": 0, "archs": 2}
    events = file(tmp_path / "events", json.dumps({"event": "end", "unit": unit, "source": source, **took}) + "\n")
    keep_own(subject.cache, subject.recipe, events)
    row = answer("oom-nvcc-cicc-killed", make_subject(tmp_path, machine=Machine(8, 3.0, 4.0)))
    assert row.verdict is Verdict.BLOCKED
    assert "5.1 GB of memory (router_gemm.cu, measured)" in row.measured


def limited(folder: Path, mount: str, group: str, name: str) -> Subject:
    """Return a machine on which this process's cgroup is limited to 1.8 GB."""
    file(folder / "groups/in" / name, "1800000000\n")
    usage = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}[name]
    file(folder / "groups/in" / usage, "1000\n")
    file(folder / "proc/self/cgroup", group)
    file(folder / "proc/self/mountinfo", f"30 20 0:26 / {folder}/groups rw - {mount}\n")
    return make_subject(folder, system=folder)


@fires("oom-docker-exit-137", "memory limit is 1.8 GB")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return limited(folder, "cgroup2 cgroup2 rw", "0::/in\n", "memory.max")


@fires("oom-docker-exit-137", "memory limit is 1.8 GB")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return limited(folder, "cgroup cgroup rw,memory", "5:memory:/in\n", "memory.limit_in_bytes")


def limit(kind: int, value: int) -> Case:
    def case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        real = resource.getrlimit
        monkeypatch.setattr(resource, "getrlimit", lambda which: (value, value) if which == kind else real(which))
        return make_subject(folder)

    return case


blocks("oom-cc1plus-killed", "ulimit -v allows 2.0 GB")(limit(resource.RLIMIT_AS, 2_000_000_000))
fires("ptxas-segfault-signal-11", "stack limit is 1.0 MB")(limit(resource.RLIMIT_STACK, 1_000_000))


@fires("wsl2-vm-dies-under-build", "this is WSL with 2.2 GB free")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    file(folder / "proc/version", "Linux version 5.15.1-microsoft-standard-WSL2")
    return make_subject(folder, system=folder, machine=Machine(8, 2.2))


@fires("ci-runner-lost", "0.2 GB stay free")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, environment={"CI": "true"}, machine=Machine(2, 1.6))


@fires("ci-six-hour-limit", "the job's limit is 6 h 00 min")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe(cost=COST), environment={"CI": "true", "GITHUB_ACTIONS": "true"})


@fires("ci-six-hour-limit", "the job's limit is 1 h 00 min")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe(cost=COST), environment={"CI": "1", "CI_JOB_TIMEOUT": "3600"})


@blocks("qemu-cross-arch-segfault", "aarch64")
def _(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    return make_subject(folder)


@fires("arbitrary-uid-getpwuid", "has no name")
def _(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    def nobody(_uid: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    return make_subject(folder)


# compilers
@blocks("no-host-compiler", "g++ is not on PATH")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, environment={"PATH": str(folder)})


@blocks("cxx-link-fails", "cannot make a program")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    program(folder / "bin/g++", '[ "$1" = --version ] && echo "g++ 12.2.0" || { echo no libstdc++; exit 1; }')
    return make_subject(folder, environment={"PATH": f"{folder}/bin"})


blocks("gcc-too-new-for-nvcc", "g++ 16; nvcc 13.0 accepts g++ up to 15")(lambda folder, _: gxx(folder, "16.1.0"))
blocks("gcc-too-new-for-nvcc", "g++ 15; nvcc 12.8 accepts g++ up to 14")(
    lambda folder, _: gxx(folder, "15.2.0", recipe=PRODUCTION)
)
blocks("gcc-or-nvcc-std-flag-ignored", "g++ 7; torch's headers need 9")(lambda folder, _: gxx(folder, "7.5.0"))
fires("inductor-libc-headers-missing", "not in /usr/include")(lambda folder, _: make_subject(folder, system=folder))


@fires("triton-no-c-compiler", "no cc, gcc or clang")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, environment={"PATH": str(folder)})


def glibc(version: tuple[int, int], name: str) -> Case:
    def case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        monkeypatch.setattr(compiler_checks, "glibc_version", lambda: version)
        return make_subject(folder, name)

    return case


blocks("glibc-241-math-noexcept", "glibc 2.41, CUDA 12.8")(glibc((2, 41), PRODUCTION))
blocks("glibc-241-math-noexcept", "glibc 2.42, CUDA 13.0")(glibc((2, 42), "quickstart"))


@blocks("cmake-cannot-find-python", "Python.h is missing")
def _(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr("scripts.toolchain.provide.sysconfig.get_paths", lambda: {"include": str(folder)})
    return make_subject(folder)


@blocks("python-version-out-of-range", "Python 3.14")
def _(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(compiler_checks, "sys", python((3, 14, 0)))
    return make_subject(folder)


@blocks("rust-toolchain-missing", "cargo is not on PATH")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    wanted = recipe(
        toolchain={"build_requirements": ["setuptools-rust>=1.9"]}, environment={"VLLM_REQUIRE_RUST_FRONTEND": "1"}
    )
    return make_subject(folder, wanted, environment={"PATH": str(folder)})


@fires("nvcc11x-gcc11-parameter-packs", "the distribution's")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    program(folder / "usr/bin/nvcc", "")
    return make_subject(folder, system=folder)


# CUDA
@blocks("nvcc-or-cuda-home-missing", "none is installed")
def _(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe("12.1", "system", archs=["9.0"]), environment={"CUDA_HOME": str(folder)})


@blocks("partial-cuda-toolkit-headers", "lacks cusparse.h, cublas_v2.h")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe("12.8", "system"), environment={"CUDA_HOME": str(toolkit(folder))})


@blocks("ld-cannot-find-cuda-libs", "lacks libcudadevrt.a, libnvrtc.so, stubs/libcuda.so")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    home = toolkit(folder, "lib64/libcudart.so", "lib64/libcudart_static.a")
    return make_subject(folder, recipe("12.8", "system"), environment={"CUDA_HOME": str(home)})


@fires("torch-cuda-vs-nvcc-mismatch", "is of CUDA 11.5, torch of 13.0")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    home = toolkit(folder, release="11.5")
    return make_subject(folder, environment={"PATH": f"{home}/bin"})


def archs(name: str, text: str, *targets: str) -> Case:
    wanted = tuple(parse_target(target) for target in targets)
    return lambda folder, _: make_subject(folder, name, archs=parse_arch_list(text), targets=wanted)


blocks("unsupported-gpu-arch-nvcc-too-old", "nvcc 12.8 does not know 10.3")(archs(PRODUCTION, "9.0;10.3"))
blocks("unsupported-gpu-arch-nvcc-too-old", "12.0f")(archs(PRODUCTION, "12.0f"))
blocks("cuda13-dropped-old-archs", "no longer compiles for 7.0")(archs("quickstart", "7.0;9.0"))
blocks("sm100-vs-sm120-confusion", "RTX 5090 is 12.0")(archs("quickstart", "10.0", "rtx5090"))
blocks("no-kernel-image", "runs on H100")(archs("quickstart", "12.0", "H100"))
blocks("ptx-newer-than-driver", "would get PTX of CUDA 13.0 only")(archs("quickstart", "8.0+PTX", "H100@12.8"))
fires("ptx-newer-than-driver", "minor-version compatibility covers cubins, not PTX, and ")(
    archs(PRODUCTION, "9.0", "H100@12.4")
)
JIT_ONLY = "PTX, and CUTLASS scaled_mm c2x come as PTX"
fires("ptx-newer-than-driver", JIT_ONLY)(archs(PRODUCTION, "9.0;12.0", "H100@12.4"))  # Marlin and FA2 are native


@fires("ptx-newer-than-driver", "Marlin, CUTLASS scaled_mm c2x, Marlin MoE, FlashAttention 2 come as PTX")
def _(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = archs(PRODUCTION, "9.0", "H100@12.4")(folder, patch)
    return replace(subject, recipe=subject.recipe.model_copy(update={"native": False}))


blocks("driver-too-old-for-torch", "needs driver 580.65.06")(archs("quickstart", "9.0", "H100@570.26"))
fires("flash-attn-needs-ampere", "FlashAttention does not run on 7.5")(archs(PRODUCTION, "7.5;9.0"))
blocks("torch-not-built-for-gpu", "not 11.0")(archs(PRODUCTION, "11.0"))
fires("nvfatbin-relocation-overflow", "9 archs")(archs(PRODUCTION, "7.5;8.0;8.6;8.7;8.9;9.0;10.0;12.0;12.1"))


@fires("driver-too-old-for-torch", "driver 470.82.01 here")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    file(folder / "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Oct 27\n")
    return make_subject(folder, system=folder)


@blocks("optional-extension-silently-skipped", "too old for _flashmla_C")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    old = recipe("12.8", "system", components=["_flashmla_C"])
    return make_subject(folder, old)


@blocks("fa3-nvcc-12-3-static-assert", "CUDA 12.3")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, recipe("12.3", "system", components=["_vllm_fa3_C"], archs=["9.0"]))


# Python packages: the lock file
def locked(text: str, *, requirements: tuple[str, ...] = ("ninja",), **changes: Any) -> Case:
    def case(folder: Path, _: pytest.MonkeyPatch) -> Subject:
        file(folder / "x.txt", text)
        toolchain = {"kind": "pypi", "cuda": "13.0", "lock": "x.txt", "build_requirements": list(requirements)}
        return make_subject(folder, make_recipe(folder, toolchain=toolchain, **changes))

    return case


blocks("pep639-license-parse", "setuptools 70.3.0 in the lock file")(locked("setuptools==70.3.0 \\\n    --hash=x\n"))
blocks("setuptools-needs-packaging-licenses", "packaging 23.2")(locked("packaging==23.2\n"))
blocks("pkg-resources-removed", "setuptools 82.0")(locked("setuptools==82.0\n", requirements=("setuptools>=77,<81",)))
blocks("no-ninja-serial-build", "not in the lock file")(locked("cmake==3.31\n"))
blocks("no-isolation-missing-build-deps", "wheel (locked: no)")(locked("ninja==1\n", requirements=("ninja", "wheel")))
blocks("no-isolation-missing-build-deps", "ninja>=2 (locked: 1)")(locked("ninja==1\n", requirements=("ninja>=2",)))
blocks("isolation-redownloads-other-torch", "torch 2.6.0, the recipe wants 2.11.0")(locked("torch==2.6.0\n"))
blocks("torch-lacks-float8-e8m0fnu", "torch 2.6.0")(locked("torch==2.6.0\n"))
blocks("cxx11-abi-flag-mismatch", "old ABI")(locked("", torch={"version": "2.5.1", "cuda": "13.0"}))


@blocks("no-ninja-serial-build", "does not run")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    subject = make_subject(folder)
    program(subject.cache / "toolchains" / environment_key(subject.recipe) / "venv/bin/ninja", "exit 3")
    return subject


# git, index
@fires("large-wheel-download-timeout", "UV_HTTP_TIMEOUT=5")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, environment={"UV_HTTP_TIMEOUT": "5"})


@blocks("git-missing-in-image", "git is not on PATH")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, PRODUCTION, environment={"PATH": str(folder)})


@fires("github-or-dockerhub-rate-limit", "CI fetches 5 git sources")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    return make_subject(folder, PRODUCTION, environment={"CI": "true"})


@fires("git-dubious-ownership", "belongs to user id")
def _(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    return make_subject(folder)


@blocks("git-lfs-missing", "not installed")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    program(folder / "bin/git", "echo git-lfs filter-process")
    return make_subject(folder, environment={"PATH": f"{folder}/bin"})


# the environment
fires("nvjitlink-symbol-missing", "libnvJitLink")(library("libnvJitLink.so.12"))
fires("nccl-symbol-missing", "libnccl")(library("libnccl.so.2"))
fires("nccl-symbol-missing", "VLLM_NCCL_SO_PATH")(variable("VLLM_NCCL_SO_PATH", "/x/libnccl.so"))
fires("libcudart-soname-missing", "libcudart")(library("libcudart.so.12"))
fires("glibcxx-version-not-found", "libstdc++")(library("libstdc++.so.6"))
fires("cuda-stub-library-loaded", "for linking only")(variable("LD_LIBRARY_PATH", "/usr/local/cuda/lib64/stubs"))
fires("cuda-error-803-compat-lib", "compat")(variable("LD_LIBRARY_PATH", "/usr/local/cuda/compat"))
fires("stale-compiler-variables", "CPATH, CFLAGS")(
    lambda folder, _: make_subject(folder, environment={"CPATH": "/x", "CFLAGS": "-march=native"})
)
fires("conda-environment-active", "/opt/conda")(variable("CONDA_PREFIX", "/opt/conda"))
fires("cuda-home-elsewhere", "there is no such folder")(variable("CUDA_HOME", "/usr/local/cuda-99"))
fires("no-gpu-in-build-default-archs", "5.2 8.0")(variable("TORCH_CUDA_ARCH_LIST", "5.2 8.0"))
fires("pip-C-cmake-define-ignored", "CMAKE_ARGS")(variable("CMAKE_ARGS", "-DX=1"))
fires("locale-not-utf8", "de_DE.ISO-8859-1")(variable("LANG", "de_DE.ISO-8859-1"))
fires("stale-python-variables", "PYTHONPATH")(variable("PYTHONPATH", "/x"))
fires("max-jobs-divided-by-nvcc-threads", "NVCC_THREADS=4")(variable("NVCC_THREADS", "4"))


@fires("cuda-error-803-compat-lib", "cuda-compat.conf")
def _(folder: Path, _: pytest.MonkeyPatch) -> Subject:
    file(folder / "etc/ld.so.conf.d/cuda-compat.conf", "/usr/local/cuda-12.4/compat\n")
    return make_subject(folder, system=folder)


@pytest.mark.parametrize(
    ("name", "verdict", "text", "case"), CASES, ids=[f"{name}: {text}" for name, _, text, _ in CASES]
)
def test_a_check_fires_with_what_it_measured_and_what_to_do(
    name: str, verdict: Verdict, text: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = answer(name, case(tmp_path, monkeypatch))
    assert row.verdict is verdict, row
    assert text in row.measured
    assert len(row.fix) > 5


@pytest.mark.parametrize(
    ("ready", "need_gb"),
    [((), 10.0), (("toolchains",), 4.7), (("builds",), 10.0), (("toolchains", "builds"), 0.2)],
)
def test_a_build_needs_room_for_what_is_still_to_be_made(
    ready: tuple[str, ...], need_gb: float, tmp_path: Path
) -> None:
    subject = make_subject(tmp_path, recipe(cost={**COST, "disk_gb": 10.0}))
    for group in ready:
        folder = subject.cache / group / environment_key(subject.recipe)
        folder.mkdir(parents=True)
        (folder / "configured.json").touch()
    assert cache_need(subject) == pytest.approx(need_gb * 1e9)


def test_at_least_forty_checks_exist_and_most_are_made_to_fire_here() -> None:
    assert len(CHECKS) >= 40
    assert len({name for name, *_ in CASES}) >= 40


def test_a_check_that_breaks_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: 1 / 0)
    row = answer("qemu-cross-arch-segfault", make_subject(tmp_path))
    assert row.verdict is Verdict.UNKNOWN
    assert "the check itself failed: ZeroDivisionError" in row.measured


def test_a_check_has_an_id_of_the_catalogue_and_one_function() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        check("no-kernel-image")(lambda _: blocked(""))
    with pytest.raises(ValueError, match=r"not in failures\.toml"):
        check("the-moon")(lambda _: blocked(""))


def test_network_checks_are_left_out_offline(tmp_path: Path) -> None:
    subject = make_subject(tmp_path)
    offline = replace(subject, access=replace(subject.access, offline=True))
    assert answer("index-unreachable", offline).measured == "--offline: no host is asked"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0", (12, 2)),
        ("x86_64-conda-linux-gnu-c++ (conda-forge gcc 13.3.0-1) 13.3.0", (13, 3)),
        ("g++ (GCC) 16.1.1 20260501 (Red Hat 16.1.1-1)", (16, 1)),
        ("Debian clang version 14.0.6", None),
        ("", None),
    ],
)
def test_gcc_says_its_version_in_several_ways(text: str, version: tuple[int, int] | None) -> None:
    assert compiler_checks.gcc_version(text) == version


@pytest.mark.parametrize(
    ("found", "gcc", "components", "blocking"),
    [
        ("11.2.0", {"all": "11.3"}, ["_C"], "g++ 11.2; vLLM's CMake needs 11.3"),
        ("11.3.0", {"all": "11.3"}, ["_C"], ""),
        ("12.2.0", {"all": "11.3", "_deep_gemm_C": "13"}, ["_C"], ""),
        ("12.2.0", {"all": "11.3", "_deep_gemm_C": "13"}, ["_C", "_deep_gemm_C"], "g++ 12.2; _deep_gemm_C needs 13"),
        ("13.1.0", {"all": "11.3", "_deep_gemm_C": "13"}, ["_C", "_deep_gemm_C"], ""),
    ],
)
def test_gcc_is_held_to_what_upstream_asks_for_the_components_that_are_built(
    tmp_path: Path, found: str, gcc: dict[str, str], components: list[str], blocking: str
) -> None:
    wanted = recipe(toolchain={"host": {"gcc": gcc}}, components=components)
    result = answer("gcc-or-nvcc-std-flag-ignored", gxx(tmp_path, found, recipe=wanted))
    assert (result.verdict is Verdict.BLOCKED, blocking in result.measured) == (bool(blocking), True)


def test_python_is_held_to_what_upstream_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe(toolchain={"host": {"python": ">=3.11,<3.15"}})
    monkeypatch.setattr(compiler_checks, "sys", python((3, 10, 4)))
    result = answer("python-version-out-of-range", make_subject(tmp_path, wanted))
    assert result.verdict is Verdict.BLOCKED
    assert "this vLLM wants >=3.11" in result.measured
    monkeypatch.setattr(compiler_checks, "sys", python((3, 12, 4)))
    assert answer("python-version-out-of-range", make_subject(tmp_path, wanted)).verdict is Verdict.OK


def test_an_optional_rust_front_end_needs_no_cargo(tmp_path: Path) -> None:
    wanted = recipe(toolchain={"build_requirements": ["setuptools-rust>=1.9"]})
    result = answer("rust-toolchain-missing", make_subject(tmp_path, wanted, environment={"PATH": str(tmp_path)}))
    assert result.verdict is Verdict.OK
    assert "left out" in result.measured


def test_the_real_recipes_agree_with_their_own_lock_files(tmp_path: Path) -> None:
    for name in ("quickstart", PRODUCTION, "vllm-0.20.1-cu130"):
        subject = make_subject(tmp_path, load_recipe(name))
        for item in ("pep639-license-parse", "no-isolation-missing-build-deps", "isolation-redownloads-other-torch"):
            assert answer(item, subject).verdict is Verdict.OK, (name, item, answer(item, subject))
