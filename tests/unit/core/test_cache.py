from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.core.cache import CACHEDIR_TAG, Cache, default_cache_dir
from scripts.core.console import Console
from scripts.core.errors import FetchError, PackageError, UsageError
from scripts.core.files import digest, file_sha256, install_file, remove_tree, write_atomic, write_json
from scripts.core.paths import ROOT


def test_a_cache_is_tagged_for_backups_and_stays_usable(tmp_path: Path) -> None:
    root = tmp_path / "new" / "cache"
    Cache.open(root)
    assert (root / CACHEDIR_TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    (root / "anything").touch()
    assert Cache.open(root).root == root


def test_a_directory_with_other_files_is_not_taken_for_a_cache(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(UsageError, match="not a wheelsmith cache"):
        Cache.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["lost+found", f".{CACHEDIR_TAG}.k1ll3d.partial"])
def test_a_fresh_filesystem_and_one_left_by_a_killed_first_run_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert Cache.open(tmp_path).root == tmp_path


def test_a_cache_below_a_file_is_refused_with_cause_and_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="opening the cache failed") as raised:
        Cache.open(tmp_path / "file" / "cache")
    assert "a file" in raised.value.why
    assert "WHEELSMITH_CACHE" in raised.value.fix[0]


@pytest.mark.parametrize("group", ["locks", "downloads"])
def test_a_group_that_cannot_be_made_is_a_fetch_error(cache: Cache, console: Console, group: str) -> None:
    (cache.root / group).touch()
    with pytest.raises(FetchError, match=group), cache.lock("x", console):
        cache.place("downloads", "x")


def test_the_default_is_the_platform_s_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/wheelsmith")


def test_an_entry_is_made_once_and_appears_whole(cache: Cache, console: Console) -> None:
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        (target / "a").write_text("1")
        assert not (cache.root / "things" / "key").exists()

    final = cache.once("things", "key", make, console=console)
    assert final == cache.once("things", "key", make, console=console) == cache.root / "things" / "key"
    assert (final / "a").read_text() == "1"
    assert len(made) == 1
    assert final.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_of_an_entry(cache: Cache, console: Console, error: BaseException) -> None:
    def make(target: Path) -> None:
        (target / "a").touch()
        raise error

    with pytest.raises(type(error)):
        cache.once("things", "key", make, console=console)
    assert list((cache.root / "things").iterdir()) == []


def test_a_full_disk_while_making_an_entry_is_explained(cache: Cache, console: Console) -> None:
    def make(_target: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FetchError, match="writing to things failed") as raised:
        cache.once("things", "key", make, console=console)
    assert raised.value.why == "no space left on the filesystem"
    assert list((cache.root / "things").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from scripts.core.cache import Cache
from scripts.core.console import Console
def make(target):
    (target / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
Cache(Path(sys.argv[1])).once("things", "key", make, console=Console())
"""


def test_what_a_killed_run_left_is_never_visible_and_removed_by_the_next(cache: Cache, console: Console) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(cache.root)], cwd=ROOT, check=False)
    assert done.returncode == -9
    [left] = (cache.root / "things").iterdir()
    assert left.name.startswith(".key.")
    other = cache.root / "things" / ".other.x.partial"
    other.mkdir()
    cache.once("things", "key", lambda target: None, console=console)
    assert {path.name for path in (cache.root / "things").iterdir()} == {"key", ".other.x.partial"}


def test_the_second_run_says_who_holds_a_lock_and_waits(
    cache: Cache, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def second() -> None:
        with cache.lock("tree", console):
            order.append("second")

    with cache.lock("tree", console):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert f"waiting for another run (process {os.getpid()}) that works on tree" in capsys.readouterr().err


HOLDER = """
import sys, time
from pathlib import Path
from scripts.core.cache import Cache
from scripts.core.console import Console
with Cache(Path(sys.argv[1])).lock("tree", Console()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_run_is_free(cache: Cache, console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache.root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        child.kill()
    with cache.lock("tree", console):
        pass
    assert "waiting" not in capsys.readouterr().err


AS_NOBODY = """
import os, sys
from pathlib import Path
from scripts.core.files import remove_tree
os.setuid(65534)
remove_tree(Path(sys.argv[1]))
"""


def test_a_tree_with_read_only_parts_is_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner" / "most").mkdir(parents=True)
    (tree / "inner" / "file").touch()
    (tree / "link").symlink_to(tmp_path)
    for folder, mode in ((tree / "inner" / "most", 0o000), (tree / "inner", 0o500), (tree, 0o500)):
        folder.chmod(mode)
    if os.getuid():
        remove_tree(tree)
    else:  # permissions do not bind root: let somebody else do it
        for path in (tree, *tree.rglob("*"), tmp_path):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        for folder in tmp_path.parents:
            if folder.stat().st_mode & 0o001 == 0:
                folder.chmod(folder.stat().st_mode | 0o011)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(tree)], cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_removing_a_link_or_a_missing_tree_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "none")
    assert [path.name for path in tmp_path.rglob("*")] == ["real", "file"]


def test_readers_see_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file", b"new")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_json_is_written_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1], "path": Path("/p")})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1\n  ],\n  "path": "/p"\n}\n'


def test_a_digest_depends_on_the_data_and_not_on_its_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    assert len(digest(None)) == 20


def test_a_file_s_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_installed_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    install_file(source, tmp_path / "final", kind=PackageError, variable="--wheelhouse")
    assert (tmp_path / "final").read_bytes() == source.read_bytes()
    (tmp_path / "folder").mkdir()
    with pytest.raises(PackageError, match="writing failed") as raised:
        install_file(source, tmp_path / "folder", kind=PackageError, variable="--wheelhouse")
    assert raised.value.exit_code == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "folder", "source"]
