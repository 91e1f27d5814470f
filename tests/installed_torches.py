"""Environments with an installed torch, and CUDA toolkits, for tests: Python is real, what is huge stands in."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

from tests.miniature import HEADER, NVCC, TORCH
from tests.wheels import digest

NEEDED = (
    "include/torch/csrc/api/include/torch/all.h",
    "include/ATen/ATen.h",
    "include/ATen/cuda/CUDAContext.h",
    "include/c10/cuda/CUDAStream.h",
    "lib/libtorch_cuda.so",
    "lib/libc10_cuda.so",
    "share/cmake/Torch/TorchConfig.cmake",
)


def make_torch(
    folder: Path,
    *,
    version: str = "2.7.0a0+nv25.02",
    distribution: str | None = None,
    cuda: str = "13.0",
    abi: bool = True,
) -> Path:
    """Make a virtual environment with a torch in it; return its interpreter. `distribution` "": a source checkout."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    text = TORCH.replace("2.11.0+mini", version).replace('cuda="13.0"', f"cuda={cuda!r}" if cuda else "cuda=None")
    text = text.replace("class _C:\n", f"class _C:\n    _GLIBCXX_USE_CXX11_ABI = {abi}\n", 1)
    said = f"__version__ = {version!r}\ncuda = {cuda!r}\n"
    files = {"torch/__init__.py": text, "torch/version.py": said, HEADER: "Float8_e8m0fnu"}
    files |= {f"torch/{name}": "" for name in NEEDED}
    known = version if distribution is None else distribution
    if known:
        info = f"torch-{known}.dist-info"
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: torch\nVersion: {known}\n"
        rows = [f"{name},{digest(content.encode())},{len(content)}" for name, content in files.items()]
        files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    return folder / "bin" / "python"


def make_toolkit(folder: Path, release: str = "13.0") -> Path:
    """Make a CUDA_HOME whose nvcc says a release and whose headers and libraries are empty; return it."""
    files = {"bin/nvcc": NVCC.replace("13.0", release)}
    names = "cuda_runtime cuda_runtime_api cusparse cublas_v2 cusolverDn curand nvrtc"
    files |= {f"include/{name}.h": "" for name in names.split()}
    files |= {f"lib64/{name}.so": "" for name in ("libcudart", "libnvrtc", "stubs/libcuda")}
    files |= {f"lib64/{name}.a": "" for name in ("libcudart_static", "libcudadevrt")}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "bin/nvcc").chmod(0o755)
    return folder
