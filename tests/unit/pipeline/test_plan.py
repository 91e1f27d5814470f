"""The plan of the real recipes, and the refusal to start on a disk that is too small."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from scripts.core.console import Console, human_seconds
from scripts.core.machine import Machine
from scripts.cuda.archs import parse_arch_list
from scripts.pipeline.plan import show_plan
from scripts.recipe.costs import cpu_seconds, native_seconds, unit_count
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.fitting import native_archs
from scripts.recipe.model import Recipe
from scripts.recipe.sources import describe
from scripts.sources.series import recipe_patches
from scripts.toolchain.installed import find_system_toolkit
from tests.support import make_recipe

LOCK = "locks/vllm-0.20.1-cu130.txt"
PYPI = {"kind": "pypi", "cuda": "13.0", "lock": LOCK, "build_requirements": []}
COST = {
    "units": 10,
    "cpu_seconds": 100.0,
    "cpu_seconds_per_arch": 50.0,
    "unit_memory_gb": 2.0,
    "download_gb": 1.0,
    "disk_gb": 10.0,
    "measured": "by the tests",
}


@pytest.fixture(autouse=True)
def _no_toolkit_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search = functools.partial(find_system_toolkit, prefix=tmp_path / "local")
    monkeypatch.setattr("scripts.pipeline.plan.find_system_toolkit", search)


def plan(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    *,
    archs: str = "",
    environment: dict[str, str] | None = None,
    machine: Machine = Machine(4, 15.0),  # noqa: B008 - frozen
) -> str:
    show_plan(
        recipe,
        parse_arch_list(archs) if archs else recipe.archs,
        own=None,
        jobs=machine.cores,
        machine=machine,
        wheelhouse=Path("/w"),
        environment=environment or {},
        console=Console(),
    )
    return capsys.readouterr().out


@pytest.mark.parametrize("name", recipe_names())
def test_the_plan_of_a_real_recipe_names_every_source_patch_and_component(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(name)
    shown = " ".join(plan(recipe, capsys).split())
    assert f"/w/vllm-{recipe.version(recipe.archs)}-…whl" in shown
    for source in (recipe.source, *(item.source for item in recipe.needed_dependencies().values())):
        assert " ".join(describe(source).split())[:60] in shown
    assert all(component.value in shown for component in recipe.components)
    assert all(patch.name in shown for patch in recipe_patches(recipe)[0])
    assert "4 at a time (4 cores, 15.0 GB of memory free)" in shown
    assert recipe.cost is not None
    assert f"about {unit_count(recipe, recipe.cost, recipe.archs)} " in shown


def test_sources_are_described_with_their_pins() -> None:
    recipe = make_recipe()
    assert describe(recipe.source) == "sdist vllm 0.20.1, sha256 000000000000…"
    production = load_recipe("vllm-0.15.1-cu128")
    assert describe(production.source).startswith("git https://") or "sha256" in describe(production.source)


@pytest.mark.parametrize(
    ("archs", "row"),
    [
        ("8.0;9.0;12.0", "Marlin: 8.0+PTX (JIT on 9.0;12.0)"),
        ("9.0;12.0", "Machete: 9.0a (nothing for 12.0)"),
        ("12.0", "Machete: none (nothing for 12.0)"),
        ("9.0", "Machete: 9.0a"),
        ("8.0;8.9", "AllSpark: 8.9 (nothing for 8.0)"),
        ("10.0;10.3", "CUTLASS MLA: 10.0a (nothing for 10.3)"),
    ],
)
def test_a_family_row_says_which_archs_it_leaves_to_ptx_or_to_nothing(
    archs: str, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    built = {"Marlin": "8.0+PTX", "Machete": "9.0a", "AllSpark": "8.9", "CUTLASS MLA": "10.0a", "QuTLASS": ""}
    name = row.split(":", maxsplit=1)[0]
    recipe = make_recipe(toolchain=PYPI, components=["_C"], families={"_C": {name: built[name], "QuTLASS": ""}})
    shown = plan(recipe, capsys, archs=archs)
    rows = [line.split(maxsplit=1)[1].strip() for line in shown.splitlines() if line.startswith("kernels")]
    assert rows == [row]


@pytest.mark.parametrize(
    ("kind", "redist", "shown"),
    [
        ("pypi", False, "nvcc from NVIDIA's wheels"),
        ("redist", True, "NVIDIA's redistributable archives"),
        ("auto", True, "none is installed: NVIDIA's archives of 13.0.2, into the cache"),
        ("system", True, "none is installed)"),
        ("auto", False, "none is installed)"),
    ],
)
def test_the_plan_says_where_the_toolkit_comes_from(
    kind: str, *, redist: bool, shown: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toolchain: dict[str, Any] = {"kind": kind, "cuda": "13.0", "lock": LOCK, "build_requirements": []}
    if redist:
        toolchain["redist"] = {"release": "13.0.2"}
    text = plan(make_recipe(toolchain=toolchain), capsys, environment={"CUDA_HOME": str(tmp_path)})
    assert shown in " ".join(text.split())


def test_an_installed_toolkit_is_named_with_where_it_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\necho release 13.0\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    toolchain = {"kind": "system", "cuda": "13.0", "lock": LOCK, "build_requirements": []}
    text = plan(make_recipe(toolchain=toolchain), capsys, environment={"CUDA_HOME": str(tmp_path)})
    assert f"{tmp_path},foundasCUDA_HOME={tmp_path}" in "".join(text.split())  # the table folds long values


def test_each_further_arch_costs_its_own_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_seconds(make_recipe(cost=COST), parse_arch_list("9.0;10.0;12.0")) == 200
    assert cpu_seconds(make_recipe(), parse_arch_list("9.0")) == 0
    text = " ".join(plan(make_recipe(toolchain=PYPI, cost=COST), capsys, archs="9.0;10.0;12.0").split())
    assert "about 50 s of compiling (3 min 20 s of one core)" in text
    assert "takes about 2.0 GB of memory (estimated); others start beside it as memory allows" in text
    assert "measured units fit" not in text
    assert "native" not in text


def test_the_plan_shows_what_native_code_costs(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("vllm-0.15.1-cu128")
    archs = parse_arch_list("8.0;8.6;8.9;9.0;12.0")
    assert native_archs(recipe, archs) == parse_arch_list("9.0;12.0")
    assert native_archs(recipe, parse_arch_list("8.6;8.9")) == ()
    upstream = recipe.model_copy(update={"native": False})
    assert native_archs(upstream, archs) == ()
    assert native_seconds(recipe, parse_arch_list("9.0")) == 0  # in place of 8.0, as upstream has it
    assert recipe.cost is not None
    saved = cpu_seconds(recipe, archs) - cpu_seconds(upstream, archs)
    assert saved == 2 * recipe.cost.native_cpu_seconds > 0
    assert f"{human_seconds(saved)} of this for native code for 9.0;12.0" in " ".join(plan(recipe, capsys).split())
    assert "of this for native code" not in plan(upstream, capsys)


def test_without_figures_the_plan_has_no_cost(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(
        make_recipe(toolchain=PYPI, package={"name": "vllm", "version": "0.20.1", "notice": "not for use"}), capsys
    )
    assert "of compiling" not in text
    assert "not for use" in text


@pytest.mark.parametrize(
    ("archs", "machine", "shown"),
    [
        ("9.0", Machine(2, 7.0, 8.0), "(w4a8_mm_entry.cu, measured), and this machine has 8.0 GB in all: so it is not"),
        ("9.0", Machine(2, 12.0, 24.0), "measured), and 12.0 GB are free: it is compiled alone, and may fail"),
        ("9.0", Machine(2, 15.0, 16.0), "12.6 GB of memory (w4a8_mm_entry.cu, measured); others start beside it"),
        (
            "12.0",
            Machine(2, 7.0, 8.0),
            "9.6 GB of memory (scaled_mm_sm120_fp8.cu, measured), and this machine has 8.0 GB",
        ),
        ("9.0", Machine(2, 15.0), "104 of 116 measured units fit 2 at a time; 12 larger ones fewer at a time"),
        ("9.0", Machine(2, 60.0), "116 of 116 measured units fit 2 at a time"),
    ],
)
def test_the_plan_says_what_memory_this_machine_has_for_the_units_of_these_archs(
    archs: str, machine: Machine, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = plan(load_recipe("vllm-0.33.0-cu130-index"), capsys, archs=archs, machine=machine)
    assert shown in " ".join(text.split())


def test_an_estimate_that_does_not_fit_is_no_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(make_recipe(toolchain=PYPI, cost=COST), capsys, machine=Machine(2, 1.0, 1.5))
    assert "2.0 GB of memory (estimated), and this machine has 1.5 GB in all: so it may fail" in " ".join(text.split())


def test_more_cores_than_the_longest_unit_leaves_work_for_promise_no_shorter_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = plan(load_recipe("vllm-0.33.0-cu130-index"), capsys, archs="9.0", machine=Machine(16, 128.0))
    assert "about 10 min 53 s of compiling (1 h 33 min of one core)" in " ".join(text.split())  # 11 min 4 s were real
