"""Configure the production build with everything real but the compiler.

Run: python -m tests.standin.configure --work DIR. Into DIR come: the production recipe's build environment (real torch
2.9.1 and CUDA 12.8 libraries, 3.5 GB), CUTLASS 4.2.1 (out of the flashinfer-python 0.5.3 wheel), vLLM 0.16.0's real
source with the recipe's patches (0.15.1 is on a git host only), and a CUDA_HOME of the real 12.8 headers and
libraries with a stand-in nvcc. triton_kernels and QuTLASS are empty files; FlashAttention and FlashMLA are left out:
their CMake files are on git hosts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.paths import RECIPES
from scripts.downloads.unpack import unpack_sdist
from scripts.recipe.files import load_recipe
from scripts.recipe.sources import SdistSource
from scripts.sources.fetch import fetch_archive
from scripts.sources.patch import apply_patches
from scripts.sources.series import recipe_patches
from tests.accesses import make_access

NVCC = Path(__file__).with_name("nvcc.py")
SOURCE = SdistSource(
    kind="sdist",
    name="vllm",
    version="0.16.0",
    sha256="1f684bb31fbef59d862e2fe666e23a41f1d39d93f86215ce1ce1db89a8f5665b",
)
COMPONENTS = "cumem_allocator;_C;_moe_C;triton_kernels"
QUTLASS = ("bindings.cpp", "gemm.cu", "gemm_ada.cu", "fused_quantize_mx.cu", "fused_quantize_nv.cu",
           "fused_quantize_mx_sm100.cu", "fused_quantize_nv_sm100.cu")  # fmt: skip


def install(venv: Path, packages: Path) -> None:
    """Install the recipe's build environment, the CUDA 12.8 headers nvcc brings, and CUTLASS 4.2.1, with uv."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    lock = RECIPES / load_recipe("vllm-0.15.1-cu128").toolchain.lock
    python = str(venv / "bin/python")
    if not venv.is_dir():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(venv)], check=True)
    locked = [uv, "pip", "install", "-q", "--python", python, "--require-hashes", "--no-deps", "-r", str(lock)]
    subprocess.run(locked, check=True)
    more = ["nvidia-cuda-nvcc-cu12==12.8.93", "flashinfer-python==0.5.3"]
    subprocess.run([uv, "pip", "install", "-q", "--target", str(packages), "--no-deps", *more], check=True)


def make_cuda_home(home: Path, nvidia: Path, nvcc_wheel: Path) -> None:
    """Make a CUDA_HOME of the real headers and libraries and the stand-in nvcc."""
    shutil.rmtree(home, ignore_errors=True)
    for folder in ("bin", "include", "lib64/stubs"):
        (home / folder).mkdir(parents=True)
    for include in [*nvidia.glob("*/include"), nvcc_wheel / "include"]:
        shutil.copytree(include, home / "include", dirs_exist_ok=True)
    for library in nvidia.glob("*/lib/*.so*"):
        for name in {library.name, library.name.split(".so")[0] + ".so"}:
            if not (home / "lib64" / name).exists():
                (home / "lib64" / name).symlink_to(library)
    shutil.copytree(nvcc_wheel / "nvvm", home / "nvvm")
    for archive in ("libcudart_static.a", "libcudadevrt.a"):
        subprocess.run(["ar", "rc", str(home / "lib64" / archive)], check=True)
    stub = ["gcc", "-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull, "-o"]
    subprocess.run([*stub, str(home / "lib64/stubs/libcuda.so")], check=True)
    nvcc = home / "bin/nvcc"
    nvcc.write_text(f"#!{sys.executable}\n" + NVCC.read_text())
    nvcc.chmod(0o755)


def configure(work: Path) -> int:
    """Prepare all and run CMake; return its exit code."""
    work.mkdir(parents=True, exist_ok=True)
    venv, packages, home, tree = work / "venv", work / "packages", work / "cuda", work / "source"
    recipe = load_recipe("vllm-0.15.1-cu128")
    install(venv, packages)
    site = next((venv / "lib").glob("python*/site-packages"))
    make_cuda_home(home, site / "nvidia", packages / "nvidia/cuda_nvcc")
    cache = Cache.open(work / "cache")
    archive = fetch_archive(SOURCE, make_access(cache, Console()))
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    unpack_sdist(archive.path, tree)
    apply_patches(tree, recipe_patches(recipe)[0])
    (work / "triton").mkdir(exist_ok=True)
    (work / "triton/__init__.py").touch()
    (work / "qutlass/qutlass/csrc").mkdir(parents=True, exist_ok=True)
    for name in QUTLASS:
        (work / "qutlass/qutlass/csrc" / name).touch()
    cutlass = packages / "flashinfer/data/cutlass"
    variables = {
        **os.environ, "PATH": f"{venv}/bin:{os.environ['PATH']}", "CUDA_HOME": str(home), "VLLM_COMPONENTS": COMPONENTS,
        "TORCH_CUDA_ARCH_LIST": ";".join(map(str, recipe.archs)), "VLLM_CUTLASS_SRC_DIR": str(cutlass),
        "TRITON_KERNELS_SRC_DIR": str(work / "triton"), "QUTLASS_SRC_DIR": str(work / "qutlass"),
    }  # fmt: skip
    given = {name: cutlass / folder for name, folder in recipe.dependencies["cutlass"].cmake.items()}
    definitions = {
        **given, "CMAKE_BUILD_TYPE": "Release", "VLLM_TARGET_DEVICE": "cuda", "FETCHCONTENT_FULLY_DISCONNECTED": "ON",
        "VLLM_PYTHON_EXECUTABLE": venv / "bin/python", "CMAKE_CUDA_COMPILER": home / "bin/nvcc",
        "CUDAToolkit_ROOT": home, "CUDA_TOOLKIT_ROOT_DIR": home, "VLLM_COMPRESS_MODE": "size",
    }  # fmt: skip
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    shutil.rmtree(work / "build", ignore_errors=True)
    command = [str(venv / "bin/cmake"), "-S", str(tree), "-B", str(work / "build"), "-G", "Ninja", *options]
    return subprocess.call(command, env=variables)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for environment, trees and build (8 GB)")
    sys.exit(configure(parser.parse_args().work.absolute()))


if __name__ == "__main__":
    main()
