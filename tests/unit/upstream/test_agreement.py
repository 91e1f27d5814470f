"""Every recipe says what its real source says: facts read from it once, in recipes/upstream/."""

from __future__ import annotations

import dataclasses

import pytest

from scripts.core.paths import RECIPES
from scripts.recipe.files import load_recipe, recipe_names
from scripts.upstream.agreement import differences
from scripts.upstream.tree import known_upstream


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_agrees_with_what_was_read_from_its_source(name: str) -> None:
    recipe = load_recipe(name)
    assert differences(recipe, known_upstream(recipe.package.version)) == []


def test_flashmla_needs_the_newer_recipe() -> None:
    recipe, upstream = load_recipe("vllm-0.15.1-cu129"), known_upstream("0.15.1")
    older = recipe.model_copy(update={"toolchain": recipe.toolchain.model_copy(update={"cuda": "12.8"})})
    assert [text for text in differences(older, upstream) if "_flashmla_C needs CUDA 12.9" in text]


@pytest.mark.parametrize("name", [name for name in recipe_names() if "0.15.1" in name])
def test_what_a_recipe_says_of_first_cudas_is_what_setup_py_says(name: str) -> None:
    firsts = {item.name: item.cuda for item in known_upstream("0.15.1").extensions if item.cuda}
    assert firsts == {key: cuda for key, cuda in load_recipe(name).needs_cuda.items() if key.startswith("_")}


def test_a_moved_pin_is_seen() -> None:
    upstream = known_upstream("0.15.1")
    moved = dataclasses.replace(upstream, fetches=(dataclasses.replace(upstream.fetches[0], pin="v9.9.9"),))
    assert any("v9.9.9" in text for text in differences(load_recipe("vllm-0.15.1-cu128"), moved))


def test_facts_are_there_for_every_version_that_a_recipe_builds() -> None:
    versions = {load_recipe(name).package.version for name in recipe_names()}
    assert {f"vllm-{version}" for version in versions} == {path.stem for path in (RECIPES / "upstream").glob("*.json")}
