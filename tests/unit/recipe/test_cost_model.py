from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import UsageError
from scripts.recipe.costs import (
    DEFAULT,
    CostBook,
    CostData,
    Estimate,
    Measured,
    Unit,
    cost_book,
    costs_json,
    read_costs,
    unit_name,
)
from scripts.recipe.files import load_recipe, recipe_names
from tests.support import make_recipe

COST = {
    "units": 10,
    "cpu_seconds": 100.0,
    "cpu_seconds_per_arch": 50.0,
    "unit_memory_gb": 2.0,
    "download_gb": 1.0,
    "disk_gb": 10.0,
    "measured": "by the tests",
}
NOWHERE = Estimate(1.0, 1)


def data_of(units: dict[str, dict[int, tuple[float, float]]]) -> CostData:
    measured = {
        name: {count: Measured(cpu_seconds=seconds, peak_mb=peak) for count, (seconds, peak) in counts.items()}
        for name, counts in units.items()
    }
    return CostData(measured="here", units=measured)


def book(units: dict[str, dict[int, tuple[float, float]]]) -> CostBook:
    return CostBook(data_of(units), NOWHERE)


def unit(name: str, archs: int = 1) -> Unit:
    component, _, path = name.partition("/")
    return Unit(f"CMakeFiles/{component}.dir/csrc/{path}.o", f"/somewhere/csrc/{path}", archs)


def test_a_unit_s_name_is_the_same_wherever_the_tree_lies() -> None:
    assert unit("_C/attention/x.cu").name == "_C/attention/x.cu"
    other = unit_name(
        "CMakeFiles/_vllm_fa2_C.dir/root/cache/abc/csrc/flash_attn/x.cu.o", "/root/abc/csrc/flash_attn/x.cu"
    )
    assert other == "_vllm_fa2_C/flash_attn/x.cu"
    assert unit_name("x.o", "/a/b/c/x.cpp") == "c/x.cpp"


def test_a_measured_unit_is_taken_as_measured() -> None:
    known = book({"_C/a.cu": {1: (50, 2000), 2: (70, 2100)}})
    assert known.estimate(unit("_C/a.cu")) == Estimate(50, 2_100_000_000)
    assert known.estimate(unit("_C/a.cu", 2)).cpu_seconds == 70


def test_other_numbers_of_archs_lie_on_the_line_through_two_measured_ones() -> None:
    known = book({"_C/a.cu": {1: (50, 1), 2: (70, 1)}, "_C/odd.cu": {1: (50, 1), 2: (40, 1)}})
    assert known.estimate(unit("_C/a.cu", 4)).cpu_seconds == pytest.approx(110)
    assert known.estimate(unit("_C/odd.cu", 4)).cpu_seconds == pytest.approx(40)  # noise does not make archs cheaper


def test_one_measured_number_of_archs_is_scaled_less_what_every_unit_takes_once() -> None:
    known = book({"_C/light.cu": {1: (50, 1)}, "_C/heavy.cu": {1: (232, 1)}})
    assert known.estimate(unit("_C/light.cu", 2)).cpu_seconds == pytest.approx(32 + 2 * 18)
    assert known.estimate(unit("_C/heavy.cu", 2)).cpu_seconds == pytest.approx(32 + 2 * 200)


def test_unknown_units_are_like_their_nearest_relatives() -> None:
    known = book(
        {
            "_C/attention/a.cu": {1: (400, 3000)},
            "_C/attention/b.cu": {1: (300, 5000)},
            "_C/attention/c.cu": {1: (350, 1000)},
            "_C/moe/d.cu": {1: (80, 900)},
            "_moe_C/e.cu": {1: (10, 800)},
            "_moe_C/bindings.cpp": {1: (20, 700)},
        }
    )
    assert known.estimate(unit("_C/attention/new.cu")) == Estimate(350, 5_000_000_000)
    assert known.estimate(unit("_moe_C/moe/d.cu")).cpu_seconds == 80  # the same source elsewhere
    assert known.estimate(unit("_moe_C/attention/x.cu")).cpu_seconds == 350
    assert known.estimate(unit("_moe_C/odd/x.cu")).cpu_seconds == 10
    assert known.estimate(unit("_other/x.cpp")).cpu_seconds == 20
    assert known.estimate(unit("_other/x.c")) == NOWHERE
    wary = CostBook(known.data, Estimate(1.0, 4_000_000_000))  # others' folders tell nothing of memory
    assert wary.estimate(unit("_moe_C/odd/x.cu")) == Estimate(10, 4_000_000_000)
    assert wary.estimate(unit("_moe_C/moe/d.cu")).peak_bytes == 900_000_000


def test_own_measurements_add_units_and_raise_peaks_but_leave_measured_seconds(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(costs_json(data_of({"_C/a.cu": {1: (50, 2000)}, "_C/b.cu": {1: (5, 900)}})))
    recipe = make_recipe(tmp_path, cost={**COST, "data": "mine.json"})
    own = data_of({"_C/a.cu": {1: (80, 2600), 2: (90, 2700)}, "_C/b.cu": {1: (9, 400)}, "_C/new.cu": {1: (7, 300)}})
    known = cost_book(recipe, own)
    assert known.expect("_C/a.cu", 1) == Estimate(50, 2_700_000_000)  # the most of any number of archs
    assert known.expect("_C/b.cu", 1) == Estimate(5, 900_000_000)
    assert known.expect("_C/new.cu", 1) == Estimate(7, 300_000_000)
    assert cost_book(make_recipe(), own).expect("_C/new.cu", 1) == Estimate(7, 300_000_000)


def test_a_cost_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    data = book({"_C/b.cu": {2: (1.5, 3.0), 1: (1.0, 2.0)}, "_C/a.cu": {1: (2.0, 2.0)}}).data
    assert data
    (tmp_path / "costs.json").write_text(costs_json(data))
    assert read_costs(tmp_path / "costs.json") == data
    lines = [line for line in costs_json(data).splitlines() if ".cu" in line]
    assert [line.split('"')[1] for line in lines] == ["_C/a.cu", "_C/b.cu"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"measured": "x"}', '{"measured": "x", "units": {"a": {"1": {}}}}', "\xff"]
)
def test_a_cost_file_that_is_not_right_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "costs.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"costs\.json cannot be read"):
        read_costs(tmp_path / "costs.json")


def test_a_recipe_s_overall_figures_stand_in_for_a_cost_file(tmp_path: Path) -> None:
    assert cost_book(make_recipe()).estimate(unit("_C/a.cu")) == DEFAULT
    assert cost_book(make_recipe(cost=COST)).estimate(unit("_C/a.cu")) == Estimate(10.0, 2_000_000_000)
    assert cost_book(make_recipe(cost=COST)).estimate(unit("_C/a.cu", 3)).cpu_seconds == 20.0
    named: dict[str, Any] = {**COST, "data": "costs/absent.json"}
    assert cost_book(make_recipe(tmp_path, cost=named)).data is None


def test_a_cost_file_lies_beside_the_recipe(tmp_path: Path) -> None:
    data = book({"_C/b.cu": {1: (1.0, 2.0)}}).data
    assert data
    (tmp_path / "mine.json").write_text(costs_json(data))
    recipe = make_recipe(tmp_path, cost={**COST, "data": "mine.json"})
    assert cost_book(recipe).estimate(unit("_C/b.cu")).cpu_seconds == 1.0
    assert recipe.digest == make_recipe(tmp_path).digest  # costs decide when, never what


@pytest.mark.parametrize("name", recipe_names())
def test_the_real_recipes_have_estimates(name: str) -> None:
    estimate = cost_book(load_recipe(name)).estimate(unit("_moe_C/moe/topk_softmax_kernels.cu", 2))
    assert 1 < estimate.cpu_seconds < 1000
    assert 100_000_000 < estimate.peak_bytes < 10_000_000_000
