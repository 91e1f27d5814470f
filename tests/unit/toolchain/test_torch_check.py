"""Whether an installed torch is the recipe's: stand-ins here, the real torch 2.9.1 with -m large."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.core.cache import default_cache_dir
from scripts.core.errors import ToolchainError
from scripts.core.paths import RECIPES
from scripts.cuda.archs import parse_arch, parse_arch_list
from scripts.recipe.files import load_recipe
from scripts.toolchain.torch import TorchFacts, check_torch, runs_on, torch_facts

BUILT = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")  # as the real torch 2.9.1 says


@pytest.fixture
def facts(tmp_path: Path) -> TorchFacts:
    header = tmp_path / "torch/headeronly/core/ScalarType.h"
    header.parent.mkdir(parents=True)
    header.write_text("enum { Float8_e8m0fnu };\n")
    return TorchFacts("2.9.1+cu128", "12.8", BUILT, tmp_path)


def test_the_recipes_torch_passes(facts: TorchFacts) -> None:
    recipe = load_recipe("vllm-0.15.1-cu128")
    check_torch(facts, recipe.torch, recipe.archs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2.9.0+cu128"}, r"torch is 2\.9\.0\+cu128"),
        ({"cuda": "13.0"}, r"built with CUDA 13\.0"),
        ({"cuda": ""}, "built with CUDA none"),
        ({"include": Path("/nonexistent")}, "has no type Float8_e8m0fnu"),
        ({"archs": ("sm_80", "sm_90")}, r"no kernels that run on 12\.0"),
    ],
)
def test_each_difference_is_refused(facts: TorchFacts, change: dict[str, object], message: str) -> None:
    recipe = load_recipe("vllm-0.15.1-cu128")
    with pytest.raises(ToolchainError, match=message):
        check_torch(replace(facts, **change), recipe.torch, recipe.archs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("built", "arch", "runs"),
    [
        (BUILT, "8.9", True),  # an sm_86 cubin runs on 8.9
        (BUILT, "12.1", True),
        (BUILT, "10.3", True),
        (("sm_89",), "8.6", False),
        (("sm_90",), "10.0", False),
        (("compute_90",), "12.0", True),
        (("sm_90a",), "9.0", False),
        (("nonsense",), "9.0", False),
    ],
)
def test_a_cubin_runs_on_its_major_version_and_ptx_on_all_later_ones(
    built: tuple[str, ...],
    arch: str,
    runs: bool,  # noqa: FBT001
) -> None:
    assert runs_on(built, parse_arch(arch)) is runs


def test_an_environment_without_torch_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"No module named 'torch'\"; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(ToolchainError, match="cannot be imported"):
        torch_facts(python)


def test_what_torch_says_is_read(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'a warning\'; echo \'["2.9.1+cu128", "12.8", "sm_80 sm_90", "/i"]\'\n')
    python.chmod(0o755)
    assert torch_facts(python) == TorchFacts("2.9.1+cu128", "12.8", ("sm_80", "sm_90"), Path("/i"))


@pytest.mark.large
def test_the_real_torch_of_the_production_recipe_passes() -> None:
    """3.5 GB of downloads once; WHEELSMITH_TEST_TORCH names an environment that has it already."""
    recipe = load_recipe("vllm-0.15.1-cu128")
    python = Path(os.environ.get("WHEELSMITH_TEST_TORCH", default_cache_dir() / "test-torch-2.9.1")) / "bin/python"
    if not python.exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, python.parent.parent], check=True)
        lock = RECIPES / recipe.toolchain.lock
        install: list[str | Path] = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--require-hashes",
            "--no-deps",
            "-r",
            lock,
        ]
        subprocess.run(install, check=True)
    facts = torch_facts(python)
    assert facts.archs == BUILT
    check_torch(facts, recipe.torch, parse_arch_list("8.0;8.6;8.9;9.0;12.0"))
