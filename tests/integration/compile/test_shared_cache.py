"""The compiler cache with real programs: ccache, sccache, g++, nginx and Redis that fail in the ways they do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from scripts.compile import shared_cache
from scripts.compile.compiler_cache import CompilerCache, compiler_cache, headers_digest, read_settings
from scripts.compile.device_steps import STANDALONE
from scripts.compile.standalone.launcher import EVENTS
from scripts.core.cache import Cache, default_cache_dir
from scripts.core.console import Console
from tests.accesses import make_access
from tests.cache_servers import PASSWORD, Server, free_port, needs, serve
from tests.support import wait_for

KINDS = [pytest.param(kind, marks=needs(kind)) for kind in ("webdav", "redis")]


class Builder:
    """One build: a folder with sources, its own cache and daemon."""

    def __init__(self, folder: Path, variables: dict[str, str], *, sources: Path | None = None) -> None:
        self.folder, self.variables = folder, variables
        folder.mkdir(parents=True, exist_ok=True)
        self.cache = Cache.open(folder / "cache")
        self.sources = sources or folder
        self.events = folder / "events.jsonl"
        self.opened: CompilerCache

    @contextmanager
    def building(self) -> Iterator[Builder]:
        """Open the compiler cache around the block."""
        environment = {**os.environ, **self.variables}
        settings = read_settings(self.variables, enabled=True)
        with compiler_cache(
            settings,
            make_access(self.cache, Console()),
            tree=self.folder,
            key=headers_digest(self.sources),
            enter=(),
            environment=environment,
        ) as self.opened:
            yield self

    def start(self, name: str, *, compiler: str = "g++") -> subprocess.Popen[bytes]:
        """Start the launcher on one source file."""
        command = [*compiler.split(), "-MD", "-MF", f"{name}.d", "-c", str(self.sources / name), "-o", f"{name}.o"]
        environment = {**os.environ, **self.opened.environment, EVENTS: str(self.events)}
        launcher = [sys.executable, "-S", "-E", str(STANDALONE / "launcher.py")]
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen([*launcher, *command], cwd=self.folder, env=environment, stdout=output)

    def finish(self, call: subprocess.Popen[bytes], limit: float = 90) -> str:
        """Wait for a call, looking after the cache meanwhile; return what the cache did for it."""
        deadline = time.monotonic() + limit
        while call.poll() is None:
            assert time.monotonic() < deadline, "the call hangs"
            self.opened.tick()
            time.sleep(0.02)
        assert call.returncode == 0, (self.folder / "output").read_text()
        return str([json.loads(line) for line in self.events.read_text().splitlines()][-1]["cache"])

    def compile(self, name: str, *, compiler: str = "g++") -> str:
        """Compile one source file; return what the cache did."""
        return self.finish(self.start(name, compiler=compiler))

    def forget_locally(self) -> None:
        """Remove the objects of the local level."""
        subprocess.run(["rm", "-rf", str(self.cache.root / "compiler-cache" / "objects")], check=True)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.cpp").write_text(f"int {name}_number() {{ return 1; }}\n")
    return folder


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serve(request.param, tmp_path / "server") as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after 3 s instead of 20."""
    monkeypatch.setattr(shared_cache, "STALL_LIMIT", 3.0)
    monkeypatch.setattr(shared_cache, "INTERVAL", 0.2)


def test_the_same_unit_is_compiled_once_and_its_seconds_are_counted_as_saved(tmp_path: Path, sources: Path) -> None:
    with Builder(tmp_path / "one", {}, sources=sources).building() as builder:
        assert builder.compile("a.cpp") == "miss"
        learned = builder.opened.summary(builder.events, 0)
        assert (learned.hits, learned.misses, learned.level) == (0, 1, "local")
        begin = builder.events.stat().st_size
        assert builder.compile("a.cpp") == "hit"
        summary = builder.opened.summary(builder.events, begin)
    assert (summary.hits, summary.misses, summary.failed) == (1, 0, 0)
    assert summary.size > 0
    assert "1 of 1 units (100 %)" in summary.line()
    assert not (tmp_path / "one" / "compiler-cache.json").exists()


def test_a_second_builder_with_its_own_daemon_and_cache_takes_all_from_the_shared_one(
    server: Server, tmp_path: Path, sources: Path
) -> None:
    with Builder(tmp_path / "one", server.variables, sources=sources).building() as first:
        assert first.opened.shared
        assert first.compile("a.cpp") == "miss"
        counts = first.opened.summary(first.events, 0).shared
        assert counts == {"hits": 0, "misses": 1, "stored": 1, "errors": 0, "distributed": 0, "not_distributed": 0}
    with Builder(tmp_path / "two", server.variables, sources=sources).building() as second:
        assert second.compile("a.cpp") == "miss"
        summary = second.opened.summary(second.events, 0)
    assert summary.shared == {"hits": 1, "misses": 0, "stored": 0, "errors": 0, "distributed": 0, "not_distributed": 0}
    assert "shared: 1 of 1 steps" in summary.line()


def test_a_wrong_password_is_said_without_the_password_and_the_build_goes_on(
    server: Server, tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_cache, "START_LIMIT", 2.0)
    wrong = {name: value.replace(PASSWORD, "not-the-password") for name, value in server.variables.items()}
    with Builder(tmp_path / "one", wrong, sources=sources).building() as builder:
        assert builder.compile("a.cpp") == "miss"
        assert builder.compile("a.cpp") == "hit"
        summary = builder.opened.summary(builder.events, 0)
    said = capsys.readouterr().err
    assert "does not work" in said
    assert "not-the-password" not in said
    assert len(summary.trouble) == 1


@pytest.mark.parametrize("kind", ["webdav", "redis"])
def test_a_closed_port_is_said_and_the_build_goes_on(
    kind: str, tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_cache, "START_LIMIT", 2.0)
    name = {"webdav": "SCCACHE_WEBDAV_ENDPOINT", "redis": "SCCACHE_REDIS_ENDPOINT"}[kind]
    variables = {name: f"{'tcp' if kind == 'redis' else 'http'}://127.0.0.1:{free_port()}"}
    with Builder(tmp_path / "one", variables, sources=sources).building() as builder:
        assert builder.opened.shared is None
        assert builder.compile("a.cpp") == "miss"
    assert "compiling goes on without it" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_freezes_half_way_costs_seconds(
    how: signal.Signals, server: Server, tmp_path: Path, sources: Path, impatient: None
) -> None:
    with Builder(tmp_path / "one", server.variables, sources=sources).building() as builder:
        assert builder.compile("a.cpp") == "miss"
        for process in [*psutil.Process(server.process.pid).children(), psutil.Process(server.process.pid)]:
            process.send_signal(how)
        for name in ("b.cpp", "c.cpp"):  # sccache's own limit for a request is minutes
            assert builder.finish(builder.start(name), limit=60) in {"miss", "failed"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@needs("redis")
def test_a_daemon_that_dies_or_freezes_half_way_loses_no_unit(
    how: signal.Signals, tmp_path: Path, sources: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = tmp_path / "slow-g++"
    compiling = tmp_path / "compiling"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *" -c "*) touch {compiling}; sleep 2;; esac\nexec g++ "$@"\n')
    slow.chmod(0o755)
    with (
        serve("redis", tmp_path / "server") as server,
        Builder(tmp_path / "one", server.variables, sources=sources).building() as builder,
    ):
        assert builder.opened.shared
        call = builder.start("a.cpp", compiler=str(slow))
        wait_for(compiling.exists)
        os.killpg(builder.opened.shared._daemon.pid, how)
        builder.finish(call)
        assert builder.opened.trouble
        assert builder.compile("b.cpp") == "miss"
        assert (builder.folder / "a.cpp.o").stat().st_size
    assert "is given up" in capsys.readouterr().err


def test_a_compile_error_is_the_compilers_and_its_code(tmp_path: Path, sources: Path) -> None:
    (sources / "bad.cpp").write_text("int bad( {\n")
    with Builder(tmp_path / "one", {}, sources=sources).building() as builder:
        call = builder.start("bad.cpp")
        assert call.wait() == 1
    assert "bad.cpp:1" in (tmp_path / "one" / "output").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_under_the_cache_breaks_nothing(tmp_path: Path, sources: Path) -> None:
    builder = Builder(tmp_path / "one", {}, sources=sources)
    place = builder.cache.root / "compiler-cache"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    try:
        with builder.building():
            (place / "ballast").write_bytes(b"x" * (100 << 10))
            big = "".join(f'const char *s{n} = "{os.urandom(500).hex()}";\n' for n in range(300))
            (sources / "big.cpp").write_text(big)
            assert builder.compile("big.cpp") in {"miss", "failed"}
            assert builder.compile("big.cpp") in {"miss", "failed"}
        fill(place / "rest")
        with builder.building():
            assert not builder.opened.local
            assert builder.compile("a.cpp") == "off"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path: Path) -> None:
    """Write until the filesystem is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_no_password_is_on_a_command_line_in_a_log_or_in_the_clients_environment(
    server: Server, tmp_path: Path, sources: Path
) -> None:
    with Builder(tmp_path / "one", server.variables, sources=sources).building() as builder:
        builder.compile("a.cpp")
        lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        assert not [line for line in lines if PASSWORD in line]
        assert PASSWORD not in builder.opened.switch.read_text()
        assert builder.opened.shared
        for path in builder.opened.shared.folder.rglob("*"):
            assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()
        assert builder.opened.shared.folder.stat().st_mode & 0o077 == 0
        assert PASSWORD not in repr(builder.opened.settings)


KERNEL = """
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#include "only120.h"
#elif defined(__CUDA_ARCH__)
#include "only90.h"
#else
#include "host.h"
#endif
__global__ void f(int *p) {
#ifdef __CUDA_ARCH__
  *p = VALUE;
#endif
}
"""


@pytest.fixture
def nvcc() -> str:
    """Return a real nvcc's command for two archs."""
    found = sorted(default_cache_dir().glob("toolchains/*/cuda/bin/nvcc"))
    if not found:
        pytest.skip("no toolchain in the cache: nox -s wheel -- --recipe quickstart makes one")
    return f"{found[0]} -gencode arch=compute_90,code=sm_90 -gencode arch=compute_120,code=sm_120"


@pytest.fixture
def kernel(sources: Path) -> Path:
    (sources / "k.cu").write_text(KERNEL)
    (sources / "only90.h").write_text("#define VALUE 90\n")
    (sources / "only120.h").write_text("#define VALUE 120\n")
    (sources / "host.h").write_text("int host() { return 1; }\n")
    return sources


@pytest.mark.large
@pytest.mark.parametrize("header", ["only90.h", "only120.h", "host.h"])
def test_nvcc_is_called_again_for_a_header_of_any_arch_or_the_host(
    header: str, nvcc: str, kernel: Path, tmp_path: Path
) -> None:
    builder = Builder(tmp_path / "one", {}, sources=kernel)
    with builder.building():
        assert [builder.compile("k.cu", compiler=nvcc) for _ in range(2)] == ["miss", "hit"]
        before = (builder.folder / "k.cu.o").read_bytes()
    text = (kernel / header).read_text()
    (kernel / header).write_text(text.replace("0\n", "5\n").replace("return 1", "return 2"))
    with builder.building():
        assert builder.compile("k.cu", compiler=nvcc) == "miss"
        assert (builder.folder / "k.cu.o").read_bytes() != before
    (kernel / header).write_text(text)
    with builder.building():
        assert builder.compile("k.cu", compiler=nvcc) == "hit"
        assert (builder.folder / "k.cu.o").read_bytes() == before


@pytest.mark.large
def test_nvccs_steps_come_from_the_shared_cache(server: Server, nvcc: str, kernel: Path, tmp_path: Path) -> None:
    with Builder(tmp_path / "one", server.variables, sources=kernel).building() as first:
        first.compile("k.cu", compiler=nvcc)
        stored = first.opened.summary(first.events, 0).shared["stored"]
    with Builder(tmp_path / "two", server.variables, sources=kernel).building() as second:
        second.compile("k.cu", compiler=nvcc)
        counts = second.opened.summary(second.events, 0).shared
    assert counts == {"hits": stored, "misses": 0, "stored": 0, "errors": 0, "distributed": 0, "not_distributed": 0}
    assert stored >= 6
    assert (tmp_path / "one" / "k.cu.o").read_bytes() == (tmp_path / "two" / "k.cu.o").read_bytes()
