from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.device_code import Outcome, compare
from scripts.bench.operators import operator_differences
from scripts.bench.ours import PARTS
from scripts.bench.proof import choose_units, compare_folders, report
from scripts.bench.runs import Ledger, Taken, busy, median, run_part
from scripts.bench.stock import pip, stock_patches
from scripts.bench.table import disturbed, light_units, ratios, show, table_rows
from scripts.commands.bench import main, read_arguments
from scripts.core.console import Console
from scripts.core.errors import BenchError, UsageError
from scripts.recipe.costs import Unit
from scripts.recipe.files import load_recipe
from scripts.sources.patch import load_patches
from tests.builds import end_event
from tests.fatbins import container, ptx_entry, sass, shared_object


def units(light: float, heavy: float, peak: float) -> dict[str, Any]:
    sizes = {"a.cu": light, "b.cu": light * 1.4, "c.cu": heavy, "d.cpp": 1.0}
    return {
        f"{name}.o": {"source": f"/s/csrc/{name}", "cpu_seconds": seconds, "seconds": seconds, "peak_mb": peak}
        for name, seconds in sizes.items()
    }


def taken(seconds: float, cpu: float, wheel: int = 1000, **facts: Any) -> Taken:
    known = {"units": units(10, 100, 500), "slots_busy": 0.97, "wheel_bytes": wheel}
    return Taken(seconds, cpu, 5, 1, (0.1, 2.0), {**known, **facts})


STOCK = taken(100, 200, 2000, units=units(50, 120, 2500))
OURS = {
    "cold": taken(40, 70),
    "noop": Taken(1.234, 1.0, runs=1),
    "warm": taken(13, 15),
    "base": taken(30, 50),
    "add-arch": taken(30, 55),
    "alone": taken(25, 50),
}


def result(parts: dict[str, Taken], stock: Taken | None = STOCK) -> dict[str, Any]:
    return {
        **ratios(stock, parts),
        "recipe": "mini",
        "archs": "9.0",
        "jobs": 2,
        "machine": {"processor": "a", "cores": 2, "memory": 24e9, "system": "Linux"},
        "light_units": ["a.cu.o", "b.cu.o"],
        "stock": asdict(stock) if stock else None,
        "ours": {name: asdict(part) for name, part in parts.items()},
    }


def test_ratios_are_ours_divided_by_stock_s_cold_figures() -> None:
    assert ratios(STOCK, OURS) == {
        "cold_cpu_ratio": 0.35,
        "cold_wall_ratio": 0.4,
        "compile_cpu_ratio": round(125 / 241, 3),
        "light_cpu_ratio": 0.2,
        "light_rss_ratio": 0.2,
        "warm_ratio": 0.13,
        "warm_cpu_ratio": 0.075,
        "add_arch_ratio": 1.1,
        "noop_seconds": 1.23,
        "busy_core_ratio": 0.97,
        "wheel_bytes_ratio": 0.5,
    }


def test_what_was_not_run_has_no_ratio() -> None:
    assert set(ratios(None, {}).values()) == {None}
    assert ratios(STOCK, {})["cold_cpu_ratio"] is None
    assert ratios(STOCK, {"add-arch": OURS["add-arch"]})["add_arch_ratio"] is None


def test_light_units_are_chosen_by_stock_and_are_cuda() -> None:
    assert light_units(STOCK.facts["units"]) == ["a.cu.o", "b.cu.o"]
    assert light_units({}) == []


def test_the_table_says_which_targets_are_met() -> None:
    rows = {row[0]: row for row in table_rows(result(OURS))}
    assert rows["cold, core time"][1:] == ("3 min 20 s", "1 min 10 s", "0.35 (<= 0.4: met)")
    assert rows["tree deleted, cache warm"][3] == "0.13 (<= 0.12: MISSED)"
    assert rows["nothing changed"][2:] == ("1.23 s", "(<= 5: met)")
    assert rows["job slots busy"][3] == "0.97 (>= 0.95: met)"
    assert rows["peak of all units, worst"][1:] == ("2.5 GB", "500.0 MB", "0.20")
    assert rows["peak of 2 light units, median"][3] == "0.20 (<= 0.45: met)"


def test_the_table_is_shown_before_everything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    show(result({}, None), Console())
    text = capsys.readouterr().out
    assert text.count("not measured") == 9
    assert "peak of" not in text


def test_a_part_beside_other_work_or_in_two_runs_is_named() -> None:
    loaded, twice = replace(taken(1, 1), load=(0.0, 9.0)), replace(taken(1, 1), runs=2)
    assert disturbed(result({"cold": loaded, "warm": twice, "noop": OURS["noop"]})) == ["cold", "warm"]


def test_busy_slots_leave_out_the_pauses_between_runs() -> None:
    events = [
        end_event("a", 0, 10),
        end_event("b", 0, 5),
        end_event("c", 6, 4),
        end_event("d", 1000, 10),
        end_event("e", 0, 99, code=1),
    ]
    slots, cores = busy(events, jobs=2)
    assert slots == pytest.approx(29 / 40)
    assert cores == pytest.approx(0.9 * 29 / 40)
    assert busy([], jobs=2) == (0.0, 0.0)


def test_the_median_of_nothing_is_nothing() -> None:
    assert (median([]), median([1, 5, 2])) == (0.0, 2)


def test_a_ledger_keeps_what_was_done_and_what_was_begun(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "folder" / "taken.json")
    ledger.add("cold", taken(1, 2))
    ledger.finish("stock", taken(3, 4))
    again = Ledger(ledger.path)
    assert (again.begun, again.done) == ({"cold": taken(1, 2)}, {"stock": taken(3, 4)})
    again.finish("cold", taken(5, 6))
    again.forget("stock")
    assert set(Ledger(ledger.path).done) == {"cold"}
    assert Ledger(ledger.path).begun == {}


@pytest.mark.parametrize("text", ["", "[]", '{"done": {"a": {"load": 1}}}', '{"done": {"a": {"x": 1}}}'])
def test_a_ledger_that_cannot_be_read_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "taken.json").write_text(text)
    assert Ledger(tmp_path / "taken.json").done == {}


def run_shell(script: str, ledger: Ledger, folder: Path) -> Taken:
    environment = {"PATH": "/usr/bin:/bin"}
    command = ["sh", "-c", script]
    return run_part("p", command, ledger, log=folder / "log", cwd=folder, environment=environment, fix="look")


def test_a_part_s_runs_add_up_until_it_is_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "taken.json")
    with pytest.raises(BenchError, match="p failed with exit code 3") as caught:
        run_shell("echo it broke; exit 3", ledger, tmp_path)
    assert "it broke" in caught.value.detail
    first = Ledger(ledger.path).begun["p"]
    assert first.runs == 1
    both = run_shell("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done", Ledger(ledger.path), tmp_path)
    assert both.runs == 2
    assert both.seconds > first.seconds > 0
    assert both.cpu_seconds > 0.01


def test_an_interrupted_part_keeps_what_it_took(tmp_path: Path) -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_shell(f"kill -USR1 {os.getpid()}; sleep 60", Ledger(tmp_path / "taken.json"), tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    kept = Ledger(tmp_path / "taken.json")
    assert kept.done == {}
    assert kept.begun["p"].runs == 1
    assert 0 < kept.begun["p"].seconds < 30


def test_only_known_parts_can_be_named() -> None:
    assert read_arguments(["--only", "stock", "cold"]).only == ["stock", "cold"]
    with pytest.raises(UsageError, match="Perhaps you meant 'warm'"):
        read_arguments(["--only", "warmm"])
    with pytest.raises(UsageError, match="no part 'cool' of a bench"):
        read_arguments(["--again", "cool"])
    with pytest.raises(UsageError, match="--units goes with --prove-headers"):
        main(["--units", "x"], Console())
    assert len(PARTS) == 6


def test_stock_has_no_patch_that_makes_ours_faster() -> None:
    names = [patch.name for patch in stock_patches(load_patches(load_recipe("quickstart")))]
    assert names == [
        "vllm/0001-triton-kernels-source-dir.patch",
        "vllm/0002-component-selection.patch",
        "vllm/0003-moe-without-marlin.patch",
    ]


def test_pip_is_missed_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pip({"PATH": "/nowhere"})[1:] == ["-m", "pip"]
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(BenchError, match="there is no pip"):
        pip({"PATH": "/nowhere"})


def test_the_pip_of_the_python_on_path_serves_where_ours_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert pip({"PATH": str(tmp_path)}) == [str(other), "-m", "pip"]


SCHEMAS = 'const char* s = "topk(Tensor! x, int k) -> ()"; const char* t = "no schema (at all)";'


def objects(folder: Path, *pairs: tuple[bytes, str]) -> list[Path]:
    made = []
    for index, (fatbin, source) in enumerate(pairs):
        made.append(shared_object(folder / f"{index}.o", {"a.cu": fatbin} if fatbin else {}, source=source))
    return made


def test_equal_device_code_is_found_equal_whatever_the_host_code_is(tmp_path: Path) -> None:
    code = container(sass("90", "f"), sass("120", "f"), ptx_entry("80", "f"))
    stock, lean = objects(tmp_path, (code, SCHEMAS), (code, SCHEMAS + "int other(void) { return 3; }"))
    found = compare("a", stock, lean)
    assert (found.outcome, found.cubins, found.ptx, found.schemas, found.why) == (Outcome.SAME, 2, 1, 1, "")
    assert found.size > 700


def test_one_changed_byte_of_one_cubin_is_found(tmp_path: Path) -> None:
    one = container(sass("90", "f"), sass("120", "f"))
    other = container(sass("90", "f"), sass("120", "f", code=b"\x90" * 63 + b"\x91"))
    stock, lean = objects(tmp_path, (one, ""), (other, ""))
    found = compare("a", stock, lean)
    assert found.outcome is Outcome.DIFFERENT
    assert found.why.startswith("sm_120 differs: ")
    assert "sm_90" not in found.why


def test_changed_ptx_and_missing_archs_are_found(tmp_path: Path) -> None:
    texts = [container(ptx_entry("80", name)) for name in ("f", "g")]
    short = container(sass("90", "f"))
    stock, lean, other, host = objects(tmp_path, (texts[0], ""), (texts[1], ""), (short, ""), (b"", ""))
    assert compare("a", stock, lean).why.startswith("compute_80 differs")
    assert compare("a", stock, other).why == "stock has compute_80, lean sm_90"
    assert compare("a", stock, host).why == "stock has compute_80, lean nothing"
    assert compare("a", host, host).outcome is Outcome.HOST


def test_another_operator_schema_is_found(tmp_path: Path) -> None:
    stock, lean = objects(tmp_path, (b"", SCHEMAS), (b"", SCHEMAS.replace("int k", "int j")))
    found = compare("a", stock, lean)
    assert found.outcome is Outcome.DIFFERENT
    assert "only stock registers topk(Tensor! x, int k) -> ()" in found.why
    assert "only lean registers topk(Tensor! x, int j) -> ()" in found.why


def test_objects_that_one_build_lacks_differ(tmp_path: Path) -> None:
    [made] = objects(tmp_path, (container(sass("90", "f")), ""))
    for side, names in (("stock", ["a.cu.o", "b.cu.o"]), ("lean", ["a.cu.o"])):
        folder = tmp_path / side / "CMakeFiles/_C.dir/csrc/moe"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(made.read_bytes())
    found = compare_folders(tmp_path / "stock", tmp_path / "lean")
    assert {item.unit.rsplit("/", 1)[1]: item.outcome for item in found} == {
        "a.cu.o": Outcome.SAME,
        "b.cu.o": Outcome.DIFFERENT,
    }


def test_a_difference_ends_the_proof_with_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = objects(tmp_path, (container(sass("90", "f")), ""), (container(sass("90", "g")), ""))
    assert report([compare("a", one, one)], Console()) == 0
    assert report([compare("a", one, one), compare("b", one, other)], Console()) == BenchError.exit_code
    out, err = capsys.readouterr()
    assert "DIFFERENT" in out
    assert "b: sm_90 differs" in out + err


def test_operators_are_compared_both_ways() -> None:
    assert operator_differences({"_C": ["a", "b"]}, {"_C": ["b", "a"]}) == []
    assert operator_differences({"_C": ["a"], "x": ["y"]}, {"_C": ["b"]}) == [
        "only stock registers a (_C)",
        "only lean registers b (_C)",
        "only stock registers y (x)",
    ]


def test_units_are_chosen_by_name_or_by_its_end() -> None:
    known = [Unit(f"CMakeFiles/_C.dir/csrc/{name}.o", f"/s/csrc/{name}") for name in ("moe/a.cu", "b.cu")]
    assert choose_units(known, ["_C/b.cu"]) == known[1:]
    assert choose_units(known, ["a.cu", "b*"]) == known
    assert choose_units(known, ["c.cu"]) == []


def test_the_ledger_is_json(tmp_path: Path) -> None:
    Ledger(tmp_path / "t.json").finish("stock", STOCK)
    assert json.loads((tmp_path / "t.json").read_text())["done"]["stock"]["facts"]["wheel_bytes"] == 2000
