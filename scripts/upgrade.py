"""Renew every lock file with uv (requirements/, recipes/locks/, runtime/requirements/) and the schema."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.cli import Parser, run
from scripts.core.console import Console
from scripts.core.errors import ToolchainError, UsageError, nearest
from scripts.core.files import write_json
from scripts.core.paths import ROOT
from scripts.core.process import Command, call
from scripts.downloads.indexes import read_indexes
from scripts.recipe.files import json_schema, load_recipe, recipe_names
from scripts.recipe.model import SCHEMA_FILE, Recipe

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


def compile_lock(
    source: Path, target: Path, *, python: str = OLDEST_PYTHON, options: Sequence[str | Path] = ()
) -> None:
    """Resolve `source` into the hash-locked `target` for `python` and all later ones. Raises ToolchainError."""
    uv = Path(sys.executable).with_name("uv")
    settings = ["--quiet", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--upgrade"]
    command: Command = [uv, "pip", "compile", *settings, "--python-version", python, source, "-o", target, *options]
    # Only the main index: a local folder's or an extra index's builds must not get into a lock file.
    indexes = dataclasses.replace(read_indexes(), extra_index_urls=(), find_links=())
    environment = indexes.uv_environment({**os.environ, "UV_NO_CONFIG": "1"})
    done = call(command, environment=environment, limit=None, cwd=ROOT)
    if done.code:
        raise ToolchainError(f"{target.relative_to(ROOT)} could not be resolved", detail=done.error_text[-3000:])


def main(arguments: Sequence[str], console: Console) -> int:
    """Renew all lock files and the recipes' schema, or those named."""
    sources = sorted((ROOT / "requirements").glob("*.in"))
    images = [*sorted(RUNTIME.glob("vllm-*.in")), RUNTIME / "worker.in"]  # the worker's lock keeps to vLLM's
    known = ["schema", *(source.stem for source in (*sources, *images)), *recipe_names()]
    parser = Parser("upgrade", "Renew the lock files and the recipes' JSON Schema: all, or those named.")
    parser.add_argument("name", nargs="*", help=f"some of: {', '.join(known)}")
    names = parser.parse_args(arguments).name
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {name!r}.{nearest(name, known)}", fix=f"choose from: {', '.join(known)}")
    if not names or "schema" in names:
        console.stage("schema", str(SCHEMA_FILE.relative_to(ROOT)))
        write_json(SCHEMA_FILE, json_schema())
    for source in sources:
        if not names or source.stem in names:
            console.stage("lock", source.stem)
            compile_lock(source, source.with_suffix(".txt"))
    for source in images:
        if not names or source.stem in names:
            console.stage("lock", f"runtime {source.stem}")
            compile_lock(
                source, source.with_suffix(".txt"), python=OLDEST_RUNTIME_PYTHON, options=runtime_options(source)
            )
    done: set[str] = set()
    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe.toolchain.lock in done or (names and name not in names):
            continue
        done.add(recipe.toolchain.lock)
        console.stage("lock", recipe.toolchain.lock)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "build.in"
            source.write_text(lock_inputs(recipe))
            compile_lock(source, recipe.lock_file)
    return 0


if __name__ == "__main__":
    run(main)
