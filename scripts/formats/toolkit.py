"""Which CUDA toolkit a library's GPU code was compiled with.

PTX tells by its ISA version. Cubins of the newer ABI (CUDA 13's, and 12.8's for 10.0 and later) have a section
`.note.nv.tkinfo` with the words of `ptxas --version`; read off the cubins of vLLM 0.15.1 (nvcc 12.9) and of our own
(nvcc 13.0). Older cubins say nothing, and then the soname of the CUDA runtime tells the major version.
"""

from __future__ import annotations

import re

from scripts.cuda.drivers import release_for_ptx
from scripts.formats.dynamic import read_dynamic
from scripts.formats.elf import Elf
from scripts.formats.fatbin_types import DeviceCode, Kind
from scripts.formats.payload import unpacked

_CUDART = re.compile(r"libcudart\.so\.(\d{1,3})")
_TOOL = re.compile(rb"Cuda compilation tools, release (\d{1,3}\.\d{1,2}), V")
_NEW = (1, 8)
"""Version of the code in cubins that name their compiler."""
_TRIED = 8  # cubins of a library that are decompressed: one compiler wrote them all, as a rule


def compiled_with(elf: Elf, code: DeviceCode) -> str:
    """Return the CUDA version that an open library was compiled with: `12.9`; `12` when only the major one is told.

    "" when nothing tells. Raises AuditError for a damaged file.
    """
    ptx = [entry.version for entry in code.entries if entry.kind is Kind.PTX]
    if ptx:
        return release_for_ptx(max(ptx)).cuda
    cubins = [entry for entry in code.entries if entry.kind is Kind.ELF and entry.version >= _NEW]
    for entry in cubins[:_TRIED]:
        if found := _TOOL.search(unpacked(elf, entry) or b""):
            return found[1].decode()
    sonames = (_CUDART.fullmatch(soname) for soname in read_dynamic(elf).needed)
    return next((found[1] for found in sonames if found), "")
