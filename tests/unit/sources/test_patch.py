from __future__ import annotations

import difflib
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import PatchError
from scripts.core.files import file_sha256
from scripts.recipe.files import load_recipe, recipe_names
from scripts.sources.patch import CARRIED, PATCHES, Patch, apply_patches, apply_to, load_patch, prepare_tree
from scripts.sources.types import Archive
from tests.accesses import make_access

HEADER = "Subject: A change\nWhy: because\n of two lines\nUpstream: none\nVersions: 0.1, 0.2\n\n"


def patch_of(diff: str, name: str = "p.patch") -> Patch:
    return Patch(name, "0" * 64, "A change", "because", "none", ("0.1", "0.2"), HEADER + diff)


def diff(old: str, new: str, name: str = "f.txt", context: int = 3) -> str:
    """Return what `diff -u` prints, with its word for a last line that does not end."""
    rows = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}", n=context
    )
    return "".join(row if row.endswith("\n") else f"{row}\n\\ No newline at end of file\n" for row in rows)


def tree(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_bytes(text.encode())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NUMBERS = "".join(f"{number}\n" for number in range(1, 31))


@pytest.mark.parametrize("path", sorted(PATCHES.rglob("*.patch")), ids=lambda path: path.stem)
def test_every_patch_that_comes_with_wheelsmith_has_a_header_and_a_diff(path: Path) -> None:
    patch = load_patch(str(path.relative_to(PATCHES)))
    assert (patch.sha256 == file_sha256(path)) is not bool(patch.files)
    assert all((patch.subject, patch.why, patch.upstream))
    assert all(version[0].isdigit() for version in patch.versions)
    assert apply_to(Path("/nowhere"), patch, {})  # parses, and does not fit a tree without files


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_s_patches_are_made_for_its_version(name: str) -> None:
    recipe = load_recipe(name)
    assert all(recipe.package.version in load_patch(patch).versions for patch in recipe.patches)


def test_a_header_is_read_with_its_continued_lines(tmp_path: Path) -> None:
    (tmp_path / "p.patch").write_text(HEADER + diff("a\n", "b\n"))
    patch = load_patch("p.patch", folder=tmp_path)
    assert (patch.subject, patch.why, patch.versions) == ("A change", "because of two lines", ("0.1", "0.2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("Why", "Reason"), "lacks Why in its header"),
        ("--- a/x\n", "lacks Subject, Why, Upstream, Versions"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_patch_without_its_header_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.patch").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PatchError, match=message):
        load_patch("p.patch", folder=tmp_path)


def test_a_patch_that_is_not_there_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "other.patch").touch()
    with pytest.raises(PatchError, match=r"no patch 'p\.patch'") as raised:
        load_patch("p.patch", folder=tmp_path)
    assert "other.patch" in raised.value.fix[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "changes no file"),
        ("--- a/f.txt\n+++ b/f.txt\n@@ -1,9 +1,9 @@\n 1\n", "not a unified diff"),
        ("--- a/../f.txt\n+++ b/../f.txt\n@@ -1 +1 @@\n-1\n+2\n", "outside the tree"),
        ("--- /f.txt\n+++ /f.txt\n@@ -1 +1 @@\n-1\n+2\n", "outside the tree"),
    ],
)
def test_a_diff_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        apply_patches(tree(tmp_path / "t", f_txt=NUMBERS), [patch_of(text)])
    assert contents(tmp_path / "t") == {"f.txt": NUMBERS.encode()}


LINES = st.lists(st.sampled_from(["a", "b", "", "c\x0c", "d\r", "\u2028e", "é"]), max_size=12)
TEXTS = st.builds(lambda rows, end: "\n".join(rows) + (end if rows else ""), LINES, st.sampled_from(["\n", ""]))


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 3))
def test_what_diff_makes_of_two_texts_turns_one_into_the_other(
    tmp_path_factory: pytest.TempPathFactory, old: str, new: str, context: int
) -> None:
    rows = [part.split("\n") for part in (old, new)]
    before, after = [[row + "\n" for row in part[:-1]] + ([part[-1]] if part[-1] else []) for part in rows]
    made = difflib.unified_diff(before, after, "a/f.txt", "b/f.txt", n=context)
    text = "".join(row if row.endswith("\n") else f"{row}\n\\ No newline at end of file\n" for row in made)
    if not text or not old:
        return
    folder = tree(tmp_path_factory.mktemp("t"), f_txt=old)
    apply_patches(folder, [patch_of(text)])
    assert contents(folder).get("f.txt", b"").decode() == new


def test_a_hunk_that_moved_is_found_by_its_lines(tmp_path: Path) -> None:
    change = diff(NUMBERS, NUMBERS.replace("15\n", "fifteen\n"))
    folder = tree(tmp_path / "t", f_txt="new first line\n" * 7 + NUMBERS)
    apply_patches(folder, [patch_of(change)])
    assert contents(folder)["f.txt"].decode() == "new first line\n" * 7 + NUMBERS.replace("15\n", "fifteen\n")


def test_of_two_equal_places_the_one_that_the_diff_names_is_changed(tmp_path: Path) -> None:
    block = "{\n  x\n}\n"
    old = block + "middle\n" + block
    new = block + "middle\n" + block.replace("x", "y")
    folder = tree(tmp_path / "t", f_txt=old)
    apply_patches(folder, [patch_of(diff(old, new, context=1))])
    assert contents(folder)["f.txt"].decode() == new


def test_files_are_added_and_removed_and_the_tree_knows_its_patches(tmp_path: Path) -> None:
    folder = tree(tmp_path / "t", f_txt="1\n")
    added = "--- /dev/null\n+++ b/d/new.txt\n@@ -0,0 +1,2 @@\n+1\n+2\n"
    removed = "--- a/f.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n"
    apply_patches(folder, [patch_of(added + removed)])
    found = contents(folder)
    carried = json.loads(found.pop(CARRIED))
    assert found == {"d/new.txt": b"1\n2\n"}
    assert carried == [{"name": "p.patch", "sha256": "0" * 64}]


def with_folder(folder: Path, **files: str) -> Patch:
    """Return a patch that brings the folder `more/` along."""
    (folder / "more").mkdir(parents=True, exist_ok=True)
    tree(folder / "more", **files)
    (folder / "p.patch").write_text(HEADER.rstrip("\n") + "\nWith: more\n\n" + diff("a\n", "b\n"))
    return load_patch("p.patch", folder=folder)


def test_a_patch_brings_a_folder_along_whose_content_is_part_of_its_digest(tmp_path: Path) -> None:
    patch = with_folder(tmp_path / "patches", a_h="one\x0c\n", b_h="two")
    target = tree(tmp_path / "tree", f_txt="a\n")
    apply_patches(target, [patch])
    assert (target / "more" / "a.h").read_bytes() == b"one\x0c\n"
    assert (target / "more" / "b.h").read_bytes() == b"two"
    assert (target / "f.txt").read_text() == "b\n"
    other = with_folder(tmp_path / "patches", b_h="three")
    assert other.text == patch.text
    assert other.sha256 != patch.sha256


def test_a_folder_that_would_replace_a_file_of_the_tree_is_a_conflict(tmp_path: Path) -> None:
    patch = with_folder(tmp_path / "patches", a_h="one")
    target = tree(tmp_path / "tree", f_txt="a\n")
    tree(target / "more", a_h="upstream's")
    before = contents(target)
    with pytest.raises(PatchError, match="does not apply"):
        apply_patches(target, [patch])
    assert contents(target) == before


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "wants the folder 'nowhere'"), ("../out", "outside the tree")]
)
def test_a_folder_that_is_not_there_or_lies_outside_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "p.patch").write_text(f"{HEADER.rstrip()}\nWith: {name}\n\n{diff('a', 'b')}")
    with pytest.raises(PatchError, match=message):
        load_patch("p.patch", folder=tmp_path)


def test_later_patches_of_a_series_see_what_earlier_ones_did(tmp_path: Path) -> None:
    folder = tree(tmp_path / "t", f_txt=NUMBERS)
    second = NUMBERS.replace("15\n", "fifteen\n")
    third = second.replace("fifteen\n", "XV\n")
    added, removed = "--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+1\n", "--- a/n\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n"
    apply_patches(folder, [patch_of(diff(NUMBERS, second) + added), patch_of(diff(second, third) + removed)])
    assert contents(folder)["f.txt"].decode() == third
    assert not (folder / "n").exists()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (diff("x\n", "y\n"), "f.txt:1: line 1 is '1', the patch expects 'x'"),
        (diff("1\n", "2\n", "none.txt"), "none.txt:1: there is no such file"),
        ("--- /dev/null\n+++ b/f.txt\n@@ -0,0 +1 @@\n+x\n", "f.txt:1: the file exists already"),
        (diff(NUMBERS + "31\n", NUMBERS + "32\n"), "line 31 is '(end of file)', the patch expects '31'"),
        ("--- a/f.txt\n+++ b/f.txt\n@@ -5,0 +6 @@\n+x\n", "f.txt:5: the hunk has no context"),
        ("--- a/f.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n", "f.txt:1: the file has lines that the patch does not know"),
    ],
    ids=["other line", "no file", "file exists", "past the end", "no context", "more to remove"],
)
def test_a_patch_that_does_not_fit_changes_nothing_and_says_where(tmp_path: Path, change: str, shown: str) -> None:
    folder = tree(tmp_path / "t", f_txt=NUMBERS, other_txt="1\n")
    good = diff("1\n", "2\n", "other.txt")
    with pytest.raises(PatchError, match=r"p\.patch does not apply: 1 hunk") as raised:
        apply_patches(folder, [patch_of(good, "first.patch"), patch_of(change)])
    assert shown in raised.value.detail
    assert "0.1, 0.2" in raised.value.why
    assert contents(folder) == {"f.txt": NUMBERS.encode(), "other.txt": b"1\n"}


def test_hunks_out_of_order_do_not_overlap(tmp_path: Path) -> None:
    one, two = "@@ -20,1 +20,1 @@\n-20\n+x\n", "@@ -2,1 +2,1 @@\n-2\n+y\n"
    folder = tree(tmp_path / "t", f_txt=NUMBERS)
    with pytest.raises(PatchError) as raised:
        apply_patches(folder, [patch_of("--- a/f.txt\n+++ b/f.txt\n" + one + two)])
    assert "an earlier hunk changed these lines" in raised.value.detail


@pytest.mark.parametrize(
    "change",
    [diff("1\n2\n3\n", "1\nzwei\n3\n"), "--- /dev/null\n+++ b/f.txt\n@@ -0,0 +1,3 @@\n+1\n+zwei\n+3\n"],
    ids=["changed", "added"],
)
def test_a_patch_whose_changes_are_there_already_is_said_to_be(tmp_path: Path, change: str) -> None:
    folder = tree(tmp_path / "t", f_txt="1\nzwei\n3\n")
    with pytest.raises(PatchError) as raised:
        apply_patches(folder, [patch_of(change)])
    assert raised.value.why == "its changes are in the source already"
    assert "out of the recipe" in raised.value.fix[0]


def test_bytes_that_are_no_utf_8_survive(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "f.txt").write_bytes(b"\xff\n1\n")
    apply_patches(folder, [patch_of(diff("1\n", "2\n"))])
    assert (folder / "f.txt").read_bytes() == b"\xff\n2\n"


def sdist(folder: Path, text: str) -> Archive:
    path = folder / "v-0.1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("v-0.1/f.txt")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return Archive(path, file_sha256(path), path.stat().st_size)


def test_a_tree_is_made_once_per_source_and_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    access = make_access(Cache.open(tmp_path / "cache"), Console())
    archive = sdist(tmp_path, NUMBERS)
    patch = patch_of(diff(NUMBERS, NUMBERS.replace("15\n", "fifteen\n")))
    plain = prepare_tree(archive, [], access)
    patched = prepare_tree(archive, [patch], access)
    assert plain.path != patched.path
    assert "fifteen" in (patched.path / "f.txt").read_text()
    made = (patched.path / "f.txt").stat().st_ino
    assert "fifteen" not in (plain.path / "f.txt").read_text()
    again = prepare_tree(archive, [patch], access)
    assert (again.path / "f.txt").stat().st_ino == made
    assert "p.patch: A change" in capsys.readouterr().err


def test_a_patch_that_does_not_apply_leaves_no_tree_behind(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "cache")
    access = make_access(cache)
    with pytest.raises(PatchError):
        prepare_tree(sdist(tmp_path, NUMBERS), [patch_of(diff("x\n", "y\n"))], access)
    assert list((cache.root / "sources").iterdir()) == []
