"""What a command loads before it does anything: `--help` and `--dry-run` answer at once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts.core.paths import ROOT

HEAVY = {
    "auditwheel", "cyclonedx", "httpx2", "hyperscan", "jsonschema", "requests", "unearth",
    "scripts.failures.recognise",
}  # fmt: skip
"""What took 0.1 s or more of a start, and only part of the work needs."""
NOT_FOR_A_PLAN = HEAVY | {"scripts.commands.building", "scripts.doctor.examine", "scripts.pipeline.wheel"}
SESSIONS = dict(
    re.findall(r'_command\(session, "(\w+)"(?:, lock="(\w+)")?\)', (ROOT / "noxfile.py").read_text(encoding="utf-8"))
)
"""The modules of scripts/commands that nox runs, with the lock file that is not `tools`."""


def loaded(*arguments: str) -> set[str]:
    """Return the modules that Python loads for a command line."""
    words = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return {row.rpartition("|")[2].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}


def test_no_command_loads_what_only_its_work_needs() -> None:
    assert len(SESSIONS) > 12
    modules = loaded("-c", f"import {', '.join(f'scripts.commands.{name}' for name in SESSIONS if name != 'diagnose')}")
    assert "scripts.commands.wheel" in modules
    assert modules & HEAVY == set()


def test_a_plan_is_shown_without_loading_what_builds() -> None:
    modules = loaded("-m", "scripts.commands.wheel", "--recipe", "quickstart", "--dry-run")
    assert "scripts.pipeline.plan" in modules
    assert modules & NOT_FOR_A_PLAN == set()


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the modules that a file names in its imports, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{item.name}" for item in node.names)}
    return frozenset(names)


def reached(name: str, seen: set[str]) -> Iterator[str]:
    """Yield all modules that a module of ours may load, with those of others by their first word."""
    path = ROOT / f"{name.replace('.', '/')}.py"
    if name in seen or not path.is_file():
        return
    seen.add(name)
    folder, _, _ = name.rpartition(".")
    for module in imports(path):
        first = module.partition(".")[0]
        if first == "scripts":
            yield from reached(module, seen)
        elif (
            folder.endswith(".standalone") and path.with_name(f"{first}.py").is_file()
        ):  # a program that is run by path
            yield from reached(f"{folder}.{first}", seen)
        elif first not in sys.stdlib_module_names:
            yield first


@pytest.mark.parametrize("command", SESSIONS)
def test_a_session_installs_all_that_its_command_may_load(command: str) -> None:
    lock = (ROOT / "requirements" / f"{SESSIONS[command] or 'tools'}.txt").read_text(encoding="utf-8")
    installed = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    known = packages_distributions()
    wanted = {module for module in reached(f"scripts.commands.{command}", set()) if module != "tomli"}
    missing = {
        module for module in wanted if not {canonicalize_name(name) for name in known.get(module, [module])} & installed
    }
    assert missing == set()
