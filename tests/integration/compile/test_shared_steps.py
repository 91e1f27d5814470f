"""Machines that share device steps: real ccache and sccache, real servers, a toolkit whose runs are counted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scripts.compile import backends, exchange, shared_cache, sharing
from scripts.compile.backends import BackendError, RefusedError, open_backend
from scripts.compile.compiler_cache import CacheSummary, CompilerCache, compiler_cache, read_settings
from scripts.compile.device_steps import DeviceSteps, put_programs
from scripts.compile.standalone.launcher import EVENTS
from scripts.compile.standalone.step_store import pack, unpack
from scripts.core.cache import Cache
from scripts.core.console import Console
from tests.accesses import asked_indexes, make_access
from tests.cache_servers import PASSWORD, Server, free_port, needs, serve
from tests.integration.index_servers import started
from tests.integration.upload_servers import server_tools
from tests.toolkit import Toolkit, make_toolkit

KINDS = [
    pytest.param("webdav", marks=needs("webdav")),
    pytest.param("redis", marks=(needs("redis"), pytest.mark.large)),  # the same as for WebDAV, but for the client
]


@pytest.fixture
def toolkit(tmp_path: Path) -> Toolkit:
    (tmp_path / "x.cu").write_text("unit x\nkernel for NATIVE\n")
    (tmp_path / "y.cpp").write_text("int number() { return 1; }\n")
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "header.h").touch()
    for path in (tmp_path / "x.cu", tmp_path / "y.cpp", tmp_path / "cuda" / "header.h"):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # ccache keeps no list of files as young as the call
    return make_toolkit(tmp_path / "cuda")


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serve(request.param, tmp_path / "server") as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a second where 10 and 20 are waited."""
    monkeypatch.setattr(shared_cache, "START_LIMIT", 1.5)
    monkeypatch.setattr(shared_cache, "STALL_LIMIT", 1.0)
    monkeypatch.setattr(shared_cache, "INTERVAL", 0.2)
    monkeypatch.setattr(exchange, "STALL_LIMIT", 1.0)
    monkeypatch.setattr(backends, "SILENCE_LIMIT", 0.5)


class Machine:
    """A machine with its own caches and build tree, which compiles the toolkit's unit."""

    def __init__(self, folder: Path, toolkit: Toolkit, variables: dict[str, str]) -> None:
        self.folder, self.toolkit, self.variables = folder, toolkit, variables
        self.tree = folder / "tree"
        self.tree.mkdir(parents=True)
        self.cache = Cache.open(folder / "cache")
        self.events = self.tree / "events.jsonl"
        put_programs(self.tree, Path(sys.executable))
        self.steps = DeviceSteps(self.tree / "steps.py", self.cache.place("compiler-cache", "steps"), "toolkit 1")
        self.target = folder / "x.o"
        self.opened: CompilerCache

    @contextmanager
    def building(self) -> Iterator[Machine]:
        with compiler_cache(
            read_settings(self.variables, enabled=True),
            make_access(self.cache, Console(), indexes=asked_indexes()),
            tree=self.tree,
            key="headers 1",
            enter=(),
            environment=dict(os.environ),
            steps=self.steps,
        ) as self.opened:
            yield self

    def start(self, archs: list[str]) -> subprocess.Popen[bytes]:
        source = self.toolkit.folder.parent / "x.cu"
        return self.launch(self.toolkit.command(source, self.target, archs))

    def launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self.opened.environment, EVENTS: str(self.events), "TMPDIR": str(self.tree)}
        launcher = [sys.executable, "-S", "-E", str(self.tree / "launcher.py")]
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen([*launcher, *command], env=environment, stdout=output, stderr=output)

    def compile(self, *archs: str, limit: float = 60) -> list[str]:
        """Compile the unit for archs; return the device steps that ran."""
        self.toolkit.ran()
        self.finish(self.start(list(archs)), limit)
        return sorted(line for line in self.toolkit.ran() if line.startswith(("cicc", "ptxas", "whole")))

    def finish(self, call: subprocess.Popen[bytes], limit: float) -> None:
        """Wait for a call, looking after the cache meanwhile."""
        deadline = time.monotonic() + limit
        while call.poll() is None:
            assert time.monotonic() < deadline, "the call hangs"
            self.opened.tick()
            time.sleep(0.02)
        assert call.returncode == 0, (self.folder / "output").read_text()

    def made(self) -> str:
        """Return the object, without the folder that its steps ran in."""
        return re.sub(r"[^\s\"]+/steps-\w+", "FOLDER", self.target.read_text())

    def summary(self) -> CacheSummary:
        return self.opened.summary(self.events, 0)


def entries(server: Server) -> list[Path]:
    return [path for path in (server.folder / "files" / "k" / "wheelsmith" / "steps").glob("??/*") if path.is_file()]


def test_a_machine_that_adds_an_arch_runs_the_steps_of_that_arch_only(
    server: Server, toolkit: Toolkit, tmp_path: Path
) -> None:
    with Machine(tmp_path / "one", toolkit, server.variables).building() as one:
        assert one.compile("90") == ["cicc compute_90", "ptxas sm_90"]
        summary = one.summary()
        assert (summary.steps["hits"], summary.steps["misses"], summary.steps["whole"]) == (0, 2, 0)
        assert summary.exchanged == {"units": 0, "step_hits": 0, "steps_sent": 2, "objects_sent": 2, "errors": 0}
    with Machine(tmp_path / "two", toolkit, server.variables).building() as two:
        assert two.compile("90", "120") == ["cicc compute_120", "ptxas sm_120"]
        summary = two.summary()
        assert summary.exchanged["step_hits"] == summary.steps["hits"] == 2
        assert "device steps: 2 of 4 taken over, 2 of them from the shared cache" in summary.line()
        assert two.compile("120") == []
        assert not summary.trouble
    with Machine(tmp_path / "three", toolkit, server.variables).building() as three:
        assert three.compile("120", "90") == []
        assert three.summary().exchanged["step_hits"] == 4
    assert not (tmp_path / "three" / "tree" / "shared-steps").exists()


def test_a_machine_takes_whole_objects_that_another_made_under_the_same_paths(
    server: Server, toolkit: Toolkit, tmp_path: Path
) -> None:
    cpp = ["g++", "-MD", "-MF", str(tmp_path / "y.d"), "-c", str(tmp_path / "y.cpp"), "-o", str(tmp_path / "y.o")]
    made = []
    for name, ran in (("one", ["cicc compute_90", "ptxas sm_90"]), ("two", [])):
        with Machine(tmp_path / name, toolkit, server.variables).building() as machine:
            machine.target = tmp_path / "same.o"
            assert machine.compile("90") == ran
            machine.finish(machine.launch(cpp), 60)
            made.append((machine.made(), (tmp_path / "y.o").read_bytes()))
            summary = machine.summary()
            (tmp_path / "same.o").unlink()
            (tmp_path / "y.o").unlink()
    assert made[0] == made[1]
    assert (summary.hits, summary.misses, summary.exchanged["units"]) == (2, 0, 2)
    assert "local and shared" in summary.line()
    assert "2 of them from the shared cache" in summary.line()


@pytest.mark.parametrize(
    ("server", "how"),
    [
        pytest.param("webdav", signal.SIGSTOP, marks=needs("webdav")),
        pytest.param("redis", signal.SIGKILL, marks=needs("redis")),
        pytest.param("webdav", signal.SIGKILL, marks=(needs("webdav"), pytest.mark.large)),
        pytest.param("redis", signal.SIGSTOP, marks=(needs("redis"), pytest.mark.large)),
    ],
    indirect=["server"],
)
def test_a_server_that_dies_or_freezes_half_way_costs_seconds_and_one_warning(
    how: signal.Signals, server: Server, toolkit: Toolkit, tmp_path: Path, impatient: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with Machine(tmp_path / "one", toolkit, server.variables).building() as one:
        one.compile("90")
        one.opened.drain()
        for process in [*psutil.Process(server.process.pid).children(), psutil.Process(server.process.pid)]:
            process.send_signal(how)
        begin = time.monotonic()
        assert one.compile("90", "100", "120") == sorted(f"{what}_{arch}" for arch in (100, 120) for what in
                                                         ("cicc compute", "ptxas sm"))  # fmt: skip
        assert time.monotonic() < begin + 20
        assert one.opened.sharing is None
        assert one.compile("90", "80") == ["cicc compute_80", "ptxas sm_80"]
        summary = one.summary()
    assert len([text for text in summary.trouble if "steps and objects are shared no longer" in text]) == 1
    assert summary.exchanged["errors"] > 0 or "has taken" in summary.trouble[0]
    assert capsys.readouterr().err.count("steps and objects are shared no longer") == 1


@needs("webdav")
def test_damaged_and_foreign_entries_are_made_again_and_mended_on_the_server(toolkit: Toolkit, tmp_path: Path) -> None:
    with serve("webdav", tmp_path / "server") as server:
        with Machine(tmp_path / "one", toolkit, server.variables).building() as one:
            one.compile("90")
            one.opened.drain()
        first, second = entries(server)
        right = {path: path.read_bytes() for path in (first, second)}
        first.write_bytes(right[first][:-3] + b"\0\0\0")
        second.write_bytes(pack("f" * 64, [[b"other"], [b"code"]], b"", 1.0))  # whole, and another key's
        with Machine(tmp_path / "two", toolkit, server.variables).building() as two:
            assert two.compile("90", "120") == ["cicc compute_120", "cicc compute_90", "ptxas sm_120", "ptxas sm_90"]
            exchanged = two.summary().exchanged
        assert (exchanged["step_hits"], exchanged["steps_sent"], exchanged["errors"]) == (0, 4, 2)
        for path in (first, second):
            assert (
                unpack(path.read_bytes(), path.parent.name + path.name)[2]
                == unpack(right[path], path.parent.name + path.name)[2]
            )


@pytest.mark.parametrize("server", [pytest.param("redis", marks=needs("redis"))], indirect=True)
def test_a_wrong_password_is_said_once_without_it(
    server: Server, toolkit: Toolkit, tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {name: value.replace(PASSWORD, "not-the-password") for name, value in server.variables.items()}
    with Machine(tmp_path / "one", toolkit, wrong).building() as one:
        assert one.compile("90") == ["cicc compute_90", "ptxas sm_90"]
        assert len(one.summary().trouble) == 1
        assert not one.opened.sharing
        access = make_access(one.cache, Console(), indexes=asked_indexes())
        steps, why = sharing.share(wrong, access, store=one.steps.store, tree=one.folder)
    assert steps is None
    assert why
    assert "not-the-password" not in why
    assert "not-the-password" not in capsys.readouterr().err


@pytest.mark.parametrize("server", KINDS[0:1], indirect=True)
def test_no_compiler_sees_a_password_and_no_file_has_it(server: Server, toolkit: Toolkit, tmp_path: Path) -> None:
    cicc = toolkit.folder / "nvvm" / "cicc"
    cicc.write_text(
        cicc.read_text().replace(
            "#!/bin/bash", f"#!/bin/bash\nenv >> {tmp_path}/seen; cat /proc/$PPID/cmdline >> {tmp_path}/seen"
        )
    )
    with Machine(tmp_path / "one", toolkit, server.variables).building() as one:
        one.compile("90")
        assert PASSWORD not in (tmp_path / "seen").read_text()
        assert PASSWORD not in one.opened.switch.read_text()
        assert "shared-steps" in one.opened.switch.read_text()
        assert (one.tree / "shared-steps").stat().st_mode & 0o077 == 0
        for path in (tmp_path / "one").rglob("*"):
            assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()


@pytest.mark.parametrize("server", KINDS[:1], indirect=True)
def test_units_of_cpp_and_what_is_not_taken_apart_go_to_sccache(
    server: Server, toolkit: Toolkit, tmp_path: Path
) -> None:
    for name, counts in (("one", (0, 1)), ("two", (1, 0))):
        with Machine(tmp_path / name, toolkit, server.variables).building() as machine:
            made = ["-MD", "-MF", str(machine.folder / "y.d"), "-c", str(tmp_path / "y.cpp")]
            machine.finish(machine.launch(["g++", *made, "-o", str(machine.folder / "y.o")]), 60)
            assert json.loads(machine.opened.switch.read_text())["environment"]["CCACHE_PREFIX"].endswith("steps.py")
            shared = machine.summary().shared
            assert (shared["hits"], shared["misses"]) == counts
        shutil.rmtree(server.folder / "files" / "k" / "wheelsmith")  # whole objects would come first


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    with started([str(server_tools() / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, tmp_path):
        subprocess.run(["curl", "-fsS", "-X", "PUT", f"http://127.0.0.1:{port}/cache"], check=True, capture_output=True)
        names = {"SCCACHE_BUCKET": "cache", "SCCACHE_REGION": "us-east-1", "SCCACHE_ENDPOINT": f"127.0.0.1:{port}"}
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": PASSWORD}
        yield {**names, **keys, "SCCACHE_S3_KEY_PREFIX": "team"}


@pytest.mark.large
def test_a_bucket_gives_steps_and_its_errors_are_said(
    bucket: dict[str, str], toolkit: Toolkit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Machine(tmp_path / "one", toolkit, bucket).building() as one:
        assert one.compile("90") == ["cicc compute_90", "ptxas sm_90"]
    with Machine(tmp_path / "two", toolkit, bucket).building() as two:
        assert two.compile("90", "120") == ["cicc compute_120", "ptxas sm_120"]
        assert two.summary().exchanged["step_hits"] == 2
        elsewhere = {**bucket, "SCCACHE_BUCKET": "nobody"}
        steps, why = sharing.share(
            elsewhere,
            make_access(two.cache, Console(), indexes=asked_indexes()),
            store=two.steps.store,
            tree=two.folder,
        )
    assert steps is None
    assert "NoSuchBucket" in why or "404" in why
    assert PASSWORD not in capsys.readouterr().err + why


@needs("redis")
def test_a_full_redis_is_read_and_a_wrong_password_is_an_error(tmp_path: Path) -> None:
    access = make_access(Cache.open(tmp_path / "cache"), Console(), indexes=asked_indexes())
    with serve("redis", tmp_path / "server") as server:
        backend = open_backend(server.variables, access)
        assert backend
        backend.put("ab/cd", b"entry")
        port = server.variables["SCCACHE_REDIS_ENDPOINT"].rpartition(":")[2]
        full = ["redis-cli", "-p", port, "config", "set", "maxmemory", "1"]
        subprocess.run(full, env={**os.environ, "REDISCLI_AUTH": PASSWORD}, check=True, capture_output=True)
        with pytest.raises(RefusedError):
            backend.put("ab/ef", b"entry")
        assert backend.get("ab/cd") == b"entry"
        assert backend.get("ab/ef") is None
        backend.close()
        wrong = open_backend({**server.variables, "SCCACHE_REDIS_PASSWORD": "not-the-password"}, access)
        assert wrong
        with pytest.raises(BackendError) as caught:
            wrong.get("ab/cd")
        assert "not-the-password" not in str(caught.value)
        wrong.close()
