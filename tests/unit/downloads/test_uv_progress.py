"""uv tells its progress on a terminal only: bytes and totals are read out of the bars it draws there."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import ToolchainError
from scripts.core.files import file_sha256
from scripts.core.process import call
from scripts.downloads.indexes import Indexes
from scripts.toolchain.environments import UvProgress, forget_damaged, make_environment, owners, recorded_digests
from tests.accesses import make_access
from tests.wheels import make_wheel

BAR = "\x1b[1A\r\x1b[2K\x1b[1B\r\x1b[2K\x1b[1A⠙ Preparing packages... ({}/3)" + " " * 150
# As uv 0.13.9 wrote it on a terminal of 200 columns.
SAID = (
    "Using CPython 3.11.7 interpreter at: /usr/bin/python3\r\n⠋ Resolving dependencies...      \r\x1b[2K"
    + BAR.format(0)
    + "nvidia-nvvm          ------------------------------     0 B/58.75 MiB    "
    + BAR.format(0)
    + "nvidia-nvvm          ------------------------------ 16.00 MiB/58.75 MiB    "
    + "numpy                ------------------------------ 512.00 KiB/15.50 MiB    "
    + BAR.format(1)
    + "nvidia-nvvm          ------------------------------ 32.00 MiB/58.75 MiB    "
    + BAR.format(2)
    + "\r\x1b[2KPrepared 3 packages in 16.49s\r\n░░░░ [0/3] numpy==2.2.0\r\x1b[2KInstalled 3 packages in 475ms\r\n"
).encode()


@given(cuts=st.lists(st.integers(0, len(SAID)), max_size=30))
def test_bytes_of_all_downloads_are_added_up_however_the_terminal_s_output_arrives(cuts: list[int]) -> None:
    progress = UvProgress()
    places = [0, *sorted(cuts), len(SAID)]
    for begin, end in itertools.pairwise(places):
        progress.take(SAID[begin:end])
    mebi = 1 << 20
    assert progress.transfer.done == int(32 * mebi + 15.5 * mebi)  # numpy is shown no longer: it is there
    assert progress.transfer.total == int((58.75 + 15.5) * mebi)
    assert "installing packages: 49.8 MB of 77.9 MB, " in progress.transfer.text()
    assert progress.text().splitlines() == [
        "Using CPython 3.11.7 interpreter at: /usr/bin/python3",
        "Prepared 3 packages in 16.49s",
        "Installed 3 packages in 475ms",
    ]


@given(st.binary(max_size=300))
def test_whatever_is_written_is_taken(block: bytes) -> None:
    progress = UvProgress()
    progress.take(block)
    progress.text()


def test_a_program_that_is_asked_to_thinks_it_writes_on_a_terminal() -> None:
    code = "import os, sys; print(os.isatty(1), os.isatty(2), os.get_terminal_size(1).columns)"
    heard: list[bytes] = []
    done = call([sys.executable, "-c", code], environment={}, terminal=True, on_output=heard.append)
    assert (done.code, b"".join(heard)) == (0, b"True True 200\r\n")


@pytest.fixture
def indexes(tmp_path: Path) -> Indexes:
    (tmp_path / "links").mkdir()
    return Indexes(find_links=(str(tmp_path / "links"),))


def lock_of(tmp_path: Path) -> Path:
    members = {"thing/__init__.py": b"x = 1\n"}
    wheel = make_wheel(tmp_path / "links", members, name="thing", version="1.0", tags="py3-none-any")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"thing==1.0 --hash=sha256:{file_sha256(wheel)}\n")
    return lock


def test_an_installed_file_that_was_damaged_in_uv_s_cache_too_comes_anew(
    tmp_path: Path, indexes: Indexes, cache: Cache, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv links files out of its cache: writing into one changes both, and a new environment would have it again."""
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    lock, site = lock_of(tmp_path), f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    access = make_access(cache, console, indexes=indexes, offline=True)
    make_environment(tmp_path / "one", lock, access)
    file = tmp_path / "one" / site / "thing" / "__init__.py"
    assert file.stat().st_nlink > 1
    identity = (file.stat().st_dev, file.stat().st_ino)
    assert recorded_digests(tmp_path / "one" / site)[identity] == file_sha256(file)
    assert owners(tmp_path / "one" / site, {file}) == ["thing"]
    with file.open("r+") as opened:
        opened.write("y")
    make_environment(tmp_path / "two", lock, access)
    assert (tmp_path / "two" / site / "thing" / "__init__.py").read_text() == "y = 1\n"
    forget_damaged(tmp_path / "one" / site, [file, file.with_name("none")], access)
    make_environment(tmp_path / "three", lock, access)
    assert (tmp_path / "three" / site / "thing" / "__init__.py").read_text() == "x = 1\n"


def test_what_uv_says_of_a_failure_is_kept_and_explained(
    tmp_path: Path, indexes: Indexes, cache: Cache, console: Console
) -> None:
    lock = lock_of(tmp_path)
    lock.write_text(f"thing==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ToolchainError) as raised:
        make_environment(tmp_path / "one", lock, make_access(cache, console, indexes=indexes, offline=True))
    assert "other bytes than the lock file pins" in raised.value.why
    assert "Hash mismatch" in raised.value.detail
    assert "Hash mismatch" in (cache.root / "logs" / "uv.log").read_text()
