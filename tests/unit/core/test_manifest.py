"""Changed files of a cached directory are noticed, touched ones are not taken for damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core import manifest
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import ToolchainError
from scripts.core.manifest import Change, Damage


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "csrc").mkdir(parents=True)
    (root / "csrc" / "a.cpp").write_text("int a;\n")
    (root / "csrc" / "b c.cpp").write_text("int b;\n")
    (root / "link").symlink_to("csrc/a.cpp")
    manifest.record(root, tmp_path / "record")
    return root


def seen(tree: Path) -> list[Change]:
    return manifest.changes(tree, tree.with_name("record"))


def set_back(path: Path, text: str) -> None:
    """Change a file without changing its size or mtime."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_nothing_has_changed_in_a_tree_that_was_only_read_and_imported_from(tree: Path) -> None:
    (tree / "csrc" / "__pycache__").mkdir()
    (tree / "csrc" / "__pycache__" / "a.pyc").touch()
    assert seen(tree) == []


def test_a_changed_letter_is_noticed_though_size_and_time_are_set_back(tree: Path) -> None:
    set_back(tree / "csrc" / "a.cpp", "int x;\n")
    assert seen(tree) == [Change("csrc/a.cpp", Damage.CHANGED)]


def test_missing_and_added_files_and_turned_links_are_noticed(tree: Path) -> None:
    (tree / "csrc" / "b c.cpp").unlink()
    (tree / "csrc" / "new.h").touch()
    (tree / "link").unlink()
    (tree / "link").symlink_to("csrc/new.h")
    assert {change.path: change.damage for change in seen(tree)} == {
        "csrc/b c.cpp": Damage.MISSING,
        "csrc/new.h": Damage.ADDED,
        "link": Damage.CHANGED,
    }
    assert manifest.summary(seen(tree)) == "csrc/b c.cpp is missing, and 2 more"


def test_a_touched_file_is_read_once_and_then_known_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(tree / "csrc" / "a.cpp")
    assert seen(tree) == []
    monkeypatch.setattr(manifest, "_sha256", lambda _path: pytest.fail("it is read again"))
    assert seen(tree) == []


def test_another_name_of_a_file_is_no_change_of_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv links installed files to its cache, and every environment adds a name and sets the ctime."""
    os.link(tree / "csrc" / "a.cpp", tree.with_name("other"))
    monkeypatch.setattr(manifest, "_sha256", lambda _path: pytest.fail("gigabytes would be read"))
    assert seen(tree) == []


def test_contents_that_are_known_are_not_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {manifest._identity(path): "0" * 64 for path in tree.rglob("*.cpp")}
    monkeypatch.setattr(manifest, "_sha256", lambda _path: pytest.fail("it is known"))
    manifest.record(tree, tree.with_name("record"), known=known)
    monkeypatch.undo()
    os.utime(tree / "csrc" / "a.cpp")
    assert [change.path for change in seen(tree)] == ["csrc/a.cpp"]


def test_a_directory_of_an_older_version_is_recorded_when_it_is_first_seen(tree: Path) -> None:
    for content in (b"", b"{}", b"wheelsmith manifest 1 0\n", b"\xff\0" * 50):
        tree.with_name("record").write_bytes(content)
        seen(tree)
    tree.with_name("record").unlink()
    assert seen(tree) == []
    (tree / "csrc" / "a.cpp").unlink()
    assert seen(tree) == [Change("csrc/a.cpp", Damage.MISSING)]


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in {".", "..", "__pycache__"} and len(name.encode()) < 200
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(files=st.dictionaries(names, st.binary(max_size=9), min_size=1, max_size=6), data=st.data())
def test_whatever_files_are_called_exactly_the_changed_one_is_named(
    files: dict[str, bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    place = root.with_name(f"{root.name}.record")
    for name, content in files.items():
        (root / name).write_bytes(content)
    manifest.record(root, place)
    assert manifest.changes(root, place) == []
    name = data.draw(st.sampled_from(sorted(files)))
    (root / name).write_bytes(files[name] + b"!")
    assert manifest.changes(root, place) == [Change(name, Damage.CHANGED)]


def test_a_damaged_entry_of_the_cache_is_told_and_made_anew(
    cache: Cache, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []
    mourned: list[str] = []

    def make(target: Path) -> None:
        made.append(target)
        (target / "a").write_text("right")

    def once() -> Path:
        return cache.once(
            *("things", "key", make),
            console=console,
            changing=("note-*",),
            mourn=lambda old, found: mourned.extend((old / change.path).read_text() for change in found),
        )

    final = once()
    (final / "note-1").touch()
    once()
    assert (len(made), capsys.readouterr().err) == (1, "")
    (final / "a").write_text("wrong")
    assert (once() / "a").read_text() == "right"
    assert (len(made), mourned) == (2, ["wrong"])
    assert "things/key in the cache was damaged and is made anew: a is changed" in capsys.readouterr().err
    assert [path.name for path in final.iterdir()] == ["a"]


def test_a_full_disk_is_an_error_of_the_stage_that_meets_it(cache: Cache, console: Console) -> None:
    def make(_target: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ToolchainError, match="writing to things failed") as raised:
        cache.once("things", "key", make, console=console, kind=ToolchainError)
    assert raised.value.exit_code == 6
    (cache.root / "locks").rename(cache.root / "gone")
    (cache.root / "locks").touch()
    with pytest.raises(ToolchainError, match="locks"):
        cache.once("things", "key", make, console=console, kind=ToolchainError)


def test_a_scratch_folder_goes_and_takes_with_it_what_killed_runs_left(cache: Cache) -> None:
    with cache.scratch("proof-") as first:
        (first / "file").touch()
        with cache.scratch("proof-") as second:
            assert first.is_dir()
        assert not second.exists()
    left = cache.place("tmp", "proof-killed")
    left.mkdir()
    (left / "file").touch()
    left.with_name("proof-killed.lock").touch()
    with cache.scratch("proof-"):
        assert not left.exists()
    assert list(left.parent.iterdir()) == []
