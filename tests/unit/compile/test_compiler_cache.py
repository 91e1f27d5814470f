"""The compiler cache's pure parts: settings, secrets, counts, keys, and the launcher's way through it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.compile import compiler_cache
from scripts.compile.compiler_cache import (
    CacheSettings,
    CacheSummary,
    CompilerCache,
    SecondsTable,
    directory_size,
    finished_events,
    headers_digest,
    read_settings,
)
from scripts.compile.shared_cache import Shared, read_counts
from scripts.compile.standalone.launcher import CHECK, COMPILER_CACHE, cache_failed, call_cached, read_switch
from scripts.core.console import Console


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SCCACHE_WEBDAV_ENDPOINT": "http://h/"}, "WebDAV"),
        ({"SCCACHE_BUCKET": "b", "AWS_SECRET_ACCESS_KEY": "s"}, "S3"),
        ({"SCCACHE_GHA_ENABLED": "true", "ACTIONS_RUNTIME_TOKEN": "t"}, "GitHub Actions"),
        ({"SCCACHE_REDIS_ENDPOINT": "tcp://h"}, "Redis"),
        ({"SCCACHE_CONF": "/home/me/sccache.conf"}, "SCCACHE_CONF"),
    ],
)
def test_a_backend_is_what_sccache_would_read_and_all_its_variables_go_along(
    variables: dict[str, str], name: str
) -> None:
    shared = Shared.read({**variables, "PATH": "/bin", "SCCACHE_LOG": "trace", "SCCACHE_SERVER_PORT": "4226"})
    assert shared
    assert (shared.name, dict(shared.variables)) == (name, variables)


def test_settings_of_a_local_cache_name_no_backend() -> None:
    environment = {"SCCACHE_CACHE_SIZE": "2G", "SCCACHE_DIR": "/x", "SCCACHE_WEBDAV_ENDPOINT": ""}
    assert read_settings(environment, enabled=True) == CacheSettings(enabled=True, size="2G", shared=None)
    assert read_settings({"SCCACHE_BUCKET": "b"}, enabled=False).shared is None
    assert read_settings({"CCACHE_MAXSIZE": "1G", "SCCACHE_CACHE_SIZE": "2G"}, enabled=True).size == "1G"


def test_secrets_are_hidden_in_what_is_said_and_shown() -> None:
    shared = Shared.read({"SCCACHE_REDIS_PASSWORD": "hunter22", "SCCACHE_REDIS_ENDPOINT": "redis://me:other@h:1/"})
    assert shared
    assert shared.hide("bad hunter22 at redis://me:other@h:1/ (http://host/a@b)") == (
        "bad *** at redis://***@h:1/ (http://host/a@b)"
    )
    assert "hunter22" not in repr(shared)


_STATS = ("stats", "cache_hits", "cache_misses", "counts", "cache_errors", "cache_writes")


@settings(max_examples=50)
@given(st.text() | st.dictionaries(st.sampled_from(_STATS), st.none() | st.integers() | st.text()).map(json.dumps))
def test_counts_are_zero_for_whatever_sccache_does_not_say(text: str) -> None:
    assert read_counts(text) == {
        "hits": 0,
        "misses": 0,
        "stored": 0,
        "errors": 0,
        "distributed": 0,
        "not_distributed": 0,
    }


def test_counts_are_added_over_languages() -> None:
    stats = {
        "cache_hits": {"counts": {"CUDA": 2, "PTX": 1}},
        "cache_misses": {"counts": {"CUBIN": 4}},
        "cache_errors": {"counts": {"CUDA": 1}},
        "cache_write_errors": 2,
        "cache_writes": 5,
    }
    assert read_counts(json.dumps({"stats": stats})) == {
        "hits": 3,
        "misses": 4,
        "stored": 5,
        "errors": 3,
        "distributed": 0,
        "not_distributed": 0,
    }


@given(st.binary())
def test_any_event_file_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("events") / "events"
    path.write_bytes(data + b'\n{"event": "end", "code": 0, "unit": "a"}\n{"event": "end", "co')
    assert list(finished_events(path, 0))[-1:] == [{"event": "end", "code": 0, "unit": "a"}]
    assert not list(finished_events(path.with_name("absent"), 0))


def test_a_hit_saves_what_the_unit_took_when_it_was_compiled_for_as_many_archs(tmp_path: Path) -> None:
    table = SecondsTable(tmp_path / "seconds.json")
    table.learn({"unit": "a.o", "archs": 2, "seconds": 30.5})
    table.write()
    again = SecondsTable(tmp_path / "seconds.json")
    assert again.saved({"unit": "a.o", "archs": 2, "seconds": 0.5}) == 30
    assert again.saved({"unit": "a.o", "archs": 1, "seconds": 0.5}) == 0
    (tmp_path / "seconds.json").write_text('["not a table"]')
    assert SecondsTable(tmp_path / "seconds.json").seconds == {}


def test_the_key_of_headers_is_their_names_and_contents_wherever_they_are(tmp_path: Path) -> None:
    def tree(name: str, header: str, text: str, unit: str = "") -> str:
        (tmp_path / name / "csrc").mkdir(parents=True)
        (tmp_path / name / "csrc" / header).write_text(text)
        (tmp_path / name / "csrc" / "a.cu").write_text(unit)
        return headers_digest(tmp_path / name)

    assert tree("one", "a.cuh", "x") == tree("two", "a.cuh", "x", unit="changed")
    assert len({tree("three", "a.cuh", "y"), tree("four", "b.cuh", "x"), headers_digest(tmp_path / "one")}) == 3


def test_the_summary_says_hits_seconds_and_trouble() -> None:
    summary = CacheSummary("local and shared (Redis)", hits=3, misses=0, failed=1, saved_seconds=65, size=2_000_000)
    summary.shared = {"hits": 4, "misses": 1, "errors": 2, "distributed": 0, "not_distributed": 0}
    assert summary.line() == (
        "local and shared (Redis): 3 of 4 units (75 %); 1 min 05 s of compiling saved; shared: 4 of 5 steps, 2 errors; "
        "1 compiled plainly after trouble with the cache; 2.0 MB on disk"
    )
    assert CacheSummary(**summary.data()) == summary  # type: ignore[arg-type]
    assert CacheSummary("off").line() == "off: 0 of 0 units (0 %); 0 B on disk"


def test_without_the_cache_the_switch_says_nothing_and_is_removed(tmp_path: Path) -> None:
    cache = CompilerCache(
        tmp_path / "objects", CacheSettings(enabled=False), tmp_path / "switch", Console(quiet=True), key="k"
    )
    cache.open()
    assert json.loads((tmp_path / "switch").read_text())["command"] == []
    cache.tick()
    cache.close()
    assert not (tmp_path / "switch").exists()
    assert not (tmp_path / "objects").exists()


def test_a_ccache_that_does_not_run_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler_cache, "PROGRAMS", tmp_path)
    cache = CompilerCache(tmp_path / "objects", CacheSettings(), tmp_path / "switch", Console(), key="k")
    cache.open()
    cache.close()
    assert not cache.local
    assert "compiling goes on without it" in capsys.readouterr().err


def test_sizes_are_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    assert directory_size(tmp_path) == 3


@pytest.mark.parametrize(
    ("code", "output", "failed"),
    [
        (1, b"x.cu(3): error: no\n", False),
        (2, b"sccache: error: Timed out waiting for server startup\n", True),
        (1, b"ccache: error: Failed to create directory\n", True),
        (139, b"", True),
        (137, b"", False),
        (1, b"see sccache: no\n", False),
    ],
)
def test_a_failure_of_the_cache_is_told_from_the_compilers(code: int, output: bytes, *, failed: bool) -> None:
    assert cache_failed(code, output) == failed


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path / "switch"))
    return tmp_path / "switch"


def put(switch: Path, *command: str, **more: object) -> None:
    said = {"command": command, "environment": {"X": "1", CHECK: "string:all"}, "folder": str(switch.parent)}
    switch.write_text(json.dumps({**said, **more}))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": []}', '"x"'])
def test_a_switch_that_says_nothing_means_plain_compilation(switch: Path, text: str) -> None:
    assert read_switch() == {}
    switch.write_text(text)
    assert read_switch() == {}
    known: dict[str, object] = {}
    assert call_cached(["true"], known)[0] == 0
    assert known == {"cache": "off"}


def test_the_launcher_tells_hits_from_misses_by_ccaches_log(switch: Path) -> None:
    known: dict[str, object] = {}
    for words, outcome in (("direct_cache_hit", "hit"), ("cache_miss", "miss")):
        put(switch, "sh", "-c", f'echo {words} > "$CCACHE_STATSLOG"; exec "$@"', "ccache")
        assert call_cached(["sh", "-c", "echo $X"], known)[:2] == (0, b"1\n")
        assert known["cache"] == outcome
    assert not list(switch.parent.glob("*.stats"))


@pytest.mark.parametrize(
    ("outside", "reach", "key"),
    [("o", "r", "string:o-r"), ("o", "", "string:all"), ("", "r", "string:all"), (None, "r", "string:all")],
)
def test_a_unit_of_which_is_known_what_it_reads_has_a_key_of_its_own(
    switch: Path, outside: str | None, reach: str, key: str
) -> None:
    put(switch, "sh", "-c", 'exec "$@"', "ccache", **({} if outside is None else {"outside": outside}))
    assert call_cached(["sh", "-c", f"echo ${CHECK}"], {}, reach)[1].decode().strip() == key


def test_what_the_cache_breaks_is_compiled_plainly(switch: Path) -> None:
    known: dict[str, object] = {}
    for command in (
        ["/absent/ccache"],
        ["sh", "-c", "echo 'ccache: error: disk'; exit 1"],
        ["sh", "-c", "kill -11 $$"],
    ):
        put(switch, *command)
        assert call_cached(["sh", "-c", "echo plain"], known)[:2] == (0, b"plain\n")
        assert known["cache"] == "failed"


def test_a_call_that_ends_because_the_cache_was_given_up_is_repeated_plainly(switch: Path) -> None:
    known: dict[str, object] = {}
    put(switch, "sh", "-c", f"echo '{{}}' > {switch}; kill -9 $$")
    assert call_cached(["sh", "-c", "echo plain"], known)[1] == b"plain\n"
    assert known["cache"] == "failed"


def test_an_error_of_the_compiler_is_not_repeated(switch: Path, tmp_path: Path) -> None:
    put(switch, "sh", "-c", 'exec "$@"', "ccache")
    known: dict[str, object] = {}
    assert call_cached(["sh", "-c", f"echo x >> {tmp_path}/calls; exit 3"], known)[0] == 3
    assert (tmp_path / "calls").read_text() == "x\n"
