"""Compiling as the main job does, on the miniature: under a real memory limit, past failures, in shards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.commands.wheel import main
from scripts.core.console import Console
from scripts.core.errors import CompileError, UsageError
from scripts.core.machine import Machine
from scripts.core.paths import ROOT
from scripts.recipe.costs import CostData, Measured, costs_json
from scripts.recipe.files import load_recipe
from scripts.recipe.measured import own_costs
from tests.groups import real_limit
from tests.miniature import Miniature, full_environment, make_miniature, wheel_command

LIMIT = 2_300_000_000
HUNGER = 1300  # MB: one such unit fits below the limit, two do not
NAMES = ("cumem_allocator/cumem_allocator/main.cpp", *(f"_moe_C/_moe_C/{name}.cpp" for name in "abc"))
COST = """
[cost]
units = 4
cpu_seconds = 4
cpu_seconds_per_arch = 0
unit_memory_gb = 0.1
download_gb = 0
disk_gb = 0.1
measured = "by the tests"
data = "{data}"
[package]"""


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(miniature: Miniature, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {**miniature.environment(cache), "MAX_JOBS": "2"}.items():
        monkeypatch.setenv(name, value)
    for folder in ("builds", "compiler-cache"):
        shutil.rmtree(cache / folder, ignore_errors=True)
    yield
    miniature.hungry(0)
    miniature.broken(broken=False)


def costly(miniature: Miniature, name: str, megabytes: float) -> Path:
    """Return a recipe whose cost file says that each unit takes so much memory."""
    units = {unit: {1: Measured(cpu_seconds=1.0, peak_mb=megabytes)} for unit in NAMES}
    data = miniature.recipe.with_name(f"{name}.json")
    data.write_text(costs_json(CostData(measured="made up", units=units)))
    return miniature.variant(name, "[package]", COST.format(data=data.name))


def events(cache: Path) -> list[dict[str, object]]:
    [path] = (cache / "builds").glob("*/events.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_limited(miniature: Miniature, cache: Path, recipe: Path, wheelhouse: Path) -> tuple[int, str]:
    """Run the main job in a memory group of its own; return its exit code and what it said."""
    with real_limit("engine", LIMIT) as group:
        if not group:
            pytest.skip("this user may not make memory groups here")

        def enter() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        command = wheel_command("--recipe", str(recipe), "--wheelhouse", str(wheelhouse))
        environment = {**full_environment(miniature, cache), "MAX_JOBS": "2"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, preexec_fn=enter, check=False, capture_output=True, text=True
        )
        return done.returncode, done.stderr


@pytest.mark.builds
@pytest.mark.large
def test_a_unit_that_the_kernel_kills_for_memory_is_compiled_again_alone(
    environment: None, miniature: Miniature, cache: Path, tmp_path: Path
) -> None:
    recipe = costly(miniature, "modest", 50)
    miniature.hungry(HUNGER)
    code, said = run_limited(miniature, cache, recipe, tmp_path)
    assert code == 0, said
    assert "the kernel killed it because memory ran out; it is compiled again, alone" in said
    assert sum(event["event"] == "killed" for event in events(cache)) >= 1
    assert sum(event["event"] == "end" for event in events(cache)) == 4
    assert len(list(tmp_path.glob("*.whl"))) == 1
    own = own_costs(cache, load_recipe(str(recipe)))  # the next build admits them by what they took
    assert own
    assert {counts[1].peak_mb > HUNGER for counts in own.units.values()} == {True}


@pytest.mark.builds
@pytest.mark.large
def test_units_known_to_be_large_are_not_started_together(
    environment: None, miniature: Miniature, cache: Path, tmp_path: Path
) -> None:
    recipe = costly(miniature, "honest", HUNGER + 30)
    miniature.hungry(HUNGER)
    code, said = run_limited(miniature, cache, recipe, tmp_path)
    assert code == 0, said
    running = most = 0
    for event in events(cache):
        running += {"start": 1, "end": -1}[str(event["event"])]
        most = max(most, running)
    assert most == 1


def test_a_machine_too_small_for_a_unit_is_told_before_anything_starts(
    environment: None, miniature: Miniature, cache: Path, tmp_path: Path
) -> None:
    recipe = costly(miniature, "huge", 2500)
    code, said = run_limited(miniature, cache, recipe, tmp_path)
    assert code == 3
    assert "the largest unit takes 2.5 GB of memory" in said
    assert "this machine has 2.3 GB in all" in said
    assert not (cache / "builds").exists()


def test_all_failing_units_are_collected_when_asked(environment: None, miniature: Miniature, cache: Path) -> None:
    miniature.broken(broken=True, units="[abc].cpp")
    arguments = ["--recipe", str(miniature.recipe), "--wheelhouse", str(cache / "none"), "--jobs", "1"]
    with pytest.raises(CompileError) as caught:
        main(arguments, Console())
    assert caught.value.what.startswith("1 unit(s) failed: _moe_C/")
    assert caught.value.detail.count("error: it is broken") == 1
    with pytest.raises(CompileError) as caught:
        main([*arguments, "--keep-going"], Console())
    assert caught.value.what.startswith("3 unit(s) failed: _moe_C/")
    assert caught.value.detail.count("error: it is broken") == 3


@pytest.mark.builds
@pytest.mark.large
def test_shards_compile_every_unit_once_and_a_run_afterwards_links_them(
    environment: None, miniature: Miniature, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", str(costly(miniature, "sharded", 50)), "--wheelhouse", str(tmp_path)]
    started: list[set[object]] = []
    for shard in ("1/3", "2/3", "3/3", "5/5"):
        assert main([*arguments, "--shard", shard], Console()) == 0
        known = set().union(*started)
        started.append({event["unit"] for event in events(cache)} - known)
        assert not list(tmp_path.glob("*.whl"))
    assert sorted(len(units) for units in started) == [0, 1, 1, 2]
    before = len(events(cache))
    assert main(arguments, Console()) == 0
    assert len(list(tmp_path.glob("*.whl"))) == 1
    assert len(events(cache)) == before
    assert "5/5: 0 of 4 units" in capsys.readouterr().err


LATE = """Subject: Another header for one unit
Why: as a list of archs changes what upstream generates
Upstream: none
Versions: 0.20.1

--- /dev/null
+++ b/csrc/late.h
@@ -0,0 +1 @@
+// one more
--- a/csrc/_moe_C/c.cpp
+++ b/csrc/_moe_C/c.cpp
@@ -1,2 +1,3 @@
+#include "../late.h"
 #include <cstdio>
 int third() { return std::puts("three"); }
"""


@pytest.mark.builds
@pytest.mark.large
def test_a_header_is_in_the_key_of_the_units_that_can_include_it_and_of_no_other(
    environment: None, miniature: Miniature, cache: Path, tmp_path: Path
) -> None:
    files = {"late.patch": LATE, "later.patch": LATE.replace("one more", "another")}
    for name, text in files.items():
        miniature.recipe.with_name(name).write_text(text)
    found: list[dict[str, object]] = []
    for name in files:
        patches = f'patches = ["0001-version.patch", "{name}"]'
        recipe = miniature.variant(f"reach-{name}", 'patches = ["0001-version.patch"]', patches)
        assert main(["--recipe", str(recipe), "--wheelhouse", str(tmp_path)], Console()) == 0
        ended = [event for event in events(cache) if event["event"] == "end"]
        found.append({Path(str(event["source"])).name: event["cache"] for event in ended})
        shutil.rmtree(cache / "builds")
    first = dict.fromkeys(("main.cpp", "a.cpp", "b.cpp", "c.cpp"), "miss")
    assert found == [first, {**first, "main.cpp": "hit", "a.cpp": "hit"}]  # b.cpp has .incbin


def test_the_plan_for_ci_is_json_alone_and_starts_nothing(
    environment: None, miniature: Miniature, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = costly(miniature, "planned", 500)
    assert main(["--recipe", str(recipe), "--plan-json"], Console()) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["matrix"] == {"shard": ["1/1"]}
    assert (plan["archs"], plan["largest_unit_bytes"]) == ("9.0;12.0", 500_000_000)
    assert main(["--recipe", str(recipe), "--plan-json", "--arch", "9.0", "--arch", "12.0"], Console()) == 0
    assert [plan["archs"] for plan in json.loads(capsys.readouterr().out)] == ["9.0", "12.0"]
    assert not (cache / "builds").exists()
    with pytest.raises(UsageError, match="--shard is '4/3'"):
        main(["--recipe", str(recipe), "--shard", "4/3"], Console())


@pytest.mark.builds
@pytest.mark.large
def test_a_crowded_machine_is_warned_of_and_tried(
    environment: None,
    miniature: Miniature,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("scripts.pipeline.wheel.read_machine", lambda: Machine(2, 0.2, 9.0))
    recipe = costly(miniature, "crowded", 500)
    assert main(["--recipe", str(recipe), "--wheelhouse", str(tmp_path)], Console()) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "GB of memory (a.cpp, measured); 0.2 GB are free: it is compiled alone" in said


CONFIGURED_ONCE = """
# As CMake's and torch's own modules do: what was looked for once stays in CMakeCache.txt, NOTFOUND too.
if(NOT DEFINED CACHE{EXTRA})
  find_library(EXTRA extra PATHS "@FOLDER@" NO_DEFAULT_PATH)
endif()
if(NOT EXTRA)
  message(FATAL_ERROR "no libextra: ${EXTRA}")
endif()
"""


@pytest.mark.builds
@pytest.mark.large
def test_a_library_that_configuring_missed_is_found_by_the_next_run(
    environment: None, miniature: Miniature, cache: Path, tmp_path: Path
) -> None:
    needs = tmp_path / "needs.cmake"
    needs.write_text(CONFIGURED_ONCE.replace("@FOLDER@", str(tmp_path)))
    include = f'[cmake]\nCMAKE_PROJECT_miniature_INCLUDE = "{needs}"\n[package]'
    arguments = ["--recipe", str(miniature.variant("needy", "[package]", include)), "--wheelhouse", str(tmp_path)]
    with pytest.raises(CompileError, match="CMake could not configure") as caught:
        main(arguments, Console())
    assert "no libextra: EXTRA-NOTFOUND" in caught.value.detail
    assert len(list(cache.glob("builds/*/build/CMakeCache.txt"))) == 1  # it is there to be read, with its NOTFOUND
    (tmp_path / "libextra.so").touch()
    assert main(arguments, Console()) == 0
    assert len(list(tmp_path.glob("*.whl"))) == 1
