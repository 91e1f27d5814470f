"""Version labels: what a wheel's local version (PEP 440) says about CUDA, archs and completeness."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.version import Version

from scripts.cuda.archs import Arch, normalised


def cuda_label(cuda: str) -> str:
    """Return `cu130` for CUDA `13.0`, and for `13`: a major version alone means its first release."""
    return "cu" + "".join([*cuda.split("."), "0"][:2])


def version_label(version: str, *, cuda: str, archs: Sequence[Arch], recipe_archs: Sequence[Arch], note: str) -> str:
    """Return the wheel's whole version: `0.15.1+cu128`, `0.20.1+cu130.sm90.quickstart`.

    Archs are named unless they are the recipe's own list; `note` (may be "") marks wheels that lack components.
    A local version that upstream's `version` already carries comes first.
    """
    base = Version(version)
    parts = [base.local] if base.local else []
    parts.append(cuda_label(cuda))
    if normalised(archs) != normalised(recipe_archs):
        parts += [arch.label for arch in normalised(archs)]
    if note:
        parts.append(note)
    return f"{base.public}+{'.'.join(parts)}"
