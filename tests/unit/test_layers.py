"""The rules of docs/architecture.md are enforced by the linters: each of them is broken here and must be noticed."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.core.paths import ROOT

LINTERS = Path(sys.executable).parent


def ruff(text: str, place: str) -> str:
    command = [str(LINTERS / "ruff"), "check", "--select", "TID251", "--stdin-filename", place, "-"]
    return subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    "text", ["import subprocess", "import argparse", "import os\nos.environ", "from os import getenv"], ids=repr
)
@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("scripts/audit/collect.py", False),
        ("scripts/pipeline/wheel.py", False),
        ("scripts/core/cache.py", False),
        ("scripts/index/store.py", False),
        ("scripts/downloads/indexes.py", False),
        ("scripts/bench/ours.py", False),
        ("scripts/commands/wheel.py", True),
        ("scripts/core/process.py", True),
        ("scripts/compile/standalone/launcher.py", True),
    ],
)
def test_only_some_places_run_programs_or_read_argv_and_environment(text: str, place: str, *, allowed: bool) -> None:
    assert ("TID251" not in ruff(text, place)) is allowed


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> tuple[int, str]:
    command = [str(LINTERS / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("place", "line", "complaint"),
    [
        ("core/files.py", "from scripts.recipe.model import Recipe", "scripts.core is not allowed to import"),
        ("audit/models.py", "import scripts.pipeline.wheel", "scripts.audit is not allowed to import"),
        ("slim/layout.py", "from scripts.compile import build", "scripts.slim is not allowed to import"),
        ("compile/standalone/launcher.py", "from scripts.core import files", "is not allowed to import"),
        ("newcomer/__init__.py", "", "scripts.newcomer"),
    ],
)
def test_an_import_upwards_and_a_package_without_a_layer_are_refused(
    copy: Path, place: str, line: str, complaint: str
) -> None:
    path = copy / "scripts" / place
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.exists() else ""
    first = "from __future__ import annotations\n"
    path.write_text(text.replace(first, f"{first}{line}\n"))
    code, said = lint_imports(copy)
    assert code == 1
    assert complaint in said


def test_no_import_of_the_tree_is_excused() -> None:
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


def names_of(module: ast.Module) -> set[str]:
    """Return what a module defines itself."""
    found = {node.name for node in module.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return all modules of ours and of the tests, parsed, by their dotted names."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("scripts", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }


def test_settings_travel_in_access_and_not_side_by_side() -> None:
    settings = {"cache", "console", "indexes", "offline", "environment"}
    lists = [
        f"{where}.{node.name}"
        for where, tree in trees().items()
        if where.startswith("scripts.")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and len(settings & {item.arg for item in (*node.args.args, *node.args.kwonlyargs)}) > 2
    ]
    assert lists == []


def test_every_name_is_imported_from_the_module_that_defines_it() -> None:
    defined = {name: names_of(tree) for name, tree in trees().items() if name.startswith("scripts.")}
    imports = [
        (where, node.module, alias.name)
        for where, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in defined
        for alias in node.names
    ]
    assert [found for found in imports if found[2] not in defined[found[1]]] == []


def test_a_class_that_is_named_in_conversation_is_one_class() -> None:
    """Once three packages had a `Subject`, a `Finding` and an `Entry` each."""
    names = ("Subject", "Finding", "Entry", "Verdict", "Archive", "Job", "Failure", "Engine")
    sources = {path: path.read_text() for path in (ROOT / "scripts").rglob("*.py")}
    for name in names:
        found = [path for path, text in sources.items() if re.search(rf"^class {name}\b", text, re.MULTILINE)]
        assert len(found) <= 1, name
