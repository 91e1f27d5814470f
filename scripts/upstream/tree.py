"""What a vLLM source tree itself says: its torch, fetches, extensions, build requirements and archs.

Read from CMakeLists.txt, cmake/**/*.cmake, setup.py, pyproject.toml and requirements/, never from memory.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from scripts.core.errors import FetchError
from scripts.core.paths import RECIPES
from scripts.recipe.model import Host
from scripts.upstream.cmake import Call, cmake_calls
from scripts.upstream.extensions import Extension, read_extensions
from scripts.upstream.fetches import DOCS, Fetch, read_fetches
from scripts.upstream.host import read_host

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Upstream:
    """Facts of one source tree."""

    torch: str
    fetches: tuple[Fetch, ...]
    extensions: tuple[Extension, ...]
    build_requirements: tuple[str, ...]
    archs: dict[str, tuple[str, ...]]
    """Archs upstream builds for, by the first CUDA they hold for; "" for older ones."""
    host: Host = field(default_factory=Host)
    """What it wants of the machine that compiles."""
    rust: bool = False
    """Whether setup.py builds a Rust front end. It is optional unless VLLM_REQUIRE_RUST_FRONTEND is set."""


def known_upstream(version: str, folder: Path = RECIPES / "upstream") -> Upstream:
    """Return what was once read from the real source of a vLLM version: recipes/upstream/vllm-VERSION.json.

    So recipes are held to their source by a test that fetches nothing. Raises OSError for a version that was not read.
    """
    data = json.loads((folder / f"vllm-{version}.json").read_text(encoding="utf-8"))
    return Upstream(
        torch=data["torch"],
        fetches=tuple(
            Fetch(**{**row, "submodules": tuple(row["submodules"]), "cutlass": tuple(row.get("cutlass", ()))})
            for row in data["fetches"]
        ),
        extensions=tuple(Extension(**row) for row in data["extensions"]),
        build_requirements=tuple(data["build_requirements"]),
        archs={cuda: tuple(archs) for cuda, archs in data["archs"].items()},
        host=Host.model_validate(data.get("host", {})),
        rust=data.get("rust", False),
    )


def read_upstream(tree: Path) -> Upstream:
    """Read the facts of a vLLM source tree. Raises FetchError where it is not as expected."""
    files = [tree / "CMakeLists.txt", *sorted((tree / "cmake").rglob("*.cmake"))]
    calls = [call for path in files for call in cmake_calls(_text(path), path.relative_to(tree).as_posix())]
    return Upstream(
        torch=_torch(tree, calls),
        fetches=tuple(read_fetches(calls)),
        extensions=tuple(read_extensions(_text(tree / "setup.py"))),
        build_requirements=tuple(r for r in _build_requires(tree) if _name(r) != "torch"),
        archs=_archs(calls),
        host=read_host(calls, _pyproject(tree).get("project", {})),
        rust=any(_name(item) == "setuptools-rust" for item in _build_requires(tree)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FetchError(
            f"{path} cannot be read", why=error.strerror or str(error), fix="give the root of a vLLM source tree"
        ) from error


def _archs(calls: Sequence[Call]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    cuda = ""
    for call in calls:
        command = call.name.lower()
        if command in {"if", "elseif"} and "VERSION_GREATER_EQUAL" in call.arguments:
            cuda = call.arguments[call.arguments.index("VERSION_GREATER_EQUAL") + 1]
        elif command == "else":
            cuda = ""
        elif command == "set" and call.arguments[:1] == ["CUDA_SUPPORTED_ARCHS"]:
            found[cuda] = tuple(call.arguments[1].split(";"))
    if not found:
        raise FetchError("CMakeLists.txt sets no CUDA_SUPPORTED_ARCHS", why="it has changed", docs=DOCS)
    return found


def _torch(tree: Path, calls: Sequence[Call]) -> str:
    """Return the torch pin; CMakeLists.txt, pyproject.toml and requirements/cuda.txt must agree on it."""
    pins = {
        call.file: call.arguments[1]
        for call in calls
        if call.name.lower() == "set" and call.arguments[:1] == ["TORCH_SUPPORTED_VERSION_CUDA"]
    }
    listed = {"pyproject.toml": _build_requires(tree)}
    listed["requirements/cuda.txt"] = _text(tree / "requirements/cuda.txt").splitlines()
    for file, requirements in listed.items():
        for line in requirements:
            if match := re.match(r"torch\s*==\s*([\w.]+)", line):
                pins[file] = match[1]
    if len(set(pins.values())) != 1 or len(pins) != 3:
        shown = ", ".join(f"{file}: {pin}" for file, pin in pins.items())
        raise FetchError("upstream's files do not agree on one torch", why=shown or "none pins torch", docs=DOCS)
    return next(iter(pins.values()))


def _pyproject(tree: Path) -> dict[str, Any]:
    return tomllib.loads(_text(tree / "pyproject.toml"))


def _build_requires(tree: Path) -> list[str]:
    return [str(item) for item in _pyproject(tree)["build-system"]["requires"]]


def _name(requirement: str) -> str:
    try:
        return Requirement(requirement).name.lower()
    except InvalidRequirement:
        return requirement
