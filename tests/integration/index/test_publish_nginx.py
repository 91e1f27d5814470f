"""Real servers and large wheels (`-m large`): nginx as documented, the quickstart wheel, the official 509 MB wheel.

nginx and openssl are Debian's packages. Where no quickstart wheel lies in wheelhouse/, a made one of the same name and
of 4 MB stands in.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from scripts.commands import publish
from scripts.core.console import Console
from scripts.core.files import file_sha256
from scripts.core.paths import ROOT
from tests.integration.audit.test_official_wheel import wheel as official
from tests.integration.index.test_publish_static import _tamper
from tests.integration.index_servers import (
    JSON,
    basic,
    clean_environment,
    needs,
    netrc,
    nginx,
    nginx_bytes,
    tool,
    venv,
)
from tests.wheels import make_wheel

__all__ = ["official"]
pytestmark = [pytest.mark.large, needs("nginx")]
QUICKSTART = Path(os.environ.get("WHEELSMITH_TEST_WHEELHOUSE", ROOT / "wheelhouse"))


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))


def quickstart(folder: Path) -> Path:
    """Return the wheel that `nox -s wheel -- --recipe quickstart` left in wheelhouse/, else one that is made."""
    found = next(QUICKSTART.glob("vllm-0.20.1+cu130.quickstart-*.whl"), None)
    if found is None:
        members = {"vllm/__init__.py": b"x = 1\n", "vllm/data.bin": random.Random(0).randbytes(4_000_000)}
        found = make_wheel(folder, members, version="0.20.1+cu130.quickstart")
    return found


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return an index with the quickstart wheel."""
    wheel = quickstart(tmp_path)
    publish.main([str(wheel), "--to", str(tmp_path / "index"), "--no-audit"], Console(quiet=True))
    (tmp_path / "nginx").mkdir()
    return tmp_path / "index"


def fetch(url: str, accept: str, *, credentials: bool = True) -> tuple[int, str, bytes]:
    request = urllib.request.Request(url, headers={"Accept": accept, **(basic() if credentials else {})})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, "", b""


def commands(python: Path, index: str) -> dict[str, list[str]]:
    wanted = ["--no-deps", "vllm==0.20.1+cu130.quickstart"]
    return {
        "pip": [sys.executable, "-m", "pip", "--python", str(python), "install", "--index-url", index, *wanted],
        "uv": [tool("uv"), "pip", "install", "--python", str(python), "--default-index", index, *wanted],
    }


@pytest.mark.servers
def test_nginx_serves_html_or_json_by_accept_to_users_only(published: Path, tmp_path: Path) -> None:
    with nginx(published, tmp_path / "nginx") as server:
        page = f"{server.url}/simple/vllm/"
        assert fetch(page, "*/*", credentials=False)[0] == 401
        assert fetch(page, JSON)[1] == JSON
        assert fetch(page, "text/html")[1].startswith("text/html")
        assert fetch(f"{server.url}/.publish.lock", "*/*")[0] == 403
        assert fetch(server.url + "/", "text/html")[2].startswith(b"<!DOCTYPE html>")


@pytest.mark.servers
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_nginx_resolve_without_the_wheel_install_and_refuse_a_tampered_one(
    published: Path, tmp_path: Path, installer: str
) -> None:
    environment = clean_environment(tmp_path, NETRC=str(netrc(tmp_path)))
    shutil.copy(tmp_path / "netrc", tmp_path / ".netrc")
    python = venv(tmp_path / "venv")
    with nginx(published, tmp_path / "nginx") as server:
        command = commands(python, f"{server.url}/vllm/0.20.1/cu130-quickstart/")[installer]
        # What vLLM depends on is not on this index, which is told after its metadata was read; --no-deps does without.
        subprocess.run([*command, "--dry-run"], env=environment, check=True, capture_output=True)
        resolving = [word for word in [*command, "--dry-run"] if word != "--no-deps"]
        subprocess.run(resolving, env=environment, check=False, capture_output=True)
        whole, metadata = nginx_bytes(tmp_path / "nginx", ".whl"), nginx_bytes(tmp_path / "nginx", ".metadata")
        sys.stderr.write(f"\n{installer} resolves with {whole} bytes of the wheel, {metadata} of its metadata\n")
        assert whole == 0
        assert metadata > 0
        wheel = next((published / "files").rglob("*.whl"))
        good = wheel.read_bytes()
        _tamper(wheel)
        refused = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert refused.returncode
        assert "hash" in refused.stderr.lower()
        wheel.write_bytes(good)
        subprocess.run(command, env=environment, check=True, capture_output=True)
    listed = subprocess.run([tool("uv"), "pip", "list", "--python", python], capture_output=True, text=True, check=True)
    assert "0.20.1+cu130.quickstart" in listed.stdout


@pytest.mark.servers
def test_requirements_with_hashes_and_uv_projects_as_documented(published: Path, tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, NETRC=str(netrc(tmp_path)))
    wheel = next((published / "files").rglob("*.whl"))
    (tmp_path / "requirements.txt").write_text(f"vllm==0.20.1+cu130.quickstart --hash=sha256:{file_sha256(wheel)}\n")
    project = tmp_path / "project"
    project.mkdir()
    with nginx(published, tmp_path / "nginx") as server:
        index = f"{server.url}/vllm/0.20.1/cu130-quickstart/"
        python = venv(tmp_path / "venv")
        words = ["--index-url", index, "--no-deps", "--require-hashes", "-r", str(tmp_path / "requirements.txt")]
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
        subprocess.run([*pip, *words], env=environment, check=True, capture_output=True)
        (project / "pyproject.toml").write_text(
            '[project]\nname = "p"\nversion = "0"\nrequires-python = ">=3.10,<3.14"\ndependencies = []\n'
            f'[[tool.uv.index]]\nname = "wheelsmith"\nurl = "{index}"\nexplicit = true\n'
            '[tool.uv.sources]\nvllm = { index = "wheelsmith" }\n'
            "[tool.uv]\noverride-dependencies = [\"torch; sys_platform == 'never'\"]\n"
        )
        environment.pop("UV_NO_CONFIG")
        add = [tool("uv"), "add", "--frozen", "vllm==0.20.1+cu130.quickstart"]
        subprocess.run(add, cwd=project, env=environment, check=True, capture_output=True)
    assert "vllm==0.20.1+cu130.quickstart" in (project / "pyproject.toml").read_text()


def test_the_official_wheel_is_published_and_installed_by_uv(official: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.commands.publish", str(official), "--to", str(tmp_path / "index")]
    times = {}
    for name, more in (("publish", ["--no-audit"]), ("again", ["--no-audit"])):
        started = time.monotonic()
        subprocess.run([*command, *more], cwd=ROOT, check=True, capture_output=True)
        times[name] = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    (tmp_path / "nginx").mkdir()
    environment = clean_environment(tmp_path, NETRC=str(netrc(tmp_path)))
    with nginx(tmp_path / "index", tmp_path / "nginx") as server:
        python = venv(tmp_path / "venv")
        words = [
            "pip",
            "install",
            "--python",
            str(python),
            "--default-index",
            f"{server.url}/vllm/0.15.1/",
            "--no-deps",
        ]
        started = time.monotonic()
        subprocess.run([tool("uv"), *words, "vllm==0.15.1"], env=environment, check=True, capture_output=True)
        times["install by uv"] = time.monotonic() - started
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    sys.stderr.write(f"\nofficial wheel: {text}; peak memory of publish {peak:.0f} MB\n")
    assert peak < 300
    shutil.rmtree(tmp_path / "venv")
    shutil.rmtree(tmp_path / "index")


def test_the_audit_of_the_official_wheel_for_every_gpu_gets_onto_the_landing_page(
    official: Path, tmp_path: Path
) -> None:
    from scripts.index.entry import make_entry

    started = time.monotonic()
    entry, _ = make_entry(official, file_sha256(official))
    sys.stderr.write(f"\naudit for every GPU: {time.monotonic() - started:.1f} s\n")
    assert entry.serves
    archs = {row.arch for row in entry.serves}
    assert {"8.0", "9.0"} <= archs
    assert "12.0" not in archs  # Marlin MoE gets there as 8.0 PTX only: the audit's hazard marlin-moe-jit
