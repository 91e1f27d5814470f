"""A CUDA_HOME made from small stand-ins of NVIDIA's wheels, and a libcuda stub linked by the real compiler."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.core.errors import ToolchainError
from scripts.formats.dynamic import read_dynamic
from scripts.formats.elf import open_elf
from scripts.toolchain.cuda_home import NEEDED, driver_functions, shape_cuda_home, write_stub

HEADER = """
#if defined(__CUDA_API_VERSION_INTERNAL)
#define cuMemAlloc                          cuMemAlloc_v2
    # define cuStreamSync                    __CUDA_API_PTSZ(cuStreamSync)
#define CUDA_VERSION 13000
#define cuda_other 1
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
typedef void (CUDA_CB *CUstreamCallback)(CUstream hStream);
"""
GXX = Path(shutil.which("g++") or "g++")


def wheels(folder: Path) -> Path:
    root = folder / "cu13"
    for name in (*NEEDED, "bin/notes/readme", "nvvm/libdevice/x.bc"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(HEADER if name.endswith("cuda.h") else name)
        (root / name).chmod(0o644)
    (root / "lib" / "cmake").mkdir(parents=True)
    for name in ("libcudart.so.13", "libnvrtc.so.13", "libnvrtc.alt.so.13", "libcudadevrt.a", "libz.so", "libz.so.1"):
        (root / "lib" / name).write_text(name)
    return root


def test_the_functions_of_the_driver_are_those_declared_and_those_their_names_stand_for(tmp_path: Path) -> None:
    header = tmp_path / "cuda.h"
    header.write_text(HEADER)
    assert driver_functions(header) == ["cuInit", "cuMemAlloc", "cuMemAlloc_v2", "cuStreamSync"]


def test_the_stub_exports_every_function_and_each_answers_that_it_is_a_stub(tmp_path: Path) -> None:
    header = tmp_path / "cuda.h"
    header.write_text(HEADER)
    stub = tmp_path / "libcuda.so"
    write_stub(stub, header, compiler=GXX)
    library = ctypes.CDLL(str(stub))
    assert [library[name]() for name in driver_functions(header)] == [34] * 4
    assert not hasattr(library, "cuda_other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cuda.h", "libcuda.so"]


def test_what_is_linked_against_the_stub_as_needed_asks_for_the_drivers_library(tmp_path: Path) -> None:
    (tmp_path / "cuda.h").write_text(HEADER)
    write_stub(tmp_path / "libcuda.so", tmp_path / "cuda.h", compiler=GXX)
    (tmp_path / "x.c").write_text("int cuInit(int); int use(void) { return cuInit(0); }\n")
    words = [str(GXX), "-shared", "-fPIC", "-nostdlib", "-Wl,--as-needed", "-x", "c", "x.c", "-x", "none", "-o", "x.so"]
    subprocess.run([*words, "-L.", "-lcuda"], cwd=tmp_path, check=True)
    with open_elf(tmp_path / "x.so") as elf:
        assert read_dynamic(elf).needed == ("libcuda.so.1",)


def test_a_compiler_that_cannot_link_is_named_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "cuda.h").write_text(HEADER)
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'cannot find ld' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(ToolchainError, match="cannot link a shared library") as raised:
        write_stub(tmp_path / "libcuda.so", tmp_path / "cuda.h", compiler=compiler)
    assert raised.value.why == "cannot find ld"
    assert not list(tmp_path.glob("*.c"))


def test_the_wheels_become_a_cuda_home_of_links(tmp_path: Path) -> None:
    root, home = wheels(tmp_path), tmp_path / "home"
    shape_cuda_home(root, home, compiler=GXX)
    assert (home / "bin/nvcc").samefile(root / "bin/nvcc")
    assert all(os.access(home / name, os.X_OK) for name in NEEDED[:5])
    assert (home / "bin/notes/readme").is_file()
    assert (home / "lib/libcudart.so").read_text() == "libcudart.so.13"
    assert (home / "lib64/libz.so").read_text() == "libz.so"
    libraries = {path.name for path in (home / "lib64").iterdir()}
    assert {"libnvrtc.so", "libnvrtc.alt.so.13", "libcudadevrt.a", "stubs"} <= libraries
    assert not {"libnvrtc.alt.so", "cmake"} & libraries
    assert ctypes.CDLL(str(home / "lib64/stubs/libcuda.so")).cuMemAlloc_v2() == 34


def test_where_links_are_not_possible_the_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    root, home = wheels(tmp_path), tmp_path / "home"
    monkeypatch.setattr("scripts.toolchain.cuda_home.os.link", refuse)
    shape_cuda_home(root, home, compiler=GXX)
    assert (home / "bin/nvcc").read_text() == "bin/nvcc"
    assert not (home / "bin/nvcc").samefile(root / "bin/nvcc")


def test_all_parts_that_the_wheels_lack_are_named_and_nothing_is_made(tmp_path: Path) -> None:
    root = wheels(tmp_path)
    (root / "bin/ptxas").unlink()
    (root / "nvvm/bin/cicc").unlink()
    with pytest.raises(ToolchainError, match="the CUDA wheels lack bin/ptxas, nvvm/bin/cicc"):
        shape_cuda_home(root, tmp_path / "home", compiler=GXX)
    assert not (tmp_path / "home").exists()
