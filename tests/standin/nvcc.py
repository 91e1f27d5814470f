"""A stand-in for nvcc 12.8: answers CMake's questions and compiles host code only. No kernel ever comes out of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VERSION = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\nBuild stand-in\n"
_WITH_VALUE = {"--keep-dir", "-keep-dir", "-gencode", "-arch", "-code", "-t", "--threads", "-Xptxas", "-Xfatbin"}
_DROPPED = re.compile(
    r"--?(keep|v|dryrun|verbose|gencode|generate-code|arch|expt-|extended-lambda|threads|compress-mode|cudart|rdc"
    r"|relocatable|lineinfo|use_fast_math|diag|Xptxas|forward|static-global|Xfatbin|ftz|Xcudafe|device-)"
)


def host_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the host compiler and its arguments for an nvcc command line, device options left out."""
    host, kept, rest = "g++", [], iter(arguments)
    for word in rest:
        if word in {"-Xcompiler", "--compiler-options"}:
            kept += next(rest).split(",")
        elif word.startswith(("-Xcompiler=", "--compiler-options=")):
            kept += word.split("=", 1)[1].split(",")
        elif word in {"-ccbin", "--compiler-bindir"}:
            host = next(rest)
        elif word.startswith("-ccbin="):
            host = word[7:]
        elif word in _WITH_VALUE:
            next(rest)
        elif word == "-x":
            kept += ["-x", next(rest).replace("cu", "c++")]
        elif word.endswith(".cu"):
            kept += ["-x", "c++", word, "-x", "none"]
        elif word == "-v" or not _DROPPED.match(word):
            kept += [word] if word != "-v" else []
    return host, kept


def main(home: Path, arguments: Sequence[str]) -> int:
    """Answer as nvcc 12.8 of the toolkit at `home` would."""
    if "--version" in arguments:
        sys.stdout.write(VERSION)
        return 0
    host, kept = host_arguments(arguments)
    libraries = f'"-L{home}/lib64/stubs" "-L{home}/lib64"'
    if "-v" in arguments:
        sys.stderr.write(
            f'#$ TOP={home}\n#$ PATH={home}/bin:{os.environ["PATH"]}\n#$ INCLUDES="-I{home}/include"  \n'
            f"#$ SYSTEM_INCLUDES=\n#$ LIBRARIES=  {libraries}\n#$ cicc -arch compute_75\n"
            f'#$ {host} -m64 "x.o" {libraries} -lcudart -lrt -lpthread -ldl -o "a.out"\n'
        )
    macros = ["CUDACC__", "NVCC__", "CUDACC_VER_MAJOR__=12", "CUDACC_VER_MINOR__=8", "CUDACC_VER_BUILD__=93"]
    command = [host, *(f"-D__{macro}" for macro in macros), f"-I{home}/include", *kept]
    if not {"-c", "-E", "-M", "-MM"} & set(kept):
        command += [f"-L{home}/lib64", f"-Wl,-rpath,{home}/lib64", "-lcudart", "-lrt", "-lpthread", "-ldl"]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent, sys.argv[1:]))
