"""The benchmark on the miniature: upstream's way and ours for real, side by side, and the proof over both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import ours as ours_module
from scripts.bench.operators import registered_operators
from scripts.bench.ours import ADDED, ALONE, BASE, COLD, NOOP, WARM, Ours, _command, run_ours
from scripts.bench.runs import Taken
from scripts.commands.bench import main
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import BenchError, UsageError
from scripts.cuda.archs import parse_arch_list
from scripts.recipe.files import load_recipe
from tests.accesses import make_access
from tests.miniature import Miniature, make_miniature
from tests.wheels import make_wheel

Bench = Callable[..., int]
LEAN = """Subject: Switch of the tests
Why: VLLM_LEAN_HEADERS
Upstream: none
Versions: 0.20.1

--- a/csrc/_moe_C/c.cpp
+++ b/csrc/_moe_C/c.cpp
@@ -1,2 +1,3 @@
 #include <cstdio>
+// lean
 int third() { return std::puts("three"); }
"""


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(miniature: Miniature, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name, value in miniature.environment(cache).items():
        monkeypatch.setenv(name, value)
    return lambda *words, recipe=miniature.recipe: main(["--recipe", str(recipe), *words], Console())


def test_both_ways_are_measured_and_resumed_and_proved(
    bench: Bench, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--only", "stock", COLD, NOOP, WARM, "--json", str(tmp_path / "b.json")) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["cold_cpu_ratio"] > 0.2
    assert found["warm_ratio"] > 0.1
    assert 0.1 < found["noop_seconds"] < 60
    assert found["wheel_bytes_ratio"] == pytest.approx(1, abs=0.8)
    assert found["add_arch_ratio"] is None
    assert found["complete"] is False
    assert found["targets"]["cold_cpu_ratio"]["met"] is (found["cold_cpu_ratio"] <= 0.4)
    assert len(found["stock"]["facts"]["units"]) == len(found["ours"][COLD]["facts"]["units"]) == 4
    assert found["ours"][NOOP]["facts"]["compiler_calls"] == 0
    assert found["ours"][WARM]["facts"]["cache_hits"] >= 3  # ccache does not take the unit with .incbin

    assert bench("--only", "stock", COLD, "--json", str(tmp_path / "b.json")) == 0  # nothing is run again
    assert json.loads((tmp_path / "b.json").read_text())["stock"] == found["stock"]

    assert bench("--prove-headers") == 0
    text = capsys.readouterr().out
    assert "operators when loaded" in text
    assert "DIFFERENT" not in text

    [stock] = (cache / "bench").glob("stock-*")
    [other] = stock.glob("source/build/temp.*/CMakeFiles/_moe_C.dir/csrc/_moe_C/c.cpp.o")
    [device] = stock.glob("source/build/temp.*/CMakeFiles/_moe_C.dir/csrc/_moe_C/b.cpp.o")
    shutil.copyfile(other, device)  # an object without its device code
    assert bench("--prove-headers") == BenchError.exit_code


def test_a_compiler_s_failure_ends_the_bench(bench: Bench, miniature: Miniature, cache: Path) -> None:
    miniature.broken(broken=True)
    try:
        with pytest.raises(BenchError, match="stock failed"):
            bench("--only", "stock", "--arch", "9.0")
    finally:
        miniature.broken(broken=False)
    taken = [json.loads(path.read_text()) for path in (cache / "bench").glob("stock-*/taken.json")]
    assert any("stock" in item["begun"] for item in taken)


def test_units_are_compiled_with_the_switch_off_and_on(bench: Bench, miniature: Miniature) -> None:
    (miniature.recipe.parent / "0002-lean.patch").write_text(LEAN)
    recipe = miniature.variant("lean", '"0001-version.patch"', '"0001-version.patch", "0002-lean.patch"')
    assert bench("--prove-headers", "--units", "b.cpp", recipe=recipe) == 0
    with pytest.raises(UsageError, match="no unit matches nothing"):
        bench("--prove-headers", "--units", "nothing", recipe=recipe)
    with pytest.raises(UsageError, match="has no lean headers"):
        bench("--prove-headers", "--units", "b.cpp")


@pytest.fixture
def ours(miniature: Miniature, tmp_path: Path) -> Ours:
    cache = Cache.open(tmp_path / "cache")
    return Ours(
        tmp_path / "bench", load_recipe(str(miniature.recipe)), parse_arch_list("9.0;12.0"), 1, make_access(cache)
    )


def finish(ours: Ours, *parts: str) -> None:
    for part in parts:
        ours.ledger.finish(part, Taken())


def test_ours_compiles_against_the_installed_torch_and_without_a_network_when_asked(ours: Ours) -> None:
    there = replace(ours, torch=Path("/opt/venv/bin/python"), access=replace(ours.access, offline=True))
    words = list(map(str, _command(there, COLD)))
    assert words[words.index("--torch") + 1] == "/opt/venv/bin/python"
    assert "--offline" in words
    assert not {"--torch", "--offline"} & set(map(str, _command(ours, COLD)))


def test_a_part_needs_what_it_builds_on(ours: Ours) -> None:
    with pytest.raises(BenchError, match="add-arch builds on base"):
        run_ours(ours, ADDED, Console())
    finish(ours, COLD, NOOP, WARM, BASE)
    ours.forget(COLD)
    assert set(ours.ledger.done) == {BASE}


def test_one_arch_leaves_none_to_add(ours: Ours, capsys: pytest.CaptureFixture[str]) -> None:
    single = Ours(ours.path, ours.recipe, ours.archs[:1], 1, ours.access)
    assert run_ours(single, ADDED, Console()) is None
    assert "only one arch" in "".join(capsys.readouterr())


def test_an_added_arch_finds_the_objects_of_the_others(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(part: str, command: Any, *_ledger: Any, environment: Any, **_options: Any) -> Any:
        cache = Path(environment["WHEELSMITH_CACHE"])
        seen[part] = (command[command.index("--arch") + 1], cache, (cache / "compiler-cache/objects/x").exists())
        (cache / "builds/k").mkdir(parents=True)
        (cache / "builds/k/configured.json").touch()
        (cache / "compiler-cache/objects").mkdir(parents=True, exist_ok=True)
        (cache / "compiler-cache/objects/x").touch()
        (cache.parent / "wheelhouse").mkdir(exist_ok=True)
        (cache.parent / "wheelhouse/a.whl").touch()
        return Taken(1.0, 1.0, runs=1)

    monkeypatch.setattr(ours_module, "run_part", fake)
    monkeypatch.setenv("SCCACHE_ENDPOINT", "x")
    for part in (BASE, ADDED, ALONE):
        assert run_ours(ours, part, Console())
    assert {part: row[0] for part, row in seen.items()} == {BASE: "9.0", ADDED: "9.0;12.0", ALONE: "12.0"}
    assert {part: row[2] for part, row in seen.items()} == {BASE: False, ADDED: True, ALONE: False}
    assert len({row[1] for row in seen.values()}) == 3
    assert (seen[BASE][1] / "toolchains").is_symlink()


def test_a_build_without_a_wheel_is_an_error(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours_module, "run_part", lambda *_words, **_options: Taken())
    with pytest.raises(BenchError, match="left no wheel"):
        run_ours(ours, COLD, Console())


def test_a_wheel_that_does_not_load_is_an_error(ours: Ours, tmp_path: Path) -> None:
    toolchain: Any = type("T", (), {"cuda_home": tmp_path, "python": Path("/bin/false")})()
    wheel = make_wheel(tmp_path, {"vllm/_moe_C.abi3.so": b"", "vllm/cumem_allocator.abi3.so": b""})
    with pytest.raises(BenchError, match="does not load"):
        registered_operators(wheel, ours.recipe, toolchain)
    empty = make_wheel(tmp_path, {"vllm/other.py": b""}, version="2")
    with pytest.raises(BenchError, match="has no"):
        registered_operators(empty, ours.recipe, toolchain)
