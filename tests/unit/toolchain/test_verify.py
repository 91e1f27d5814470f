"""The toolchain's checks, with shell scripts that answer as nvcc does."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.core.errors import ToolchainError
from scripts.cuda.archs import parse_arch, parse_arch_list
from scripts.toolchain.torch import TorchFacts
from scripts.toolchain.verify import compile_kernel, gencode, nvcc_release, verify_toolchain
from tests.support import make_recipe

ARCHS = parse_arch_list("9.0;12.0+PTX")
RELEASE = 'case "$*" in --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0;; esac\n'


def nvcc(folder: Path, script: str) -> Path:
    path = folder / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Tools:
    """A CUDA_HOME of the tests and this Python."""

    cuda_home: Path
    python: Path = Path(sys.executable)

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        return {**base, "CXX": "g++"}


def test_the_release_is_read_from_what_nvcc_says(tmp_path: Path) -> None:
    assert nvcc_release(nvcc(tmp_path, RELEASE), os.environ) == "13.0"


@pytest.mark.parametrize(
    ("script", "cause"),
    [("echo 'release 13.0'; echo 'no libc' >&2; exit 1", "no libc"), ("echo something else", "something else")],
)
def test_an_nvcc_that_fails_or_says_no_release_does_not_run(script: str, cause: str, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="nvcc does not run") as raised:
        nvcc_release(nvcc(tmp_path, script), os.environ)
    assert cause in raised.value.why


def test_an_nvcc_that_is_not_there_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="nvcc does not run") as raised:
        nvcc_release(tmp_path / "nvcc", os.environ)
    assert "No such file" in raised.value.why


def test_an_nvcc_of_another_release_is_refused_with_both(tmp_path: Path) -> None:
    home = nvcc(tmp_path, RELEASE.replace("13.0", "12.9")).parent.parent
    with pytest.raises(ToolchainError, match=r"nvcc is of CUDA 12\.9, the recipe mine wants 13\.0") as raised:
        verify_toolchain(Tools(home), make_recipe(), ARCHS, os.environ)
    assert str(home) in raised.value.why


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("9.0", ["-gencode", "arch=compute_90,code=sm_90"]),
        ("10.0a", ["-gencode", "arch=compute_100a,code=sm_100a"]),
        (
            "12.0+PTX",
            ["-gencode", "arch=compute_120,code=sm_120", "-gencode", "arch=compute_120,code=compute_120"],
        ),
    ],
)
def test_an_arch_is_a_cubin_and_with_ptx_also_its_compute_version(arch: str, options: list[str]) -> None:
    assert gencode(parse_arch(arch)) == options


def test_one_kernel_is_compiled_for_all_archs_against_the_stub_with_the_host_compiler(tmp_path: Path) -> None:
    path = nvcc(tmp_path, f'echo "$@" > {tmp_path}/said')
    compile_kernel(path, ARCHS, {**os.environ, "CXX": "/opt/g++-13"})
    words = (tmp_path / "said").read_text().split()
    assert words[:2] == ["-ccbin", "/opt/g++-13"]
    assert [word for word in words if word.startswith("arch=")] == [
        "arch=compute_90,code=sm_90",
        "arch=compute_120,code=sm_120",
        "arch=compute_120,code=compute_120",
    ]
    assert words[-2:] == ["-lcuda", f"-L{path.parent.parent}/lib64/stubs"]


@pytest.mark.parametrize(
    ("said", "why", "fix"),
    [
        ("#error -- unsupported GNU version! gcc versions later than 15", "g++ is newer than this nvcc accepts", "CXX"),
        ("#error -- unsupported clang version! clang", "g++ is newer than this nvcc accepts", "CXX"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_120'", "does not know one of the archs", "newer CUDA"),
        ("fatal error: error writing to /tmp/x.s: No space left on device", "no space left", "TMPDIR"),
        ("ld: cannot find -lcuda", "host compiler g++", "output above"),
    ],
)
def test_a_kernel_that_does_not_compile_has_its_cause_and_the_output(
    said: str, why: str, fix: str, tmp_path: Path
) -> None:
    path = nvcc(tmp_path, f'echo "{said}" >&2; exit 2')
    with pytest.raises(ToolchainError, match=r"does not compile for 9\.0;12\.0\+PTX") as raised:
        compile_kernel(path, ARCHS, {**os.environ, "CXX": "g++"})
    assert why in raised.value.why
    assert fix in raised.value.fix[0]
    assert raised.value.detail == said


def test_what_was_verified_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = nvcc(tmp_path, RELEASE).parent.parent
    header = tmp_path / "c10/core/ScalarType.h"
    header.parent.mkdir(parents=True)
    header.write_text("Float8_e8m0fnu")
    facts = TorchFacts("2.11.0", "13.0", ("sm_90", "sm_120"), tmp_path)
    monkeypatch.setattr("scripts.toolchain.verify.torch_facts", lambda *_: facts)  # a real one is gigabytes
    found = verify_toolchain(Tools(home), make_recipe(), ARCHS, os.environ)
    assert found == {"nvcc": "13.0", "torch": "2.11.0", "torch_cuda": "13.0", "archs": "9.0;12.0+PTX"}
