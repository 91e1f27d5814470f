"""Shape NVIDIA's CUDA wheels into a CUDA_HOME that nvcc, CMake and torch accept.

Source: CUDA 13.0 wheels as installed (`site-packages/nvidia/cu13/{bin,include,lib,nvvm}`), tried with CMake's
FindCUDAToolkit and torch's cmake package.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from scripts.core.errors import ToolchainError
from scripts.core.process import Command, capture

NEEDED = (
    "bin/nvcc",
    "bin/ptxas",
    "bin/cudafe++",
    "bin/fatbinary",
    "nvvm/bin/cicc",
    "include/cuda_runtime.h",
    "include/cuda.h",
)


def shape_cuda_home(root: Path, target: Path, *, compiler: Path) -> None:
    """Make a CUDA_HOME at `target` from the wheels' folder `root`: hard links where possible, copies elsewhere.

    `compiler` makes the stub of the driver's library. Raises ToolchainError when a needed part is missing.
    """
    missing = [name for name in NEEDED if not (root / name).is_file()]
    if missing:
        raise ToolchainError(
            f"the CUDA wheels lack {', '.join(missing)}",
            why="the lock file does not bring the whole compiler (cuda-toolkit[nvcc,nvvm,crt,cccl])",
            fix="renew the recipe's lock file: nox -s upgrade",
        )
    for part in ("bin", "include", "nvvm"):
        shutil.copytree(root / part, target / part, copy_function=_link, symlinks=True)
    for program in [*(target / "bin").iterdir(), *(target / "nvvm/bin").iterdir()]:
        if program.is_file() and not os.access(program, os.X_OK):
            program.chmod(0o755)
    lib = target / "lib64"
    lib.mkdir()
    for library in sorted((root / "lib").iterdir()):
        if library.is_file():
            _link(str(library), str(lib / library.name))
            plain = re.sub(r"\.so\.[\d.]+$", ".so", library.name)
            if plain != library.name and ".alt." not in plain and not (lib / plain).exists():
                (lib / plain).symlink_to(library.name)
    (target / "lib").symlink_to("lib64")
    (lib / "stubs").mkdir()
    write_stub(lib / "stubs" / "libcuda.so", target / "include" / "cuda.h", compiler=compiler)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def driver_functions(header: Path) -> list[str]:
    """Return the functions of the driver's library that cuda.h declares, under the names that are linked against."""
    text = header.read_text(errors="replace")
    declared = re.findall(r"\bCUDAAPI\s+(cu[A-Z]\w*)\s*\(", text)
    versioned = re.findall(r"^[ \t]*#\s*define\s+cu[A-Z]\w*\s+(?:__CUDA_API_\w+\()?(cu[A-Z]\w*)", text, re.MULTILINE)
    return sorted({*declared, *versioned})


def write_stub(path: Path, header: Path, *, compiler: Path) -> None:
    """Make a libcuda.so to link against: every function, each answering CUDA_ERROR_STUB_LIBRARY (34).

    An empty one would link as well, but compilers that pass --as-needed (Ubuntu's, torch's CMake) would then leave
    libcuda.so.1 out of the needed libraries, and the extension would not load.
    """
    source = path.with_suffix(".c")
    source.write_text("".join(f"int {name}(void) {{ return 34; }}\n" for name in driver_functions(header)))
    options = ("-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-x", "c")
    command: Command = [compiler, *options, source, "-o", path]
    code, text = capture(command)
    source.unlink()
    if code:
        raise ToolchainError(
            f"{compiler} cannot link a shared library",
            why=text.strip()[-300:],
            fix="install a whole C++ compiler (g++)",
        )
