"""What a vLLM source wants of the machine that compiles: Python, the C++ standard, the oldest GCC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from packaging.version import Version

from scripts.recipe.model import Host
from scripts.upstream.cmake import Call


def read_host(calls: Sequence[Call], project: Mapping[str, Any]) -> Host:
    """Return what CMake's commands and the table `project` of pyproject.toml say of the machine."""
    standards = [call.arguments[1] for call in calls if call.arguments[:1] == ["CMAKE_CXX_STANDARD"]]
    return Host.model_validate(
        {
            "python": str(project.get("requires-python", "")),
            **({"cxx": int(standards[0])} if standards and standards[0].isdecimal() else {}),
            "gcc": _oldest_gcc(calls),
        }
    )


def _oldest_gcc(calls: Sequence[Call]) -> dict[str, str]:
    """Return the oldest GCC that CMake configures with: for `all`, or for the components that a patch names.

    Upstream asks in `if(... "GNU" ... CMAKE_CXX_COMPILER_VERSION VERSION_LESS "13")` before a FATAL_ERROR. Patch 0002
    narrows such a question with `wants_components(VARIABLE component …)`.
    """
    wanted: dict[str, list[str]] = {}
    oldest: dict[str, str] = {}
    for call, following in pairwise(calls):
        words = call.arguments
        if call.name.lower() == "wants_components":
            wanted[words[0]] = words[1:]
        stops = following.name.lower() == "message" and following.arguments[:1] == ["FATAL_ERROR"]
        if call.name.lower() != "if" or not stops or "GNU" not in words or "VERSION_LESS" not in words:
            continue
        version = words[words.index("VERSION_LESS") + 1]
        names = [name for word in words for name in wanted.get(word, [])] or ["all"]
        oldest.update({name: max(oldest.get(name, version), version, key=Version) for name in names})
    return oldest
