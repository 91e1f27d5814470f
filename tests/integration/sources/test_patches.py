"""The command patches: verdicts on small trees, and the real sdists with -m large."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.commands import patches as commands_patches
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import PatchError, UsageError
from scripts.core.paths import RECIPES
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Recipe
from scripts.recipe.sources import SdistSource
from scripts.sources.fetch import source_tree
from scripts.sources.patch import load_patch
from scripts.sources.series import PatchVerdict, check_series, locked_versions, recipe_patches
from tests.accesses import make_access
from tests.integration.upstream.test_lock import sdist_tree

HEADER = "Subject: s\nWhy: w\nUpstream: u\nVersions: 1\n"
CHANGE = "--- a/a.txt\n+++ b/a.txt\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"


def patch_file(folder: Path, name: str, diff: str, *, more: str = "") -> None:
    (folder / name).write_text(f"{HEADER}{more}\n{diff}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.txt").write_text("one\ntwo\nthree\n")
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        ("one\ntwo\nthree\n", PatchVerdict.APPLIES),
        ("zero\none\ntwo\nthree\n", PatchVerdict.APPLIES),
        ("one\n2\nthree\n", PatchVerdict.UPSTREAM),
        ("one\nzwei\nthree\n", PatchVerdict.CONFLICT),
        (None, PatchVerdict.NOTHING),
    ],
)
def test_each_patch_gets_its_verdict(tree: Path, tmp_path: Path, content: str | None, verdict: PatchVerdict) -> None:
    patch_file(tmp_path, "1.patch", CHANGE)
    if content is None:
        (tree / "a.txt").unlink()
    else:
        (tree / "a.txt").write_text(content)
    (finding,) = check_series(tree, [load_patch("1.patch", folder=tmp_path)])
    assert finding.verdict is verdict
    assert (tree / "a.txt").exists() == (content is not None)


def test_a_patch_sees_those_before_it_but_not_those_that_failed(tree: Path, tmp_path: Path) -> None:
    patch_file(tmp_path, "1.patch", CHANGE)
    patch_file(tmp_path, "2.patch", CHANGE.replace("-two\n+2", "-missing\n+found"))
    patch_file(tmp_path, "3.patch", CHANGE.replace("-two\n+2", "-2\n+zwei"))
    series = [load_patch(f"{number}.patch", folder=tmp_path) for number in (1, 2, 3)]
    verdicts = [finding.verdict for finding in check_series(tree, series)]
    assert verdicts == [PatchVerdict.APPLIES, PatchVerdict.CONFLICT, PatchVerdict.APPLIES]
    assert (tree / "a.txt").read_text() == "one\ntwo\nthree\n"


def recipe_with(lock: str, tmp_path: Path) -> Recipe:
    (tmp_path / "x.txt").write_text(lock)
    base = load_recipe("vllm-0.15.1-cu128")
    toolchain = base.toolchain.model_copy(update={"lock": "x.txt"})
    return base.model_copy(update={"toolchain": toolchain, "folder": tmp_path, "patches": ("1.patch", "2.patch")})


@pytest.mark.parametrize(
    ("lock", "needed"),
    [
        ("setuptools==70.3.0 \\\n", ["1.patch", "2.patch"]),
        ("setuptools==80.9.0 \\\n", ["1.patch"]),
        ("setuptools==77.0.3 ; python_version >= '3.9' \\\n", ["1.patch"]),
        ("wheel==0.45.0\n", ["1.patch"]),
    ],
)
def test_a_patch_with_a_condition_is_taken_only_where_the_lock_file_meets_it(
    tmp_path: Path, lock: str, needed: list[str]
) -> None:
    patch_file(tmp_path, "1.patch", CHANGE)
    patch_file(tmp_path, "2.patch", CHANGE, more="When: setuptools<77\n")
    taken, others = recipe_patches(recipe_with(lock, tmp_path))
    assert [patch.name for patch in taken] == needed
    assert all(item.verdict is PatchVerdict.UNNEEDED and "setuptools" in item.detail for item in others)
    assert len(taken) + len(others) == 2


def test_a_condition_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    patch_file(tmp_path, "1.patch", CHANGE)
    patch_file(tmp_path, "2.patch", CHANGE, more="When: old setuptools\n")
    with pytest.raises(PatchError, match="is not a requirement"):
        recipe_patches(recipe_with("", tmp_path))


def test_the_lock_files_pin_what_the_recipes_say() -> None:
    versions = locked_versions(RECIPES / "locks/vllm-0.15.1-cu128.txt")
    assert (versions["torch"], versions["nvidia-cuda-runtime-cu12"]) == ("2.9.1", "12.8.90")
    assert versions["grpcio-tools"] == "1.78.0"


def test_the_command_reports_each_patch_and_ends_with_the_patch_exit_code(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands_patches, "source_tree", lambda *_: tree)
    report = tmp_path / "report.json"
    command = ["--recipe", "vllm-0.15.1-cu128", "--json", str(report), "--cache", str(tmp_path / "cache")]
    assert commands_patches.main(command, Console(quiet=True)) == PatchError.exit_code
    shown = capsys.readouterr().out
    assert "applies to nothing" in shown
    assert "not needed" in shown
    assert len(json.loads(report.read_text())) == len(load_recipe("vllm-0.15.1-cu128").patches)


def test_a_release_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a release"):
        commands_patches.main(["--against", "0.16.0"], Console(quiet=True))


def test_a_cached_sdist_is_unpacked_without_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("vllm-1/a.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    cache = Cache.open(tmp_path / "cache")
    place = cache.place(f"downloads/{sha256}", "vllm-1.tar.gz")
    place.write_bytes(buffer.getvalue())
    source = SdistSource(kind="sdist", name="vllm", version="1", sha256=sha256)
    found = source_tree(source, make_access(cache, offline=True))
    assert (found / "a.txt").read_bytes() == b"one"


@pytest.mark.large
@pytest.mark.parametrize("version", ["0.14.1", "0.16.0"])
def test_the_production_series_applies_to_both_neighbours(version: str) -> None:
    series = [load_patch(name) for name in load_recipe("vllm-0.15.1-cu128").patches]
    assert {item.verdict for item in check_series(sdist_tree(version), series)} == {PatchVerdict.APPLIES}


@pytest.mark.large
def test_the_0_20_series_applies_to_its_release_and_to_0_19_but_for_deepgemm() -> None:
    names = [*load_recipe("quickstart").patches, "vllm/0004-license-table.patch", "vllm/0005-compress-mode.patch"]
    series = [load_patch(name) for name in names]
    assert {item.verdict for item in check_series(sdist_tree("0.20.1"), series)} == {PatchVerdict.APPLIES}
    older = {item.patch: item for item in check_series(sdist_tree("0.19.1"), series)}
    conflicts = [name for name, item in older.items() if item.verdict is not PatchVerdict.APPLIES]
    assert conflicts == ["vllm/0002-component-selection.patch"]  # DeepGEMM came with 0.20
