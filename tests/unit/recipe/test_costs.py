from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.commands.costs import main, read_records
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.recipe.costs import Measured, read_costs
from tests.builds import report_data
from tests.support import write_recipe
from tests.unit.recipe.test_cost_model import COST


def event(name: str, **changes: Any) -> dict[str, Any]:
    known = {"event": "end", "unit": f"CMakeFiles/_C.dir/csrc/{name}.o", "source": f"/t/csrc/{name}", "archs": 2}
    return {**known, "code": 0, "seconds": 10.0, "cpu_seconds": 9.04, "peak_kb": 1_000_000, **changes}


def write_events(folder: Path, *events: Any) -> Path:
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in events))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, "mine", cost={**COST, "data": "costs/mine.json"})


def enter(recipe: Path, *arguments: str) -> dict[str, dict[int, Measured]]:
    assert main(["--recipe", str(recipe), *arguments], Console()) == 0
    data = read_costs(recipe.parent / "costs/mine.json")
    assert data
    return data.units


def test_a_build_s_events_become_the_recipe_s_costs(recipe: Path, tmp_path: Path) -> None:
    write_events(
        tmp_path,
        event("a.cu", event="start"),
        event("a.cu", cpu_seconds=99.0, seconds=99.0),
        event("a.cu"),
        event("a.cu", archs=1, cpu_seconds=7.0),
        event("b.cpp", archs=1),
        event("failed.cu", code=1),
        event("killed.cu", event="killed", code=137),
        event("hit.cu", cache="hit"),
        event("client.cu", cpu_seconds=0.05),
    )
    units = enter(recipe, "--measured", "on two cores", str(tmp_path))
    assert units == {
        "_C/a.cu": {1: Measured(cpu_seconds=7.0, peak_mb=1024), 2: Measured(cpu_seconds=9.0, peak_mb=1024)},
        "_C/b.cpp": {1: Measured(cpu_seconds=9.0, peak_mb=1024)},
    }
    assert json.loads((tmp_path / "costs/mine.json").read_text())["measured"] == "on two cores"


def test_a_second_build_adds_to_what_is_known_unless_it_starts_afresh(recipe: Path, tmp_path: Path) -> None:
    enter(recipe, str(write_events(tmp_path, event("a.cu"))))
    other = write_events(tmp_path, event("b.cu"))
    assert set(enter(recipe, str(other))) == {"_C/a.cu", "_C/b.cu"}
    assert set(enter(recipe, "--fresh", str(other))) == {"_C/b.cu"}


def test_a_report_serves_as_well(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {key: value for key, value in event("a.cu", peak_mb=512.0).items() if key not in {"event", "peak_kb"}}
    report = tmp_path / "x.whl.report.json"
    units = {"total": 1, "compiled_in_this_run": 1, "records": [record]}
    report.write_text(json.dumps(report_data(units=units), indent=2))
    assert enter(recipe, str(report)) == {"_C/a.cu": {2: Measured(cpu_seconds=9.0, peak_mb=512)}}
    assert "_C/a.cu" in capsys.readouterr().out


def test_records_without_archs_need_to_be_told(recipe: Path, tmp_path: Path) -> None:
    events = write_events(tmp_path, event("a.cu", archs=None))
    with pytest.raises(UsageError, match="does not say for how many archs"):
        enter(recipe, str(events))
    assert list(enter(recipe, "--archs", "3", str(events))["_C/a.cu"]) == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no compiled unit"),
        ("{torn\n[1]\n7\nnull\n", "lists no compiled unit"),
        ('{"units": {"records": [3, {"code": 0}]}}', "lists no compiled unit"),
        (json.dumps(event("a.cu", seconds="long")), "lists no compiled unit"),
        (json.dumps(event("", unit="")), "lists no compiled unit"),
    ],
)
def test_files_without_measurements_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_records(tmp_path / "x")


def test_other_mistakes_are_usage_errors(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        enter(recipe, str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="--archs is 0"):
        enter(recipe, "--archs", "0", str(tmp_path))
    bare = write_recipe(tmp_path, "bare")
    with pytest.raises(UsageError, match="names no cost file"):
        enter(bare, str(tmp_path))
