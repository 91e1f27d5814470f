"""Renew every lock file with uv (requirements/, recipes/locks/, runtime/requirements/) and the JSON Schemas."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.commands.cli import Parser, run
from scripts.core.console import Console
from scripts.core.errors import UsageError, nearest
from scripts.core.files import write_json
from scripts.recipe.files import json_schema, load_recipe, recipe_names
from scripts.recipe.model import SCHEMA_FILE
from scripts.report.models import SCHEMA_FILE as REPORT_SCHEMA
from scripts.report.models import json_schema as report_schema
from scripts.toolchain.locks import (
    OLDEST_RUNTIME_PYTHON,
    RUNTIME,
    compile_group,
    compile_lock,
    dependency_groups,
    lock_inputs,
    runtime_options,
)


def main(arguments: Sequence[str], console: Console) -> int:
    """Renew all lock files and schemas, or those named."""
    groups = dependency_groups()
    images = [*sorted(RUNTIME.glob("vllm-*.in")), RUNTIME / "worker.in"]  # the worker's lock keeps to vLLM's
    known = ["schema", *groups, *(source.stem for source in images), *recipe_names()]
    parser = Parser("upgrade", "Renew the lock files and the JSON Schemas of recipes and reports: all, or those named.")
    parser.add_argument("name", nargs="*", help=f"some of: {', '.join(known)}")
    names = parser.parse_args(arguments).name
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {name!r}.{nearest(name, known)}", fix=f"choose from: {', '.join(known)}")
    if not names or "schema" in names:
        _write_schemas(console)
    for group in groups:
        if not names or group in names:
            console.stage("lock", group)
            compile_group(group, os.environ)
    for source in images:
        if not names or source.stem in names:
            console.stage("lock", f"runtime {source.stem}")
            settings = runtime_options(source)
            target = source.with_suffix(".txt")
            compile_lock([source], target, os.environ, python=OLDEST_RUNTIME_PYTHON, options=settings)
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
            compile_lock([source], recipe.lock_file, os.environ)
    return 0


def _write_schemas(console: Console) -> None:
    for path, schema in ((SCHEMA_FILE, json_schema()), (REPORT_SCHEMA, report_schema())):
        console.stage("schema", path.name)
        write_json(path, schema)


if __name__ == "__main__":
    run(main)
