"""Make a libcuda.so.1 for where there is no driver: `stub.py ENVIRONMENT FOLDER`. Each function answers an error.

vLLM's libraries do not load without libcuda, and vLLM asks them questions while it reads its command line: `--help`
and the image's checks need it. It is in no library path; nothing computes with it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STUB_LIBRARY = 34  # CUDA_ERROR_STUB_LIBRARY (cuda.h)


def driver_functions(site: Path) -> set[str]:
    """Return the driver's functions that the libraries of vLLM want."""
    names: set[str] = set()
    for library in sorted((site / "vllm").rglob("*.so")):
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        names.update(re.findall(r"^ +U (cu[A-Z]\w+)$", listing.stdout, re.MULTILINE))
    return names


def main(environment: Path, folder: Path) -> None:
    """Compile the stub; the same names give the same bytes."""
    names = set().union(*(driver_functions(site) for site in environment.glob("lib/python3*/site-packages")))
    folder.mkdir(parents=True, exist_ok=True)
    source = "".join(f"int {name}(void) {{ return {STUB_LIBRARY}; }}\n" for name in sorted(names))
    words = ["gcc", "-x", "c", "-shared", "-fPIC", "-s", "-Wl,-soname,libcuda.so.1,--build-id=none"]
    subprocess.run([*words, "-o", str(folder / "libcuda.so.1"), "-"], input=source, text=True, check=True)
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    sys.stdout.write(f"wheelsmith: a stub of libcuda with {len(names)} functions\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
