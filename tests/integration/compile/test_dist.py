"""Distributed compilation: a real sccache-dist scheduler and builder on loopback, and what happens when they fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.commands.wheel import main
from scripts.compile.compiler_cache import PROGRAMS, read_settings
from scripts.compile.shared_cache import DIST_TOKEN
from scripts.core.console import Console
from scripts.core.errors import UsageError
from tests.cache_servers import free_port
from tests.miniature import Miniature, make_miniature

TOKEN = "t0ken-of-the-tests"
AUTH = f'type = "token"\ntoken = "{TOKEN}"\n'


def lacking() -> str:
    """Return what this machine lacks to run a builder, "" when nothing."""
    if os.geteuid() != 0:
        return "a builder needs root"
    return "" if shutil.which("bwrap") else "bubblewrap is not installed"


builders = pytest.mark.skipif(bool(lacking()), reason=lacking())


@contextmanager
def scheduler(folder: Path, *, builder: bool = True) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Run a scheduler, and a builder unless told; yield the URL and the processes."""
    folder.mkdir()
    ports = [free_port(), free_port()]
    (folder / "scheduler.conf").write_text(
        f'public_addr = "127.0.0.1:{ports[0]}"\n[client_auth]\n{AUTH}[server_auth]\n{AUTH}'
    )
    (folder / "builder.conf").write_text(
        f'public_addr = "127.0.0.1:{ports[1]}"\nscheduler_url = "http://127.0.0.1:{ports[0]}"\n'
        f'cache_dir = "{folder}/toolchains"\n[builder]\ntype = "overlay"\nbuild_dir = "{folder}/build"\n'
        f'bwrap_path = "{shutil.which("bwrap")}"\n[scheduler_auth]\n{AUTH}'
    )
    environment = {**os.environ, "SCCACHE_NO_DAEMON": "1", "SCCACHE_LOG": "warn"}
    processes = []
    try:
        for kind in ["scheduler", *(["server"] if builder else [])]:
            config = folder / {"scheduler": "scheduler.conf", "server": "builder.conf"}[kind]
            with (folder / f"{kind}.log").open("wb") as log:
                command = [str(PROGRAMS / "sccache-dist"), kind, "--config", str(config)]
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1.0)
            assert processes[-1].poll() is None, (folder / f"{kind}.log").read_text()
        yield f"http://127.0.0.1:{ports[0]}", processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


def build(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, token: str = TOKEN
) -> dict[str, object]:
    """Run the main job with --dist; return what the report says of the cache."""
    for name, value in miniature.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CXX", str(shutil.which("g++")))  # a script in its place cannot be packed for builders
    monkeypatch.setenv(DIST_TOKEN, token)
    wheelhouse = tmp_path / "wheelhouse"
    words = ["--recipe", str(miniature.recipe), "--wheelhouse", str(wheelhouse), "--dist", url]
    assert main(words, Console()) == 0
    [report] = wheelhouse.glob("*.report.json")
    assert TOKEN not in report.read_text()
    cache: dict[str, object] = json.loads(report.read_text())["compiler_cache"]
    return cache


@builders
@pytest.mark.large
def test_units_are_compiled_on_a_builder(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with scheduler(tmp_path / "dist") as (url, _):
        cache = build(miniature, tmp_path, monkeypatch, url)
    shared = cache["shared"]
    assert isinstance(shared, dict)
    assert shared["distributed"] >= 3, shared
    assert shared["not_distributed"] == 0
    assert cache["trouble"] == []
    said = "".join(capsys.readouterr())
    assert "steps on other machines" in " ".join(said.split())
    assert TOKEN not in said


@builders
@pytest.mark.large
def test_a_killed_builder_costs_no_unit(miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scheduler(tmp_path / "dist") as (url, processes):
        processes[1].kill()  # the scheduler still offers it
        cache = build(miniature, tmp_path, monkeypatch, url)
    shared = cache["shared"]
    assert isinstance(shared, dict)
    assert shared["distributed"] == 0


large = pytest.mark.large


@pytest.mark.parametrize(
    "kind", ["nobody", pytest.param("no builder", marks=large), pytest.param("wrong token", marks=large)]
)
def test_a_scheduler_that_cannot_be_used_is_said_and_the_build_goes_on(
    kind: str,
    miniature: Miniature,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("scripts.compile.shared_cache.START_LIMIT", 1.5)
    if kind == "nobody":
        build(miniature, tmp_path, monkeypatch, f"http://127.0.0.1:{free_port()}")
    else:
        with scheduler(tmp_path / "dist", builder=False) as (url, _):
            build(miniature, tmp_path, monkeypatch, url, token=TOKEN if kind == "no builder" else "another")
    said = " ".join(capsys.readouterr().err.split())
    assert "does not work" in said
    assert "compiling goes on without it" in said


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/", "http://user:password@host:10600"])
def test_urls_that_are_no_scheduler_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a scheduler") as caught:
        read_settings({}, enabled=True, scheduler=url)
    assert "password" not in caught.value.what


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be combined"):
        read_settings({"SCCACHE_CONF": "/x"}, enabled=True, scheduler="http://host:10600")
    with pytest.raises(UsageError, match="needs the compiler cache"):
        read_settings({}, enabled=False, scheduler="http://host:10600")
