"""What several tests share: strategies and small makers of real things."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from hypothesis import strategies as st

from scripts.cuda.archs import TABLE, Arch
from scripts.recipe.files import check_recipe
from scripts.recipe.model import Recipe


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    """Return an arch that exists, with any suffix it may have."""
    row = draw(st.sampled_from(TABLE))
    major, minor = (int(part) for part in row.number.split("."))
    suffixes = [""] + ["a"] * (major >= 9) + ["f"] * (major >= 10)
    return Arch(major, minor, draw(st.sampled_from(suffixes)), draw(st.booleans()))


def recipe_data() -> dict[str, Any]:
    """Return a small recipe that is right, as read from TOML."""
    return {
        "description": "a recipe of the tests",
        "package": {"name": "vllm", "version": "0.20.1"},
        "source": {"kind": "sdist", "name": "vllm", "version": "0.20.1", "sha256": "0" * 64},
        "torch": {"version": "2.11.0", "cuda": "13.0"},
        "toolchain": {"kind": "pypi", "cuda": "13.0", "lock": "locks/x.txt", "build_requirements": ["ninja"]},
        "archs": ["9.0", "12.0"],
        "components": ["cumem_allocator", "_moe_C"],
    }


def make_recipe(folder: Path = Path("recipes"), /, **changes: Any) -> Recipe:
    """Return that recipe with some keys changed."""
    return check_recipe({**recipe_data(), **changes}, folder / "mine.toml")


def write_recipe(folder: Path, name: str, /, **changes: Any) -> Path:
    """Write that recipe as a file, with some keys changed (None: left out)."""
    data = {key: value for key, value in {**recipe_data(), **changes}.items() if value is not None}
    path = folder / f"{name}.toml"
    path.write_text("".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in data.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value) if isinstance(value, float) else json.dumps(value)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children, which work beside the tests does not change."""
    return sum(os.times()[:4])


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ends while it is looked at does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
