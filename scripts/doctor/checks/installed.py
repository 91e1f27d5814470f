"""Checks of an installed torch that is compiled against (`--torch`): headers, ABI, archs, and upstream's pin."""

from __future__ import annotations

from scripts.doctor.registry import Result, Subject, blocked, check, ok, warning
from scripts.toolchain.adopt import cxx_standard, other_torch, problems


def judged(subject: Subject, name: str, fine: str) -> Result | None:
    """Return what is to be said of an installed torch under a check's id; None when there is none."""
    if subject.torch is None:
        return None
    found = next((item for item in problems(subject.torch, subject.recipe, subject.archs) if item.id == name), None)
    return blocked(found.what, found.fix) if found else ok(fine)


@check("torch-header-gone")
def headers(subject: Subject) -> Result:
    """Check that an installed torch has all that compiling against it reads."""
    where = f"{subject.torch.include.parent} has its headers, libraries and CMake package" if subject.torch else ""
    return judged(subject, "torch-header-gone", where) or ok("torch comes whole, from the lock file")


@check("torch-needs-cxx20")
def standard(subject: Subject) -> Result:
    """Check that the source is compiled by the C++ standard that an installed torch's headers ask for."""
    asked = f"its headers ask for C++{cxx_standard(subject.torch)}" if subject.torch else ""
    return judged(subject, "torch-needs-cxx20", asked) or ok(
        "the recipe's torch is the one that its source is made for"
    )


@check("torch-source-version-skew")
def pin(subject: Subject) -> Result:
    """Say when an installed torch is not the one that the source is made for."""
    if subject.torch is None:
        return ok("torch is the one that the recipe pins")
    other = other_torch(subject.recipe)
    fix = f"names of torch may have changed between the two; pip install torch=={subject.recipe.pinned_torch} is safe"
    return warning(other, fix) if other else ok(f"torch {subject.torch.version} is the release that the source pins")
