"""A miniature of what the main job builds: the whole pipeline with real tools in seconds.

Real: uv, CMake, ninja, g++, setuptools, build, auditwheel, abi3audit, the launcher, all of scripts/. Stand-ins, because
the real ones are gigabytes or minutes: vLLM (a tiny project with the same build interface), torch, and nvcc (a script
that reports a release; the project is C++ with a ready-made `.nv_fatbin` section).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from scripts.core.paths import RECIPES
from tests.fatbins import container, sass
from tests.wheels import make_wheel

CMAKE = """
cmake_minimum_required(VERSION 3.26)
project(miniature LANGUAGES CXX)
set(Python_EXECUTABLE ${VLLM_PYTHON_EXECUTABLE})
find_package(Python REQUIRED COMPONENTS Interpreter Development.SABIModule)
foreach(name IN ITEMS cumem_allocator _moe_C)
  file(GLOB sources csrc/${name}/*.cpp)
  Python_add_library(${name} MODULE USE_SABI 3.8 WITH_SOABI ${sources})
  target_include_directories(${name} PRIVATE $ENV{VLLM_CUTLASS_SRC_DIR}/include)
  install(TARGETS ${name} LIBRARY DESTINATION vllm COMPONENT ${name})
endforeach()
"""
SETUP = """
import os, subprocess, sys
from pathlib import Path
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
class cmake_build_ext(build_ext):
    def build_extensions(self):
        os.makedirs(self.build_temp, exist_ok=True)
        here = os.path.dirname(os.path.abspath(__file__))
        cmake = ["cmake", here, "-G", "Ninja", *os.environ["CMAKE_ARGS"].split()]
        subprocess.check_call(cmake, cwd=self.build_temp)
        names = [ext.name.split(".")[1] for ext in self.extensions]
        subprocess.check_call(["cmake", "--build", ".", "--target", *names], cwd=self.build_temp)
        for ext, name in zip(self.extensions, names):
            prefix = Path(self.get_ext_fullpath(ext.name)).parent.parent.absolute()
            install = ["cmake", "--install", ".", "--prefix", str(prefix), "--component", name]
            subprocess.check_call(install, cwd=self.build_temp)
names = os.environ["VLLM_COMPONENTS"].split(";")
setup(
    version=os.environ["VLLM_VERSION_OVERRIDE"],
    install_requires=["torch==2.11.0"],
    ext_modules=[Extension("vllm." + name, sources=[], py_limited_api=True) for name in names],
    cmdclass={"build_ext": cmake_build_ext},
)
"""
PYPROJECT = """
[build-system]
requires = ["setuptools>=77", "cmake>=3.26", "ninja"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
requires-python = ">=3.10"
license = "Apache-2.0"
dynamic = ["version", "dependencies"]
[tool.setuptools]
packages = ["vllm"]
"""
MODULE = """
#define Py_LIMITED_API 0x03080000
#include <Python.h>
#include <cutlass_version.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "NAME", nullptr, -1, nullptr};
extern "C" PyMODINIT_FUNC PyInit_NAME(void) { return PyModule_Create(&module); }
"""
DEVICE = """
__asm__(R"(
    .section .nv_fatbin, "a"
    .align 8
fatbinData:
    .incbin "FATBIN"
    .size fatbinData, . - fatbinData
    .section .nvFatBinSegment, "aw"
    .align 8
    .long 0x466243b1, 1
    .quad fatbinData, 0
    .text
)");
int device() { return 1; }
"""
TORCH = """
import types
__version__ = "2.11.0+mini"
version = types.SimpleNamespace(cuda="13.0")
class _C:
    @staticmethod
    def _cuda_getArchFlags():
        return "sm_90 sm_100 sm_120"
    @staticmethod
    def _dispatch_get_all_op_names():
        with open("/proc/self/maps") as maps:
            return ["_moe_C::topk"] if "_moe_C" in maps.read() else []
    @staticmethod
    def _jit_get_all_schemas():
        class Schema(str):
            name = "_moe_C::topk"
        return [Schema(name + "(Tensor x) -> ()") for name in _C._dispatch_get_all_op_names()]
    @staticmethod
    def _dispatch_has_kernel_for_dispatch_key(name, key):
        return key == "CUDA"
"""
HEADER = "torch/include/torch/headeronly/core/ScalarType.h"
NVCC = """#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0;; esac
while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""
COMPILER = """#!/bin/sh
# g++ that sleeps, fails or takes memory for units while a file beside it says so; not for what CMake tries.
here=$(dirname "$0")
case "$*" in
  *" -c "*/csrc/*)
    [ -x "$here/hungry" ] && { "$here/hungry" || exit $?; }
    [ -f "$here/slow" ] && sleep "$(cat "$here/slow")"
    [ -f "$here/broken" ] && case "$*" in
      */$(cat "$here/broken")) echo "b.cpp:1:1: error: it is broken" >&2; exit 1 ;;
    esac ;;
esac
exec g++ "$@"
"""
RECIPE = """
description = "a miniature"
archs = ["9.0", "12.0"]
components = ["cumem_allocator", "_moe_C"]
patches = ["0001-version.patch"]
import_requirements = ["packaging"]
[package]
name = "vllm"
version = "0.20.1"
label = "mini"
notice = "a miniature for tests"
[source]
kind = "sdist"
name = "vllm"
version = "0.20.1"
sha256 = "{source}"
[dependencies.cutlass]
version = "4.4.2"
variable = "VLLM_CUTLASS_SRC_DIR"
[dependencies.cutlass.source]
kind = "wheel"
name = "mini-cutlass"
version = "1.0"
sha256 = "{cutlass}"
path = "data/cutlass"
[torch]
version = "2.11.0"
cuda = "13.0"
[toolchain]
kind = "pypi"
cuda = "13.0"
lock = "mini.txt"
build_requirements = ["cmake", "ninja"]
"""
PATCH = """Subject: Say which version it is
Why: so that the test sees that patches were applied
Upstream: none
Versions: 0.20.1

--- a/vllm/__init__.py
+++ b/vllm/__init__.py
@@ -1 +1,2 @@
 import torch
+__version__ = "patched"
"""


@dataclass(frozen=True)
class Miniature:
    """Where the pieces are."""

    root: Path
    recipe: Path
    """The recipe file; its lock and patch are beside it."""
    compiler: Path

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables in which the main job finds the pieces."""
        return {
            "PIP_FIND_LINKS": str(self.root / "links"),
            "CXX": str(self.compiler),
            "WHEELSMITH_CACHE": str(cache),
            "UV_CACHE_DIR": str(self.root / "uv"),
            "MAX_JOBS": "1",
        }

    def slow(self, seconds: float) -> None:
        """Make every compiler call take longer; 0 ends it."""
        self._flag("slow", str(seconds) if seconds else "")

    def broken(self, *, broken: bool, units: str = "b.cpp") -> None:
        """Make one unit of _moe_C fail, or those whose sources match a shell pattern."""
        self._flag("broken", units if broken else "")

    def hungry(self, megabytes: int) -> None:
        """Make every compiler call take so much memory for a second; 0 ends it."""
        script = f"#!{sys.executable} -SE\nimport time\nx = bytearray({megabytes}_000_000)\ntime.sleep(1)\n"
        self._flag("hungry", script if megabytes else "")
        if megabytes:
            self.compiler.with_name("hungry").chmod(0o755)

    def _flag(self, name: str, text: str) -> None:
        path = self.compiler.with_name(name)
        if text:
            path.write_text(text)
        else:
            path.unlink(missing_ok=True)

    def variant(self, name: str, old: str, new: str) -> Path:
        """Write a changed copy of the recipe beside it."""
        text = self.recipe.read_text()
        if old not in text:
            raise ValueError(f"the recipe has no {old!r}")
        path = self.recipe.with_name(f"{name}.toml")
        path.write_text(text.replace(old, new))
        return path


def make_miniature(root: Path) -> Miniature:
    """Write the sdist, the wheels, the lock, the patch, the recipe and the compiler below `root`."""
    links = root / "links"
    links.mkdir(parents=True)
    fatbin = container(sass("90", "topk"), sass("120", "topk"))
    files = {
        "CMakeLists.txt": CMAKE,
        "setup.py": SETUP,
        "pyproject.toml": PYPROJECT,
        "vllm/__init__.py": "import torch\n",
        "vllm/templates/chat.jinja": "{{ messages }}\n",
        "csrc/cumem_allocator/main.cpp": MODULE.replace("NAME", "cumem_allocator")
        + '#include <cstdio>\nint other() { return std::puts("other"); }\n',
        "csrc/_moe_C/a.cpp": MODULE.replace("NAME", "_moe_C"),
        "csrc/_moe_C/b.cpp": DEVICE.replace("FATBIN", str(root / "moe.fatbin")),
        "csrc/_moe_C/c.cpp": '#include <cstdio>\nint third() { return std::puts("three"); }\n',
    }
    (root / "moe.fatbin").write_bytes(fatbin)
    source = _sdist(links / "vllm-0.20.1.tar.gz", files)
    cutlass = _wheel(links, "mini_cutlass", "1.0", {"data/cutlass/include/cutlass_version.h": "#pragma once\n"})
    torch = _wheel(links, "torch", "2.11.0+mini", {"torch/__init__.py": TORCH, HEADER: "Float8_e8m0fnu"})
    tools = {f"nvidia/cu13/{name}": NVCC for name in ("bin/nvcc", "bin/ptxas", "bin/cudafe++", "bin/fatbinary")}
    tools |= {
        "nvidia/cu13/nvvm/bin/cicc": NVCC,
        "nvidia/cu13/include/cuda_runtime.h": "",
        "nvidia/cu13/include/cuda.h": "CUresult CUDAAPI cuInit(int);",
        "nvidia/cu13/lib/libx.so.13": "",
    }
    nvcc = _wheel(links, "mini_cuda", "13.0", tools)
    recipe = root / "recipes" / "mini.toml"
    recipe.parent.mkdir()
    recipe.write_text(RECIPE.format(source=_sha256(source), cutlass=_sha256(cutlass)))
    (recipe.parent / "0001-version.patch").write_text(PATCH)
    (recipe.parent / "mini.txt").write_text(_lock({"torch==2.11.0+mini": torch, "mini-cuda==13.0": nvcc}))
    compiler = root / "compiler" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    return Miniature(root, recipe, compiler)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    members = {member: text.encode() for member, text in files.items()}
    metadata = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    return make_wheel(folder, members, name=name, version=version, tags="py3-none-any", metadata=metadata)


def _sdist(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {**files, "PKG-INFO": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.20.1\n"}.items():
            item = tarfile.TarInfo(f"vllm-0.20.1/{name}")
            item.size = len(text.encode())
            tar.addfile(item, io.BytesIO(text.encode()))
    return path


def _lock(own: dict[str, Path]) -> str:
    """Return a lock file: our stand-ins, and the real build tools as the real recipe pins them."""
    tools = ("build", "cmake", "ninja", "packaging", "pyproject-hooks", "setuptools", "wheel")
    text = (RECIPES / "locks/vllm-0.20.1-cu130.txt").read_text()
    blocks = {re.split(r"[=\s]", block, maxsplit=1)[0]: block for block in re.split(r"\n(?=\S)", text)}
    lines = [blocks[name].rstrip("\n") for name in tools]
    if sys.version_info < (3, 11):
        lines.append(blocks["tomli"].rstrip("\n"))
    lines += [f"{name} --hash=sha256:{_sha256(path)}" for name, path in own.items()]
    return "\n".join(lines) + "\n"


def wheel_command(*arguments: str) -> list[str]:
    """Return the command line of the main job, as the noxfile runs it."""
    return [sys.executable, "-m", "scripts.commands.wheel", *arguments]


def full_environment(miniature: Miniature, cache: Path) -> dict[str, str]:
    """Return this process's environment with the miniature's on top."""
    return {**os.environ, **miniature.environment(cache)}
