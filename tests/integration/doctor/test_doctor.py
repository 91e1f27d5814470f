"""doctor against real things: small filesystems, closed ports, proxies that hang up, environments by uv."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts.commands.doctor import main
from scripts.core.console import Console
from scripts.core.errors import DoctorError, UsageError
from scripts.doctor.checks import network as network_checks
from scripts.doctor.checks import python as python_checks
from scripts.doctor.examine import read_skips, skipped
from scripts.doctor.registry import Row, Subject, Verdict, require, run_checks
from scripts.downloads.indexes import Indexes
from tests.subjects import answer, make_subject
from tests.support import write_recipe

PRODUCTION = "vllm-0.15.1-cu128"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    network_checks._asked.cache_clear()


# small filesystems
@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a tmpfs with options, for as long as the test runs."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def test_a_small_cache_disk_stops_before_the_download(mount: Callable[[str], Path]) -> None:
    row = answer("disk-full-ci-or-docker", make_subject(mount("size=20m")))
    assert row.verdict is Verdict.BLOCKED
    assert "20.9 MB free" in row.measured or "MB free" in row.measured
    assert "WHEELSMITH_CACHE" in row.fix


def test_a_small_disk_stops_before_git_sources_are_cloned(mount: Callable[[str], Path]) -> None:
    row = answer("disk-full-triton-clone", make_subject(mount("size=20m"), PRODUCTION))
    assert row.verdict is Verdict.BLOCKED
    assert "for 5 git sources" in row.measured


def test_small_temporary_and_wheel_disks_are_seen_each_on_its_own(mount: Callable[[str], Path], tmp_path: Path) -> None:
    small = mount("size=10m")
    subject = make_subject(tmp_path, environment={"TMPDIR": str(small)}, wheelhouse=small)
    assert answer("tmp-too-small-for-nvcc", subject).verdict is Verdict.BLOCKED
    assert answer("disk-full-wheelhouse", subject).verdict is Verdict.BLOCKED
    assert answer("inodes-used-up", subject).verdict is Verdict.OK


def test_a_filesystem_without_inodes_is_seen(mount: Callable[[str], Path]) -> None:
    row = answer("inodes-used-up", make_subject(mount("size=20m,nr_inodes=500")))
    assert row.verdict is Verdict.BLOCKED
    assert "inodes free" in row.measured


def test_noexec_is_seen(mount: Callable[[str], Path], tmp_path: Path) -> None:
    place = mount("size=10m,noexec")
    assert answer("noexec-tmp-blocks-jit", make_subject(place)).verdict is Verdict.BLOCKED
    row = answer("noexec-tmp-blocks-jit", make_subject(tmp_path, environment={"TMPDIR": str(place)}))
    assert (row.verdict, str(place) in row.measured) == (Verdict.WARNING, True)


def test_a_read_only_wheelhouse_is_seen(mount: Callable[[str], Path], tmp_path: Path) -> None:
    row = answer("wheelhouse-not-writable", make_subject(tmp_path, wheelhouse=mount("size=10m,ro") / "wheels"))
    assert row.verdict is Verdict.BLOCKED
    assert "Read-only file system" in row.measured


def test_a_small_shared_memory_is_seen(mount: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    (root / "dev/shm").symlink_to(mount("size=64m"))
    row = answer("dev-shm-too-small", make_subject(tmp_path, system=root))
    assert (row.verdict, "67.1 MB" in row.measured) == (Verdict.WARNING, True)


def test_pips_cache_on_another_filesystem_is_said_and_no_warning(mount: Callable[[str], Path], tmp_path: Path) -> None:
    subject = make_subject(tmp_path, environment={"PIP_CACHE_DIR": str(mount("size=10m"))})
    row = answer("flash-attn-cross-device-rename", subject)
    assert (row.verdict, "two filesystems" in row.measured) == (Verdict.OK, True)


# hosts
class Index(BaseHTTPRequestHandler):
    date = ""

    def do_HEAD(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", self.date or self.date_time_string())
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def served(date: str = "") -> Iterator[int]:
    handler = type("Dated", (Index,), {"date": date})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def hanging_up() -> Iterator[int]:
    """Listen, and close every connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def closed() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def with_index(folder: Path, port: int, scheme: str = "http") -> Subject:
    return make_subject(folder, indexes=Indexes(index_url=f"{scheme}://me:secret@127.0.0.1:{port}/simple"))


def test_an_index_that_answers_is_no_problem(tmp_path: Path) -> None:
    with served() as port:
        subject = with_index(tmp_path, port)
        for name in ("index-unreachable", "corporate-proxy-tls-interception", "proxy-broken", "clock-wrong"):
            row = answer(name, subject)
            assert row.verdict is Verdict.OK, row
            assert "secret" not in row.measured


def test_a_closed_port_is_named_without_the_password(tmp_path: Path, closed: int) -> None:
    subject = with_index(tmp_path, closed)
    row = answer("index-unreachable", subject)
    assert row.verdict is Verdict.BLOCKED
    assert f"http://127.0.0.1:{closed}/simple: ConnectError" in row.measured
    assert "secret" not in str(row)
    assert answer("clock-wrong", subject).verdict is Verdict.UNKNOWN


def test_a_proxy_that_hangs_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_up() as port:
        monkeypatch.setenv("http_proxy", f"http://user:word@127.0.0.1:{port}")
        row = answer("proxy-broken", make_subject(tmp_path, indexes=Indexes(index_url="http://index.invalid/simple")))
    assert row.verdict is Verdict.BLOCKED
    assert f"http://127.0.0.1:{port}" in row.measured
    assert "word" not in str(row)


@pytest.mark.parametrize(
    ("date", "text"), [("Mon, 23 Nov 2015 00:00:00 GMT", "ahead of"), ("Mon, 23 Nov 2099 00:00:00 GMT", "behind")]
)
def test_a_clock_that_is_years_off_is_seen(date: str, text: str, tmp_path: Path) -> None:
    with served(date) as port:
        row = answer("clock-wrong", with_index(tmp_path, port))
    assert (row.verdict, text in row.measured) == (Verdict.BLOCKED, True)


def test_a_certificate_of_an_unknown_authority_is_seen(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Index) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        row = answer("corporate-proxy-tls-interception", with_index(tmp_path, server.server_port, "https"))
        server.shutdown()
        thread.join()
    assert row.verdict is Verdict.BLOCKED, row
    assert "SSL_CERT_FILE" in row.fix


def test_an_sccache_server_that_does_not_answer_is_seen(tmp_path: Path) -> None:
    sccache = tmp_path / "bin/sccache"
    sccache.parent.mkdir()
    sccache.write_text("#!/bin/sh\necho 'sccache: error: timed out'; exit 2\n")
    sccache.chmod(0o755)
    with hanging_up() as port:
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin", "SCCACHE_SERVER_PORT": str(port)}
        row = answer("sccache-or-ccache-breaks-nvcc", make_subject(tmp_path, environment=environment))
    assert (row.verdict, "timed out" in row.measured) == (Verdict.WARNING, True)
    idle = make_subject(tmp_path, environment={"PATH": f"{tmp_path}/bin", "SCCACHE_SERVER_PORT": "1"})
    assert "is not running" in answer("sccache-or-ccache-breaks-nvcc", idle).measured


# environments
@pytest.fixture(scope="module")
def ngc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment like an NGC image's: setuptools 70.3, a torch linked to HPC-X and without the type."""
    folder = tmp_path_factory.mktemp("ngc")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, "setuptools==70.3.0", "packaging==23.2"], check=True
    )
    [site] = (folder / "venv/lib").glob("python*/site-packages")
    torch = site / "torch"
    (torch / "lib").mkdir(parents=True)
    (torch / "version.py").write_text("__version__ = '2.8.0a0+5228986c39.nv25.5'\ncuda: Optional[str] = '12.9'\n")
    header = torch / "include/c10/core/ScalarType.h"
    header.parent.mkdir(parents=True)
    header.write_text("Float8_e5m2, Float8_e4m3fn")
    mpi = folder / "libmpi.so"
    link = ["g++", "-shared", "-nostdlib", "-x", "c++", "/dev/null", "-x", "none"]
    subprocess.run([*link, "-Wl,-soname,libmpi.so.40", "-o", mpi], check=True)
    subprocess.run([*link, "-Wl,--no-as-needed", mpi, "-o", torch / "lib/libtorch_cuda.so"], check=True)
    return python


FIVE = {
    "pep639-license-parse": "setuptools 70.3.0 in ",
    "isolation-redownloads-other-torch": "the build would download torch 2.9.1 for CUDA 12.8, about 5 GB",
    "hpcx-libs-removed-from-ngc": "needs libmpi.so.40, and it is nowhere",
    "torch-lacks-float8-e8m0fnu": "do not name Float8_e8m0fnu",
}


@pytest.mark.parametrize("name", FIVE)
def test_the_failures_of_the_first_report_are_seen_in_the_environment_they_were_met_in(
    name: str, ngc: Path, tmp_path: Path
) -> None:
    row = answer(name, make_subject(tmp_path, PRODUCTION, python=ngc))
    assert row.verdict is Verdict.BLOCKED, row
    assert FIVE[name] in row.measured
    healthy = make_subject(tmp_path, PRODUCTION, python=Path(sys.executable))
    assert answer("hpcx-libs-removed-from-ngc", healthy).verdict is Verdict.OK


def test_an_environment_without_a_cuda_torch_is_seen(ngc: Path, tmp_path: Path) -> None:
    subject = make_subject(tmp_path, PRODUCTION, python=ngc)
    assert answer("unknown-runtime-environment", subject).verdict is Verdict.OK
    assert answer("libtorch-cuda-missing", subject).verdict is Verdict.OK
    version = next(ngc.parent.parent.glob("lib/python*/site-packages/torch/version.py"))
    text = version.read_text()
    try:
        version.write_text("__version__ = '2.9.1+cpu'\ncuda: Optional[str] = None\n")
        python_checks.read_environment.cache_clear()
        row = answer("unknown-runtime-environment", subject)
        assert (row.verdict, "a build without CUDA" in row.measured) == (Verdict.BLOCKED, True)
    finally:
        version.write_text(text)
        python_checks.read_environment.cache_clear()
    missing = replace(subject, python=tmp_path / "none")
    assert "does not run" in answer("unknown-runtime-environment", missing).measured


def test_torchvision_of_another_cuda_and_a_missing_library_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.9.1+cu128", "torchvision": "0.24.1+cpu"}
    found = python_checks.Environment(versions, tmp_path / "torch", "12.8")
    monkeypatch.setattr(python_checks, "read_environment", lambda _python: found)
    subject = make_subject(tmp_path, python=Path("x"))
    assert answer("torchvision-op-mismatch", subject).verdict is Verdict.BLOCKED
    assert answer("libtorch-cuda-missing", subject).verdict is Verdict.BLOCKED
    versions["torchvision"] = "0.24.1+cu128"
    assert answer("torchvision-op-mismatch", subject).verdict is Verdict.OK


# the command
def run(cache: Path, *arguments: str) -> int:
    return main(["--cache", str(cache), *arguments], Console())


def test_a_newcomer_is_told_what_works_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.commands.doctor.read_machine", lambda: make_subject(tmp_path).machine)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    code = run(tmp_path / "cache", "--offline", "--json", str(tmp_path / "d.json"))
    out = capsys.readouterr().out
    assert code == DoctorError.exit_code
    assert out.splitlines()[-1].startswith(f"missing for {PRODUCTION}: ")
    assert "fetchcontent-clone-failed" in out.splitlines()[-1]
    assert out.count("\n") < 40
    checks = json.loads((tmp_path / "d.json").read_text())
    assert checks["recipe"] == PRODUCTION
    assert {"id", "verdict", "measured", "fix"} == set(checks["checks"][0])
    assert any(row["verdict"] == "not known here" for row in checks["checks"])


def test_a_skipped_check_does_not_block_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(
        tmp_path, "mine", toolchain={"kind": "pypi", "cuda": "13.0", "lock": "x.txt", "build_requirements": ["wheel"]}
    )
    (tmp_path / "x.txt").write_text("torch==2.11.0\nninja==1\n")
    command = ("--recipe", str(recipe), "--offline", "--all")
    assert run(tmp_path / "cache", *command) == 3
    assert "blocked  no-isolation-missing-build-deps" in capsys.readouterr().out
    assert run(tmp_path / "cache", *command, "--skip", "no-isolation-missing-build-deps") == 0
    assert "1 skipped" in capsys.readouterr().out
    row = Row("x", Verdict.SKIPPED, "skipped by --skip")
    assert skipped([row, Row("y", Verdict.OK, "")]) == [{"id": "x", "verdict": "skipped", "measured": row.measured}]


def test_names_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Perhaps you meant 'no-kernel-image'"):
        read_skips(["no-kernel-imag"])
    with pytest.raises(UsageError, match="--jobs is '0'"):
        run(tmp_path / "cache", "--jobs", "0")


def test_all_that_blocks_is_in_one_message(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, PRODUCTION, environment={"PATH": str(tmp_path)}, wheelhouse=Path("/proc/x"))
    with pytest.raises(DoctorError) as raised:
        require(run_checks(replace(subject, access=replace(subject.access, offline=True))), subject.recipe)
    for name in ("no-host-compiler", "git-missing-in-image", "wheelhouse-not-writable"):
        assert f"[{name}]" in raised.value.why
    assert any("quickstart" in fix for fix in raised.value.fix)
    require((), subject.recipe)


def test_doctor_is_quick_and_downloads_nothing(tmp_path: Path) -> None:
    before = os.times()
    run_checks(make_subject(tmp_path))
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])
    assert used < 3, f"{used:.1f} s of processor time"
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1e6
