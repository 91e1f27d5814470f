from __future__ import annotations

from pathlib import Path

import pytest

from scripts.compile.expectation import compile_seconds
from scripts.compile.shards import MOST, RUNNER_MEMORY_GB, Shard, parse_shard, plan_json, units_of
from scripts.core.errors import UsageError
from scripts.recipe.costs import CostBook, Unit, cost_book, costs_json
from scripts.recipe.files import load_recipe, recipe_names
from tests.support import make_recipe, write_recipe
from tests.unit.recipe.test_cost_model import COST, NOWHERE, book, data_of


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1/1000", "1 / 2"])
def test_what_is_no_shard_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--shard is"):
        parse_shard(text)


def test_a_shard_is_read_as_it_is_written() -> None:
    assert parse_shard("2/5") == Shard(2, 5)
    assert str(Shard(2, 5)) == "2/5"


def machine(root: str) -> list[Unit]:
    names = [f"k{index}" for index in range(20)]
    return [Unit(f"CMakeFiles/_C.dir/csrc/{name}.cu.o", f"{root}/csrc/{name}.cu") for name in names]


def test_machines_with_other_paths_part_the_units_alike_and_evenly() -> None:
    known = book({f"_C/k{index}.cu": {1: (10.0 + index**2, 1000.0)} for index in range(20)})
    here = [{unit.object for unit in units_of(Shard(i, 3), machine("/here"), known)} for i in (1, 2, 3)]
    there = [{unit.object for unit in units_of(Shard(i, 3), machine("/there")[::-1], known)} for i in (1, 2, 3)]
    assert here == there
    assert sum(len(part) for part in here) == len(set().union(*here)) == 20
    loads = [sum(known.estimate(u).cpu_seconds for u in units_of(Shard(i, 3), machine("/x"), known)) for i in (1, 2, 3)]
    assert max(loads) / min(loads) < 1.05


def test_more_machines_than_units_leave_some_with_nothing() -> None:
    parts = [units_of(Shard(i, 30), machine("/x"), CostBook(None, NOWHERE)) for i in range(1, 31)]
    assert sorted(len(part) for part in parts) == [0] * 10 + [1] * 20


@pytest.mark.parametrize("name", recipe_names())
def test_the_shards_of_the_real_recipes_fit_a_hosted_runner(name: str) -> None:
    recipe = load_recipe(name)
    plan = plan_json(recipe, recipe.archs)
    assert plan["shard_seconds"] <= 6 * 3600 * 0.75
    assert plan["shard_disk_gb"] <= 14
    assert plan["matrix"]["shard"][-1] == f"{plan['shards']}/{plan['shards']}"
    assert len(plan["matrix"]["shard"]) == plan["shards"] <= 20
    assert plan["largest_unit_bytes"] <= 15e9
    assert cost_book(recipe).estimate(machine("/x")[0]).cpu_seconds > 0


def test_time_and_disk_each_ask_for_their_own_number_of_shards() -> None:
    recipe = make_recipe(cost={**COST, "cpu_seconds": 4 * 6 * 3600 * 0.75 * 2.5, "cpu_seconds_per_arch": 0.0})
    assert plan_json(recipe, recipe.archs)["shards"] == 3
    recipe = make_recipe(cost={**COST, "disk_gb": 6.3 + 7.7 * 4.5})
    assert plan_json(recipe, recipe.archs)["shards"] == 5


def test_units_that_exclude_each_other_in_memory_wait_for_each_other() -> None:
    recipe = make_recipe(cost={**COST, "cpu_seconds": 400.0, "cpu_seconds_per_arch": 0.0})
    units = {f"_moe_C/moe/k{index}.cu": {1: (100.0, 9000.0)} for index in range(4)}
    known, archs = book(units), recipe.archs[:1]
    assert compile_seconds(recipe, archs, known, jobs=4, memory_gb=RUNNER_MEMORY_GB) == pytest.approx(400)
    assert compile_seconds(recipe, archs, known, jobs=4, memory_gb=64.0) == pytest.approx(100)
    assert compile_seconds(make_recipe(), (), CostBook(None, NOWHERE), jobs=4, memory_gb=16.0) == 0


def test_a_plan_counts_a_runner_s_memory(tmp_path: Path) -> None:
    units = {f"_moe_C/moe/k{index}.cu": {1: (7200.0, 9000.0)} for index in range(4)}
    (tmp_path / "costs.json").write_text(costs_json(data_of(units)))
    cost = {**COST, "cpu_seconds": 4 * 7200.0, "cpu_seconds_per_arch": 0.0, "data": "costs.json"}
    recipe = load_recipe(str(write_recipe(tmp_path, "mine", cost=cost)))
    plan = plan_json(recipe, recipe.archs[:1])
    assert (plan["shards"], plan["shard_seconds"]) == (2, 4 * 7200 / 2)  # 2 hours on the four cores, were there room


def test_what_fits_no_runner_is_said() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        plan_json(make_recipe(cost={**COST, "download_gb": 9.0, "disk_gb": 30.0}), ())
    with pytest.raises(UsageError, match="does not fit"):
        plan_json(make_recipe(cost={**COST, "cpu_seconds": 70_000.0 * MOST}), ())
    with pytest.raises(UsageError, match="does not fit a runner with 16 GB of memory"):
        plan_json(make_recipe(cost={**COST, "unit_memory_gb": 15.5}), ())
    with pytest.raises(UsageError, match=r"has no \[cost\]"):
        plan_json(make_recipe(), ())
