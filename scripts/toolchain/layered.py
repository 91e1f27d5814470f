"""Our locked build tools over an installed torch: an environment of its interpreter, with the torch behind the tools.

    toolchains/KEY/venv     the tools, out of the recipe's lock file
    toolchains/KEY/torch -> the folder that holds the package torch

A `.pth` file of the environment leads to `../torch` as seen from it, by a relative path: under the fixed paths of a
build (compile/fixed_paths.py), where both are bound beside each other, it leads to the same torch. So compilers see the
same paths on every machine, and Python imports our cmake, ninja and setuptools before any of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from packaging.utils import canonicalize_name

from scripts.toolchain.environments import site_packages
from scripts.toolchain.installed_torch import InstalledTorch

LINK = "torch"  # beside the environment; fixed_paths.py binds it under this name
PTH = "wheelsmith-installed-torch.pth"
_TORCH = re.compile(r"torch|(pytorch-)?triton")
_CUDA = re.compile(r"(nvidia|cuda)-.*")


def tools_lock(lock: str, *, cuda: bool) -> str:
    """Return a lock file without torch, and without NVIDIA's packages unless the toolkit comes from them."""
    kept = []
    for block in re.split(r"\n(?=\S)", lock):
        name = canonicalize_name(re.split(r"[=\s\[]", block, maxsplit=1)[0])
        if not _TORCH.fullmatch(name) and (cuda or not _CUDA.fullmatch(name)):
            kept.append(block)
    return "\n".join(kept).rstrip("\n") + "\n"


def make_layers(
    target: Path, lock: Path, torch: InstalledTorch, *, cuda: bool, install: Callable[[Path, Path], float]
) -> float:
    """Make both parts below `target`; `install` makes an environment out of a lock file. Returns its seconds."""
    ours = target / "tools.txt"
    ours.write_text(tools_lock(lock.read_text(encoding="utf-8"), cuda=cuda))
    seconds = install(target / "venv", ours)
    (target / LINK).symlink_to(torch.root, target_is_directory=True)
    lead_to(target / "venv", torch, relative=True)
    return seconds


def lead_to(venv: Path, torch: InstalledTorch, *, relative: bool = False) -> None:
    """Let an environment import a torch and what its interpreter imports, after all of its own.

    `relative`: by the link beside the environment, else by the torch's real place.
    """
    site = site_packages(venv)
    first = Path(*[".."] * len(site.relative_to(venv.parent).parts), LINK) if relative else torch.root
    others = [part for part in torch.path if part != torch.root]
    (site / PTH).write_text("".join(f"{part}\n" for part in [first, *others]))
