"""Which measured units an arch list compiles, and the memory that the largest takes: held to the real cost files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripts.cuda.archs import parse_arch_list
from scripts.recipe.costs import cost_book, costs_json
from scripts.recipe.expected import Need, expected_units, largest_unit
from scripts.recipe.families import FAMILIES, family_of
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.measured import keep_own, own_costs, whole_calls
from tests.support import make_recipe
from tests.unit.recipe.test_cost_model import COST, data_of

CORE, TODAY = "vllm-0.20.1-cu130", "vllm-0.33.0-cu130-index"


def names(recipe: str, archs: str) -> set[str]:
    loaded = load_recipe(recipe)
    return set(expected_units(loaded, parse_arch_list(archs), cost_book(loaded)))


def need(recipe: str, archs: str) -> tuple[str, float]:
    loaded = load_recipe(recipe)
    found = largest_unit(loaded, parse_arch_list(archs), cost_book(loaded))
    return found.unit.rpartition("/")[2], round(found.gb, 1)


@pytest.mark.parametrize(("recipe", "units"), [(CORE, 108), (TODAY, 116), ("vllm-0.33.0-cu130", 116)])
def test_all_units_that_were_measured_in_builds_for_9_0_are_expected_of_one(recipe: str, units: int) -> None:
    assert len(names(recipe, "9.0")) == units


def test_a_build_for_two_archs_is_expected_to_have_its_units_and_nearly_to_take_what_it_took() -> None:
    loaded = load_recipe(TODAY)
    found = expected_units(loaded, parse_arch_list("9.0;12.0"), cost_book(loaded))
    assert len(found) == 135
    assert sum(item.cpu_seconds for item in found.values()) == pytest.approx(
        13_134 / 1.56, rel=0.03
    )  # a slower machine


@pytest.mark.parametrize("recipe", [CORE, TODAY, "vllm-0.15.1-cu128"])
def test_what_upstream_compiles_for_9_0_alone_is_not_expected_of_12_0(recipe: str) -> None:
    gone = names(recipe, "9.0") - names(recipe, "12.0")
    assert any("/machete/generated/" in name for name in gone)
    assert any("sm90" in name for name in gone)
    assert not [name for name in names(recipe, "12.0") if "sm90" in name or "/machete/" in name or "w4a8" in name]
    assert names(recipe, "9.0;12.0") >= names(recipe, "9.0") | names(recipe, "12.0")


@pytest.mark.parametrize(
    ("recipe", "archs", "unit", "gb"),
    [
        (CORE, "9.0", "w4a8_mm_entry.cu", 12.4),
        (CORE, "8.0;12.0", "scaled_mm_c2x.cu", 5.7),
        (TODAY, "9.0", "w4a8_mm_entry.cu", 12.6),
        (TODAY, "12.0", "scaled_mm_sm120_fp8.cu", 9.6),
        ("quickstart", "9.0;12.0", "moe_permute_unpermute_op.cu", 1.4),
        ("vllm-0.33.0-cu130", "12.0", "scaled_mm_sm120_fp8.cu", 9.6),
    ],
)
def test_the_largest_unit_is_the_one_that_this_arch_list_compiles(
    recipe: str, archs: str, unit: str, gb: float
) -> None:
    assert need(recipe, archs) == (unit, gb)


def test_quickstart_expects_its_thirteen_units_and_no_marlin_which_it_leaves_out() -> None:
    found = names("quickstart", "9.0;12.0")
    assert len(found) == 13
    assert not [name for name in found if "marlin" in name]


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_family_of_a_unit_is_one_that_recipes_may_name(recipe: str) -> None:
    data = cost_book(load_recipe(recipe)).data
    assert data
    known = set().union(*FAMILIES.values())
    assert {family_of(name) for name in data.units} <= known | {""}


def test_without_figures_the_need_is_an_estimate_and_says_so() -> None:
    assert largest_unit(make_recipe(), (), cost_book(make_recipe())) == Need(4_000_000_000)
    told = make_recipe(cost=COST)
    assert largest_unit(told, told.archs, cost_book(told)).sentence == (
        "the largest unit takes about 2.0 GB of memory (estimated)"
    )


def test_a_component_without_any_measured_unit_may_need_the_recipe_s_estimate(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(costs_json(data_of({"_moe_C/moe/x.cu": {1: (5, 900)}})))
    recipe = make_recipe(tmp_path, cost={**COST, "data": "mine.json"})
    found = largest_unit(recipe, recipe.archs, cost_book(recipe))
    assert found.sentence == "the largest unit takes 0.9 GB of memory (x.cu, measured)"
    more = make_recipe(tmp_path, cost={**COST, "data": "mine.json"}, components=["_moe_C", "_C"])
    assert largest_unit(more, more.archs, cost_book(more)) == Need(2_000_000_000)


def event(name: str, **changes: object) -> dict[str, object]:
    end = {"event": "end", "unit": f"CMakeFiles/_C.dir/csrc/{name}.o", "source": f"/x/csrc/{name}", "seconds": 9.0}
    return {**end, "cpu_seconds": 8.0, "peak_kb": 1_000_000, "code": 0, "archs": 2, "cache": "miss", **changes}


def steps(name: str, hits: int) -> dict[str, object]:
    return {"event": "steps", "unit": f"CMakeFiles/_C.dir/csrc/{name}.o", "hits": hits, "misses": 1}


def write(path: Path, events: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in events))
    return path


def test_what_units_took_is_kept_for_later_builds_of_the_recipe(tmp_path: Path) -> None:
    recipe = make_recipe()
    assert own_costs(tmp_path, recipe) is None
    keep_own(tmp_path, recipe, write(tmp_path / "events", [event("a.cu"), event("b.cpp", archs=1)]))
    known = cost_book(recipe, own_costs(tmp_path, recipe))
    assert known.expect("_C/a.cu", 2).peak_bytes == 1_024_000_000
    assert largest_unit(make_recipe(components=["_C"]), recipe.archs, known).unit == "_C/a.cu"
    keep_own(tmp_path, recipe, write(tmp_path / "events", [event("a.cu", peak_kb=2_000_000)]))
    own = own_costs(tmp_path, recipe)
    assert own
    assert own.units["_C/a.cu"][2].peak_mb == 2048
    assert own.units["_C/b.cpp"][1].peak_mb == 1024
    other = recipe.model_copy(update={"package": recipe.package.model_copy(update={"version": "0.33.0"})})
    assert own_costs(tmp_path, other) is None


def test_calls_that_did_not_compile_the_whole_unit_tell_nothing_of_its_memory() -> None:
    whole = event("whole.cu")
    records = [
        steps("partly.cu", 2), event("partly.cu"), steps("none.cu", 0), event("none.cu"), event("hit.cu", cache="hit"),
        event("failed.cu", code=1), event("old.cu", archs=None), "no record", {"event": "start"}, whole,
    ]  # fmt: skip
    assert [record["source"] for record in whole_calls(records)] == ["/x/csrc/none.cu", "/x/csrc/whole.cu"]
    again = [steps("a.cu", 1), event("a.cu"), event("a.cu", peak_kb=7)]  # compiled once more, as a whole
    assert [record["peak_kb"] for record in whole_calls(again)] == [7]


NUMBERS = st.one_of(st.floats(), st.integers(-5, 10**30), st.none(), st.booleans(), st.text(max_size=3))
WORDS = st.one_of(st.text(max_size=9), NUMBERS, st.just("CMakeFiles/_C.dir/csrc/a.cu.o"))
RECORDS = st.fixed_dictionaries(
    {"event": st.sampled_from(["end", "steps", "start"]), "unit": WORDS, "source": WORDS, "code": NUMBERS},
    optional=dict.fromkeys(("seconds", "cpu_seconds", "peak_kb", "peak_mb", "archs", "hits", "cache"), NUMBERS),
)


@given(st.lists(st.one_of(RECORDS, NUMBERS, st.lists(NUMBERS, max_size=2)), max_size=5), st.binary(max_size=30))
@example([event("a.cu", peak_kb=math.inf)], b"")
@example([event("a.cu", cpu_seconds=math.nan)], b"")
@example([event("a.cu", peak_kb=10**400)], b"{")
@example([event("a.cu", archs=-3)], b"")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_no_events_however_damaged_stop_a_build(tmp_path: Path, events: Sequence[object], end: bytes) -> None:
    path = write(tmp_path / "events", events)
    path.write_bytes(path.read_bytes() + end)
    keep_own(tmp_path, make_recipe(), path)
    own = own_costs(tmp_path, make_recipe())
    assert largest_unit(make_recipe(), (), cost_book(make_recipe(), own)).bytes >= 0


def test_damaged_or_unwritable_own_measurements_stop_no_build(tmp_path: Path) -> None:
    recipe = make_recipe()
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/mine-0.20.1.json").write_text("{torn")
    assert own_costs(tmp_path, recipe) is None
    keep_own(tmp_path, recipe, tmp_path / "absent")
    keep_own(tmp_path, recipe, write(tmp_path / "events", [event("a.cu")]))
    assert own_costs(tmp_path, recipe) is not None
    keep_own(tmp_path / "events", recipe, tmp_path / "events")  # the cache is a file
