"""Lock files, compiled from their inputs with hashes."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.core.errors import ToolchainError
from scripts.core.paths import ROOT
from scripts.core.process import Command, call
from scripts.downloads.indexes import read_indexes
from scripts.recipe.model import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OLDEST_PYTHON = "3.10"
RUNTIME = ROOT / "runtime" / "requirements"
OLDEST_RUNTIME_PYTHON = "3.11"  # Debian 12's


def lock_inputs(recipe: Recipe) -> str:
    """Return what a recipe's build environment is resolved from: torch, CUDA packages, upstream's requirements."""
    wanted = [f"torch=={recipe.torch.version}", *recipe.toolchain.cuda_packages, *recipe.toolchain.build_requirements]
    wanted += recipe.import_requirements
    return "".join(f"{line}\n" for line in wanted)


def runtime_options(source: Path) -> list[str | Path]:
    """Return uv's options for a lock of the runtime image, from the comments that its source begins with.

    `# as of: DATE` leaves out what was uploaded later: a wheel's open requirements resolve to what it was released
    with. `# constraints: FILE` keeps to another lock's versions. The wheel itself is installed apart.
    """
    options: list[str | Path] = ["--no-emit-package", "vllm"]
    for name, value in re.findall(r"^# (as of|constraints): (\S+)$", source.read_text(), re.MULTILINE):
        options += ["--exclude-newer", value] if name == "as of" else ["--constraints", source.with_name(value)]
    return options


def dependency_groups() -> list[str]:
    """Return the names of the dependency groups (PEP 735) of pyproject.toml; each has a lock in requirements/."""
    return sorted(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"])


def compile_group(name: str, environment: Mapping[str, str]) -> None:
    """Resolve a dependency group into requirements/NAME.txt. Raises ToolchainError."""
    inputs = ["--group", f"{ROOT / 'pyproject.toml'}:{name}"]
    compile_lock(inputs, ROOT / "requirements" / f"{name}.txt", environment)


def compile_lock(
    inputs: Sequence[str | Path],
    target: Path,
    environment: Mapping[str, str],
    *,
    python: str = OLDEST_PYTHON,
    options: Sequence[str | Path] = (),
) -> None:
    """Resolve what uv's words `inputs` name into the hash-locked `target` for `python` and all later ones.

    Raises ToolchainError.
    """
    uv = Path(sys.executable).with_name("uv")
    settings = ["--quiet", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--upgrade"]
    command: Command = [uv, "pip", "compile", *settings, "--python-version", python, "-o", target, *options, *inputs]
    # Only the main index: a local folder's or an extra index's builds must not get into a lock file.
    indexes = dataclasses.replace(read_indexes(environment), extra_index_urls=(), find_links=())
    variables = indexes.uv_environment({**environment, "UV_NO_CONFIG": "1"})
    done = call(command, environment=variables, limit=None, cwd=ROOT)
    if done.code:
        raise ToolchainError(f"{target.relative_to(ROOT)} could not be resolved", detail=done.error_text[-3000:])
