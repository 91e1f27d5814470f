"""Is an installed torch the one that a recipe's extensions must be compiled against? Needs no GPU.

torch 2.9.1's own kernels are built for sm_70 75 80 86 90 100 120 and not for sm_89: what counts is that a cubin runs on
the arch (same major version, no newer minor), not that the arch is in the list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.core.errors import ToolchainError
from scripts.core.process import capture
from scripts.cuda.archs import Arch
from scripts.recipe.model import Torch
from scripts.toolchain.installed_torch import InstalledTorch

DOCS = "docs/production.md#torch"
FLOAT8_TYPE = "Float8_e8m0fnu"  # vLLM's MX kernels name it; torch before 2.7 has no such type
_HEADERS = ("torch/headeronly/core/ScalarType.h", "c10/core/ScalarType.h")
_ASK = (
    "import json, warnings; warnings.simplefilter('ignore'); import torch; from pathlib import Path; "
    "print(json.dumps([torch.__version__, torch.version.cuda or '', torch._C._cuda_getArchFlags() or '', "
    "str(Path(torch.__file__).parent / 'include')]))"
)


@dataclass(frozen=True)
class TorchFacts:
    """What an installed torch says of itself."""

    version: str
    cuda: str
    archs: tuple[str, ...]
    """Targets of its own kernels: `sm_90`, `compute_120`."""
    include: Path


def torch_facts(python: Path, environment: Mapping[str, str] | None = None) -> TorchFacts:
    """Ask the torch of an environment. Raises ToolchainError when it cannot be imported."""
    code, text = capture([python, "-c", _ASK], environment=environment, timeout=300)
    if code:
        raise ToolchainError(
            "torch cannot be imported in the build environment", detail=text.strip()[-2000:], docs=DOCS
        )
    version, cuda, archs, include = json.loads(text.strip().splitlines()[-1])
    return TorchFacts(version, cuda, tuple(archs.split()), Path(include))


def check_torch(facts: TorchFacts, torch: Torch, archs: Iterable[Arch]) -> None:
    """Compare an installed torch with a recipe's. Raises ToolchainError that names the first difference."""
    if facts.version.split("+")[0] != torch.version or facts.cuda != torch.cuda:
        raise ToolchainError(
            f"torch is {facts.version} built with CUDA {facts.cuda or 'none'}, "
            f"the recipe wants {torch.version} with CUDA {torch.cuda}",
            why="an index or find-links folder offers another build of torch",
            fix="check PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL, or correct the recipe",
            docs=DOCS,
        )
    if not names_float8(facts.include):
        raise ToolchainError(
            f"torch {facts.version} has no type {FLOAT8_TYPE}",
            why=f"its headers in {facts.include} do not name it, and vLLM's kernels need it",
            fix="take the torch that the recipe pins",
            docs=DOCS,
        )
    if missing := [arch for arch in archs if not runs_on(facts.archs, arch)]:
        raise ToolchainError(
            f"torch {facts.version} has no kernels that run on {', '.join(map(str, missing))}",
            why=f"it is built for {' '.join(facts.archs)}",
            fix="leave the arch out, or take a recipe with another torch",
            docs=DOCS,
        )


def check_layers(facts: TorchFacts, installed: InstalledTorch) -> None:
    """Refuse a build environment that imports another torch than the installed one. Raises ToolchainError."""
    if facts.version != installed.version or facts.include.resolve() != installed.include.resolve():
        raise ToolchainError(
            f"the build environment imports torch {facts.version} of {facts.include.parent}, "
            f"not torch {installed.version} of {installed.root}",
            why="another torch comes first on its path",
            fix=f"see what lies there; the torch of {installed.python} is wanted",
            docs="docs/installed-torch.md",
        )


def runs_on(built: Iterable[str], arch: Arch) -> bool:
    """Whether code for one of the targets runs on `arch`: a cubin of its major version, or PTX of an older one."""
    for target in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", target)
        if match is None or match[4]:
            continue
        have = (int(match[2]), int(match[3]))
        if have <= (arch.major, arch.minor) and (match[1] == "compute" or have[0] == arch.major):
            return True
    return False


def names_float8(include: Path) -> bool:
    """Whether torch's headers have the type Float8_e8m0fnu."""
    return any(_mentions(include / name) for name in _HEADERS)


def _mentions(header: Path) -> bool:
    return header.is_file() and FLOAT8_TYPE in header.read_text(encoding="utf-8", errors="replace")
