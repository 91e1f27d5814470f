"""What uv is told and how its failures are explained: its own words, and uv itself with an empty cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.core.cache import Cache
from scripts.core.errors import ToolchainError
from scripts.downloads.indexes import Indexes
from scripts.toolchain.environments import _uv_error, make_environment, uv_variables
from tests.accesses import make_access

HASH = "0" * 64


def test_uv_gets_the_cache_and_the_indexes_and_no_environment_of_the_user(
    cache: Cache,
) -> None:
    indexes, environment = Indexes(index_url="https://mirror/simple"), {"VIRTUAL_ENV": "/other", "HOME": "/home/me"}
    found = uv_variables(make_access(cache, environment=environment, indexes=indexes))
    assert found["HOME"] == "/home/me"
    assert found["UV_CACHE_DIR"] == str(cache.root / "uv")
    assert found["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert found["UV_PYTHON_DOWNLOADS"] == "never"
    assert not {"VIRTUAL_ENV", "UV_OFFLINE"} & set(found)
    assert uv_variables(make_access(cache, indexes=indexes, offline=True))["UV_OFFLINE"] == "1"


def test_the_users_own_uv_cache_and_time_out_stay(cache: Cache) -> None:
    environment = {"UV_CACHE_DIR": "/mine", "UV_HTTP_TIMEOUT": "7"}
    found = uv_variables(make_access(cache, environment=environment, indexes=Indexes()))
    assert (found["UV_CACHE_DIR"], found["UV_HTTP_TIMEOUT"]) == ("/mine", "7")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("error: failed to write: No space left on device (os error 28)", "no space left"),
        ("error: failed to create /x: Permission denied (os error 13)", "permission denied"),
        ("error: Hash mismatch for `x==1`", "other bytes than the lock file pins"),
        ("error: Failed to fetch: `https://h/x`\n  Caused by: Connection refused (os error 111)", "cannot be reached"),
        ("hint: Packages were unavailable because the network was disabled", "--offline forbids downloads"),
        ("error: something new", "uv could not install it"),
    ],
)
def test_the_cause_is_read_from_what_uv_said(said: str, why: str, tmp_path: Path) -> None:
    error = _uv_error(f"{said}\n", tmp_path / "uv.log")
    assert why in error.why
    assert error.detail == said


def test_credentials_of_an_index_are_not_shown(tmp_path: Path) -> None:
    error = _uv_error("error: Failed to fetch `https://me:secret@host/simple/x`", tmp_path / "uv.log")
    assert error.detail == "error: Failed to fetch `https://host/simple/x`"


def environment(cache: Cache, indexes: Indexes, lock: Path, *, offline: bool) -> Path:
    lock.write_text(f"no-such-thing-at-all==1.0 --hash=sha256:{HASH}\n")
    venv = cache.root / "venv"
    make_environment(venv, lock, make_access(cache, indexes=indexes, offline=offline))
    return venv


@pytest.mark.parametrize(("offline", "why"), [(True, "--offline forbids"), (False, "index cannot be reached")])
def test_uv_itself_without_network_has_its_cause(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, offline: bool, why: str
) -> None:
    for name in ("UV_CACHE_DIR", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX", "UV_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    indexes = Indexes(index_url="http://127.0.0.1:9/simple")
    with pytest.raises(ToolchainError, match="the build environment could not be installed") as raised:
        environment(cache, indexes, tmp_path / "lock.txt", offline=offline)
    assert why in raised.value.why
    assert "no-such-thing-at-all" in raised.value.detail
