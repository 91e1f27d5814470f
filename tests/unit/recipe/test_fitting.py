"""What a CUDA toolkit and an arch list leave of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.compile.shards import plan_json
from scripts.core.errors import UsageError
from scripts.cuda.archs import arch_list, loose_intersection, natively, parse_arch_list
from scripts.recipe.costs import cpu_seconds, unit_count
from scripts.recipe.files import load_recipe
from scripts.recipe.fitting import for_archs
from scripts.recipe.model import Component, Recipe


def variant(folder: Path, cuda: str, *, base: str = "vllm-0.15.1-cu128", more: str = "") -> Recipe:
    path = folder / "mine.toml"
    path.write_text(f'extends = "{base}"\n{more}\n[toolchain]\ncuda = "{cuda}"\n')
    return load_recipe(str(path))


def test_an_older_cuda_leaves_out_what_it_cannot_compile_and_says_so(tmp_path: Path) -> None:
    recipe = variant(tmp_path, "12.5", base="vllm-0.15.1-cu129")
    assert arch_list(recipe.archs) == "8.0;8.6;8.9;9.0"
    assert Component.FLASHMLA not in recipe.components
    assert Component.FLASH_ATTENTION_3 in recipe.components
    said = " ".join(recipe.lost)
    for word in ("12.0", "_flashmla_C", "NVFP4", "QuTLASS"):
        assert word in said, word
    assert recipe.version(recipe.archs) == "0.15.1+cu125"


def test_torch_s_own_cuda_and_newer_ones_lose_nothing(tmp_path: Path) -> None:
    for cuda in ("12.8", "12.9"):
        recipe = variant(tmp_path, cuda)
        assert recipe.lost == ()
        assert recipe.archs == load_recipe("vllm-0.15.1-cu128").archs


def test_another_major_version_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"torch\.cuda is 12\.8 but toolchain\.cuda is 13\.0"):
        variant(tmp_path, "13.0")


def test_an_arch_that_is_all_there_is_to_compile_is_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"12\.0"):
        variant(tmp_path, "12.5", more='archs = ["12.0"]')


def test_flash_attention_3_is_not_compiled_for_no_gpu() -> None:
    recipe = load_recipe("vllm-0.15.1-cu129")
    ampere = for_archs(recipe, parse_arch_list("8.6"))
    gone = {Component.FLASH_ATTENTION_3, Component.FLASHMLA, Component.FLASHMLA_EXTENSION}
    assert set(recipe.components) - set(ampere.components) == gone
    assert "_vllm_fa3_C" in ampere.lost[-1]
    assert for_archs(recipe, parse_arch_list("8.6;9.0")).components == recipe.components


@pytest.mark.parametrize(
    ("built", "archs", "native"),
    [
        ("8.0+PTX", "8.0;8.6;8.9;9.0;12.0", "8.0+PTX;9.0;12.0"),
        ("8.0+PTX;9.0+PTX", "8.0;9.0;12.0", "8.0+PTX;9.0+PTX;12.0"),
        ("8.0+PTX", "8.6", "8.0+PTX"),
        ("8.0+PTX", "9.0;12.0", "9.0;12.0"),
        ("9.0a", "8.6", ""),
    ],
)
def test_a_native_family_has_a_cubin_for_every_arch(built: str, archs: str, native: str) -> None:
    wanted = parse_arch_list(archs)
    assert arch_list(natively(loose_intersection(parse_arch_list(built), wanted), wanted)) == native


@pytest.mark.parametrize(("archs", "units"), [("8.6", 141), ("9.0", 385), ("8.6;9.0", 387), ("12.0", 166)])
def test_the_plan_counts_units_as_cmake_made_them_of_the_real_source(archs: str, units: int) -> None:
    assert abs(planned_units("vllm-0.15.1-cu128", archs) - units) <= 0.02 * units


def planned_units(name: str, archs: str, *without: str) -> int:
    recipe = load_recipe(name)
    left = tuple(item for item in recipe.components if item.value not in without)
    recipe, wanted = recipe.model_copy(update={"components": left}), parse_arch_list(archs)
    assert recipe.cost is not None
    fitted = for_archs(recipe, wanted)
    assert plan_json(fitted, wanted)["units"] == unit_count(fitted, recipe.cost, wanted)
    return unit_count(fitted, recipe.cost, wanted)


def test_a_component_that_is_left_out_takes_its_units_and_their_time_along() -> None:
    assert planned_units("vllm-0.15.1-cu128", "9.0", "_vllm_fa3_C") == planned_units("vllm-0.15.1-cu128", "9.0") - 224
    assert planned_units("vllm-0.15.1-cu128", "8.6", "_vllm_fa3_C") == planned_units("vllm-0.15.1-cu128", "8.6")
    assert planned_units("vllm-0.15.1-cu129", "9.0") == planned_units("vllm-0.15.1-cu128", "9.0") + 27  # FlashMLA's
    recipe, archs = load_recipe("vllm-0.15.1-cu128"), parse_arch_list("9.0")
    less = recipe.model_copy(update={"components": (Component.CORE,)})
    assert cpu_seconds(less, archs) < 0.2 * cpu_seconds(recipe, archs)
