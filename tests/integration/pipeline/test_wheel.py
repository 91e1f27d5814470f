"""The main job from end to end on a miniature project: real tools, stand-ins for what is too large."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scripts.commands.wheel import main
from scripts.core.console import Console
from scripts.core.errors import (
    AuditError,
    CompileError,
    FetchError,
    PackageError,
    PatchError,
    ToolchainError,
    UsageError,
    WheelsmithError,
)
from scripts.core.paths import ROOT
from scripts.formats import fatbin
from scripts.formats.elf import Blob
from scripts.formats.fatbin_types import Container, FatbinEntry
from tests.miniature import Miniature, full_environment, make_miniature, wheel_command
from tests.support import alive, cpu_seconds, wait_for

MakeWheel = Callable[..., Path]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fresh(miniature: Miniature, cache: Path) -> Iterator[None]:
    """The toolchain may stay; the build trees and the objects of other tests may not."""
    subprocess.run(["rm", "-rf", str(cache / "builds"), str(cache / "compiler-cache")], check=True)
    yield
    miniature.slow(0)
    miniature.broken(broken=False)


@pytest.fixture
def make(miniature: Miniature, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """Run the main job in this process; return the wheelhouse."""
    for name, value in miniature.environment(cache).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, recipe: Path = miniature.recipe) -> Path:
        wheelhouse = tmp_path / "wheelhouse"
        code = main(["--recipe", str(recipe), "--wheelhouse", str(wheelhouse), *arguments], Console())
        assert code == 0
        return wheelhouse

    return run


def report_of(wheelhouse: Path) -> dict:  # type: ignore[type-arg]
    [path] = wheelhouse.glob("*.whl.report.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def units_started(cache: Path) -> int:
    files = list((cache / "builds").glob("*/events.jsonl"))
    return sum('"start"' in line for file in files for line in file.read_text().splitlines())


def units_ended(cache: Path) -> int:
    files = list((cache / "builds").glob("*/events.jsonl"))
    return sum('"end"' in line and '"code": 0' in line for file in files for line in file.read_text().splitlines())


def units_known_to_ninja(cache: Path) -> int:
    """Objects that ninja has taken note of: one that has just been compiled may not be among them yet."""
    files = (cache / "builds").glob("*/build/.ninja_log")
    rows = {line.split("\t")[3] for file in files for line in file.read_text().splitlines()[1:] if ".o\t" in line}
    return len(rows)


def test_the_main_job_leaves_a_checked_wheel_and_its_report(fresh: None, make: MakeWheel, cache: Path) -> None:
    wheelhouse = make()
    [wheel] = wheelhouse.glob("*.whl")
    assert wheel.name.startswith("vllm-0.20.1+cu130.mini-cp38-abi3-manylinux")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vllm/templates/chat.jinja" in names  # setup.py lists no data files: SOURCES.txt does
    assert {name for name in names if name.endswith(".so")} == {"vllm/_moe_C.abi3.so", "vllm/cumem_allocator.abi3.so"}
    report = report_of(wheelhouse)
    assert report["wheel"]["name"] == wheel.name
    assert report["archs"] == "9.0;12.0"
    assert [part["cubins"] for part in report["components"]] == [{}, {"90": 1, "120": 1}]
    assert report["components"][1]["operators"] == ["_moe_C::topk"]
    assert set(report["stages"]) == {"fetch", "patch", "toolchain", "configure", "compile", "package", "prove", "audit"}
    assert report["units"]["compiled_in_this_run"] == report["units"]["total"] == len(report["units"]["records"]) == 4
    assert report["patches"][0]["name"] == "0001-version.patch"
    assert [row["name"] for row in report["sources"]] == ["source", "cutlass"]
    assert not list(wheelhouse.glob(".*"))
    assert report["components"][1]["bytes_per_arch"].keys() == {"sm_90", "sm_120"}
    assert len(report["timeline"]["units"]) == 4
    assert report["timeline"]["memory"]
    trace = json.loads(wheel.with_name(f"{wheel.name}.trace.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "unit" for event in trace) == 4
    page = wheel.with_name(f"{wheel.name}.report.html").read_text()
    assert page.count("data-unit=") == 4
    assert "Verdicts" in page


@pytest.mark.builds
@pytest.mark.large
def test_builds_in_different_directories_give_the_same_wheel_bit_for_bit_with_mount_namespaces_and_without(
    *,
    fresh: None,
    miniature: Miniature,
    make: MakeWheel,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = next(make().glob("*.whl")).read_bytes()
    for fixed in (True, False):
        other = tmp_path_factory.mktemp("a-directory-with-a-longer-name") / "cache"
        monkeypatch.setenv("WHEELSMITH_CACHE", str(other))
        if not fixed:
            monkeypatch.setattr("scripts.pipeline.wheel.refusal", lambda: "none here")
        previous = os.umask(0o077)
        try:
            make("--wheelhouse", str(tmp_path / f"other-{fixed}"))
        finally:
            os.umask(previous)
        [second] = (tmp_path / f"other-{fixed}").glob("*.whl")
        assert second.read_bytes() == first
        for name in zipfile.ZipFile(second).namelist():
            data = zipfile.ZipFile(second).read(name)
            assert str(other).encode() not in data
            assert str(miniature.root).encode() not in data


def test_the_gpu_code_of_a_wheel_is_parsed_once_in_a_run(make: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: Counter[str] = Counter()
    entries: Counter[str] = Counter()
    checked, entry = fatbin._checked, fatbin._entry

    def count(blob: Blob, containers: list[Container]) -> list[Container]:
        parsed[blob.name] += 1
        return checked(blob, containers)

    def count_entry(blob: Blob, at: int, end: int) -> FatbinEntry:
        entries[blob.name] += 1
        return entry(blob, at, end)

    monkeypatch.setattr(fatbin, "_checked", count)
    monkeypatch.setattr(fatbin, "_entry", count_entry)
    report = report_of(make())
    assert parsed == {"vllm/_moe_C.abi3.so": 1, "vllm/cumem_allocator.abi3.so": 1}
    assert entries == {"vllm/_moe_C.abi3.so": sum(report["components"][1]["cubins"].values())}


def test_split_leaves_a_slim_audited_wheel_per_arch_beside_the_fat_one(make: MakeWheel) -> None:
    wheelhouse = make("--split")
    slim = {path.name.split("-")[1]: path for path in wheelhouse.glob("*.whl")}
    assert set(slim) == {"0.20.1+cu130.mini", "0.20.1+cu130.sm90.mini", "0.20.1+cu130.sm120.mini"}
    report = json.loads(Path(f"{slim['0.20.1+cu130.sm90.mini']}.report.json").read_text())
    [part] = [row for name, row in report["audit"]["components"].items() if "_moe_C" in name]
    assert part["elf"] == {"90": 1}
    assert report["audit"]["targets"][0]["ok"]
    assert report["slimmed_from"]["version"] == "0.20.1+cu130.mini"


def test_a_second_run_finds_the_wheel_ready(make: MakeWheel, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    before = units_started(cache)
    started = cpu_seconds()
    make("--offline")
    assert cpu_seconds() - started < 5
    assert units_started(cache) == before
    assert "nothing has changed" in capsys.readouterr().err


@pytest.mark.builds
@pytest.mark.large
def test_a_damaged_wheel_in_the_wheelhouse_is_made_again_without_compiling(make: MakeWheel, cache: Path) -> None:
    [wheel] = make().glob("*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-100])
    before = units_started(cache)
    assert zipfile.is_zipfile(next(make().glob("*.whl")))
    assert units_started(cache) == before


@pytest.mark.builds
@pytest.mark.large
def test_archs_in_the_label_and_missing_cubins_are_an_audit_error(fresh: None, make: MakeWheel) -> None:
    with pytest.raises(AuditError, match=r"no component has a cubin for 10\.0"):
        make("--arch", "10.0")
    wheelhouse = make("--arch", "9.0")
    [wheel] = wheelhouse.glob("*.whl")
    assert wheel.name.startswith("vllm-0.20.1+cu130.sm90.mini-")


def test_a_failing_unit_is_shown_once_with_its_command_and_nothing_is_lost(
    fresh: None, make: MakeWheel, miniature: Miniature, cache: Path
) -> None:
    miniature.broken(broken=True)
    with pytest.raises(CompileError) as caught:
        make()
    assert caught.value.detail.count("error: it is broken") == 1
    assert re.search(r"repeat it with:\n(/\S+/enter sh -c ')?cd ", caught.value.detail)
    assert "_moe_C/b.cpp" in caught.value.what
    done = units_ended(cache)
    miniature.broken(broken=False)
    wheelhouse = make()
    assert report_of(wheelhouse)["units"]["compiled_in_this_run"] == 4 - done


def start(miniature: Miniature, cache: Path, wheelhouse: Path) -> subprocess.Popen[bytes]:
    command = wheel_command("--recipe", str(miniature.recipe), "--wheelhouse", str(wheelhouse))
    return subprocess.Popen(command, cwd=ROOT, env=full_environment(miniature, cache), stderr=subprocess.PIPE)


def compilers_alive(miniature: Miniature) -> list[int]:
    processes = psutil.process_iter(["cmdline"])
    return [p.pid for p in processes if str(miniature.compiler) in (p.info["cmdline"] or []) and alive(p.pid)]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=[pytest.mark.large, pytest.mark.builds]),
        pytest.param(signal.SIGKILL, -9, marks=[pytest.mark.large, pytest.mark.builds]),
    ],
)
def test_a_run_stopped_while_compiling_leaves_no_process_and_goes_on_from_there(
    fresh: None, make: MakeWheel, miniature: Miniature, cache: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    miniature.slow(1.5)
    process = start(miniature, cache, tmp_path / "other")
    wait_for(lambda: units_known_to_ninja(cache) >= 1)
    wait_for(lambda: len(compilers_alive(miniature)) > 0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    wait_for(lambda: not compilers_alive(miniature))
    assert b"Traceback" not in errors
    done = units_known_to_ninja(cache)
    assert 1 <= done < 4
    assert not list((tmp_path / "other").glob("*.whl"))
    miniature.slow(0)
    report = report_of(make())
    assert report["units"]["compiled_in_this_run"] == 4 - done
    assert len(report["units"]["records"]) == 4
    if number is not signal.SIGKILL:
        assert report["stages"]["compile"]["seconds"] > 1.5  # the stopped run's share is counted


def edit(path: Path, old: str, new: str) -> None:
    """Change a letter in place, as a slip in an editor does; every name of the file has it then."""
    text = path.read_bytes()
    assert old.encode() in text
    path.write_bytes(text.replace(old.encode(), new.encode()))


@pytest.mark.builds
@pytest.mark.large
def test_a_changed_letter_in_the_build_tree_s_sources_is_put_back_and_its_unit_compiled_again(
    fresh: None, make: MakeWheel, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheelhouse = make()
    first = next(wheelhouse.glob("*.whl")).read_bytes()
    [tree] = (cache / "builds").iterdir()
    source = tree / "source/csrc/_moe_C/c.cpp"
    edit(source, "three", "thrxe")
    (tree / "source/vllm/__init__.py").unlink()
    subprocess.run(["rm", "-rf", str(wheelhouse)], check=True)
    capsys.readouterr()
    assert next(make().glob("*.whl")).read_bytes() == first
    assert "three" in source.read_text()
    said = capsys.readouterr().err
    assert "damaged and are put back: csrc/_moe_C/c.cpp is changed, and 1 more" in said
    assert units_started(cache) == 5


SOURCE = ("sources", "csrc/_moe_C/c.cpp", "change")
HEADER = ("dependencies", "include/cutlass_version.h", "change")
CICC = ("toolchains", "cuda/nvvm/bin/cicc", "remove")
TORCH = ("toolchains", "venv/lib/python*/site-packages/torch/__init__.py", "change")  # uv's cache has the same file


@pytest.mark.builds
@pytest.mark.large
@pytest.mark.parametrize("damages", [[SOURCE, HEADER, CICC], [TORCH]], ids=["all kinds", "a package"])
def test_damage_in_the_cache_is_noticed_before_compiling_and_mended(
    make: MakeWheel,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    damages: list[tuple[str, str, str]],
) -> None:
    first = next(make().glob("*.whl"))
    wanted = first.read_bytes()
    first.unlink()
    right: dict[Path, bytes] = {}
    for group, name, damage in damages:
        for file in (cache / group).glob(f"*/{name}"):
            right[file] = file.read_bytes()
            if damage == "change":
                edit(file, "e", "x")
            else:
                file.unlink()
    assert len(right) == len(damages)
    capsys.readouterr()
    assert next(make().glob("*.whl")).read_bytes() == wanted
    said = capsys.readouterr().err
    for file, data in right.items():
        group, key = file.relative_to(cache).parts[:2]
        assert f"{group}/{key} in the cache was damaged and is made anew" in said
        assert file.read_bytes() == data
    make("--offline")
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.builds
@pytest.mark.large
def test_a_second_run_on_the_same_tree_waits_and_says_for_whom(
    fresh: None, make: MakeWheel, miniature: Miniature, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature.slow(1)
    process = start(miniature, cache, tmp_path / "wheelhouse")
    wait_for(lambda: units_ended(cache) >= 1)
    make()
    process.communicate(timeout=60)
    assert process.returncode == 0
    said = capsys.readouterr().err
    assert f"waiting for another run (process {process.pid})" in said
    assert "nothing has changed" in said
    assert units_started(cache) == 4


def test_another_sha256_than_the_pinned_one_is_refused_before_use(
    make: MakeWheel, miniature: Miniature, cache: Path
) -> None:
    text = miniature.recipe.read_text()
    sha256 = text.split('sha256 = "')[1][:64]
    recipe = miniature.variant("wrong-digest", sha256, "0" * 64)
    with pytest.raises(FetchError, match="is not the pinned file") as caught:
        make(recipe=recipe)
    assert sha256 in caught.value.why
    assert not list((cache / "downloads" / ("0" * 64)).glob("[!.]*"))


def test_a_patch_that_does_not_apply_leaves_no_tree(make: MakeWheel, miniature: Miniature, cache: Path) -> None:
    patch = miniature.recipe.with_name("0002-bad.patch")
    patch.write_text((miniature.recipe.with_name("0001-version.patch")).read_text().replace("import torch", "import x"))
    recipe = miniature.variant("bad-patch", "0001-version.patch", "0002-bad.patch")
    before = sorted((cache / "sources").glob("*")) if (cache / "sources").exists() else []
    with pytest.raises(PatchError, match=r"0002-bad\.patch does not apply") as caught:
        make(recipe=recipe)
    assert "line 1 is 'import torch'" in caught.value.detail
    assert sorted((cache / "sources").glob("*")) == before
    assert not list((cache / "sources").glob(".*"))


def test_a_component_that_upstream_does_not_have_is_a_compile_error(
    fresh: None, make: MakeWheel, miniature: Miniature
) -> None:
    recipe = miniature.variant("extra", '"_moe_C"]', '"_moe_C", "_C"]')
    with pytest.raises(CompileError):
        make(recipe=recipe)


@pytest.mark.parametrize("place", ["wheelhouse", "cache"])
def test_places_that_cannot_be_written_are_named_before_anything_starts(
    make: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    blocked = tmp_path / "file" / "below"
    (tmp_path / "file").write_text("a file, not a folder")
    if place == "cache":
        monkeypatch.setenv("WHEELSMITH_CACHE", str(blocked))
    options = ["--wheelhouse", str(blocked)] if place == "wheelhouse" else []
    with pytest.raises(WheelsmithError) as caught:
        make(*options)
    assert str(blocked) in caught.value.what
    assert "is a file, not a directory" in caught.value.why
    assert isinstance(caught.value, PackageError if place == "wheelhouse" else FetchError)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize(("size", "kind"), [("40k", (FetchError, PatchError)), ("2m", ToolchainError)])
def test_a_full_filesystem_is_named_and_leaves_nothing_half_made(
    make: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, kind: type[WheelsmithError]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        monkeypatch.setenv("WHEELSMITH_CACHE", str(small))
        with pytest.raises(kind) as caught:
            make()
        assert "no space left" in caught.value.why
        assert kind is ToolchainError or not list((small / "sources").glob("*"))
        assert not list((small / "toolchains").glob("*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_dry_run_starts_nothing(make: MakeWheel, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime for path in cache.rglob("*")}
    wheelhouse = make("--dry-run", "--arch", "9.0")
    assert not wheelhouse.exists()
    assert {path: path.stat().st_mtime for path in cache.rglob("*")} == before
    plan = "".join(capsys.readouterr().out.split())  # the table folds long values
    assert "0.20.1+cu130.sm90.mini" in plan
    assert "mini-cutlass1.0" in plan


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--jobs", "0"], "--jobs is '0'"),
        (["--jobs", "many"], "--jobs is 'many'"),
        (["--arch", "7.0"], "no longer compiles for 7.0"),
        (["--arch", "RTX 509"], "Perhaps you meant 'RTX 5090'"),
        (["--archs", "9.0"], "Perhaps you meant '--arch'"),
    ],
)
def test_mistakes_on_the_command_line_are_usage_errors(make: MakeWheel, arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(*arguments)
    assert words in caught.value.what
