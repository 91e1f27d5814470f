"""The static index in an S3-compatible store (moto's server), read through nginx as a bucket behind a web server is."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import obstore
import pytest
from obstore.exceptions import NotSupportedError
from obstore.store import MemoryStore

from scripts.commands import publish
from scripts.core.console import Console
from scripts.core.errors import PublishError, UsageError
from scripts.core.paths import ROOT
from scripts.index.entry import Entry
from scripts.index.object_store import ObjectStore
from scripts.index.static import StaticIndex
from tests.integration.index.test_publish_static import check_index, small
from tests.integration.index_servers import clean_environment, free_port, nginx, nginx_bytes, tool, venv
from tests.integration.upload_servers import S3_KEYS


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """Let s3://bucket be obstore's own store in memory, which has conditions as S3 has."""
    store = MemoryStore()
    monkeypatch.setattr("scripts.index.object_store.from_url", lambda *_, **__: store)
    return store


def run(*words: object) -> int:
    return publish.main([*map(str, words), "--no-audit"], Console(quiet=True))


def keys(store: MemoryStore) -> set[str]:
    return {item["path"] for batch in store.list() for item in batch}


def test_the_index_in_a_store_is_the_same_as_in_a_directory(memory: MemoryStore, tmp_path: Path) -> None:
    wheel, other = small(tmp_path / "w"), small(tmp_path / "w", "1.0+cu128")
    run(wheel, other, "--to", "s3://bucket")
    run(wheel, other, "--to", tmp_path / "index")
    files = {str(path.relative_to(tmp_path / "index")) for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert keys(memory) == files - {".publish.lock"}
    assert json.loads(bytes(memory.get(".state.json").bytes())).keys() == {"entries", "pages"}
    run(wheel, "--to", "s3://bucket")
    with pytest.raises(PublishError, match="has another"):
        run(small(tmp_path / "w2", text="y = 1"), "--to", "s3://bucket")
    run("--prune", other.name, "--to", "s3://bucket")
    assert other.name in str(keys(memory))  # readers may just fetch it
    run("--prune", "keep=9", "--to", "s3://bucket", "--grace", "0")
    assert not [key for key in keys(memory) if key.startswith("files/") and "1.0" in key]
    for key in ("vllm/1.0/index.html", "vllm/1.0/vllm/index.json", "cu128/vllm/index.html"):
        assert other.name not in bytes(memory.get(key).bytes()).decode()
    page = bytes(memory.get("simple/vllm/index.html").bytes()).decode()
    assert wheel.name.replace("+", "%2B") in page
    assert memory.get("simple/vllm/index.json").attributes["Content-Type"] == "application/vnd.pypi.simple.v1+json"


def test_publishers_at_once_do_not_lose_wheels(memory: MemoryStore, tmp_path: Path) -> None:
    wheels = [small(tmp_path / "w", f"1.{number}+cu130") for number in range(6)]
    threads = [threading.Thread(target=run, args=(wheel, "--to", "s3://bucket")) for wheel in wheels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = bytes(memory.get("simple/vllm/index.html").bytes()).decode()
    assert all(wheel.name.replace("+", "%2B") in page for wheel in wheels)


def test_a_page_that_another_publisher_replaced_is_not_overwritten(memory: MemoryStore) -> None:
    store = ObjectStore("s3://bucket")
    assert store.write("a.html", b"1", over=None)
    assert not store.write("a.html", b"2", over=None)
    seen = store.read("a.html")
    assert seen
    memory.put("a.html", b"other")
    assert not store.write("a.html", b"2", over=seen)
    assert store.write("a.html", b"3", over=store.read("a.html"))
    store.remove("a.html")
    store.remove("a.html")
    assert store.read("a.html") is None
    assert store.size("a.html") is None
    assert not store.write("a.html", b"4", over=seen)


def test_a_store_that_is_not_there_or_not_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not know"):
        run(small(tmp_path / "w"), "--to", "ftp://host/x")
    for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("scripts.index.object_store.RETRIES", {"max_retries": 0})
    store = ObjectStore("s3://bucket/x")
    for call in (
        lambda: store.tags("entries/"),
        store.top,
        store.now,
        lambda: store.fetch("a", tmp_path / "fetched"),
        lambda: store.read("a"),
        lambda: store.write("a", b"", over=None),
        lambda: store.size("a"),
        lambda: store.remove("a"),
        lambda: store.add_file("a", small(tmp_path / "w"), "0" * 64),
    ):
        with pytest.raises(PublishError):
            call()


def test_a_store_without_conditional_writes_is_used_with_a_warning(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = obstore.put

    def put(*arguments: Any, **options: Any) -> Any:
        if options.get("mode"):
            raise NotSupportedError("If-Match is not implemented here")
        return real(*arguments, **options)

    monkeypatch.setattr("obstore.put", put)
    wheel = small(tmp_path / "w")
    publish.main([str(wheel), "--to", "s3://bucket", "--no-audit"], Console())
    assert "takes no conditional writes" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert check_bucket("s3://bucket") == {wheel.name}


@pytest.mark.large
def test_s3_end_to_end(moto: str, tmp_path: Path) -> None:
    wheel, later = small(tmp_path / "w", size=20_000_000), small(tmp_path / "w", "0.20.2+cu130")
    target = "s3://wheels/team"
    assert run(wheel, "--to", target) == 0
    words = [sys.executable, "-m", "scripts.commands.publish", "--no-audit", "--to", target]
    more = [small(tmp_path / "w", f"1.{number}+cu130") for number in range(8)]
    running = [subprocess.Popen([*words, str(one)], cwd=ROOT, stdout=subprocess.DEVNULL) for one in [later, *more]]
    assert [child.wait() for child in running] == [0] * 9
    (tmp_path / "nginx").mkdir()
    front = free_port()
    # Objects are private; this front reads them as the owner does. moto looks for a signature and does not check it.
    scope = "Credential=test/20260101/us-east-1/s3/aws4_request"
    config = (
        f"proxy_set_header Authorization 'AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0';\n"
        "map $http_accept $page { default index.html; '~vnd.pypi.simple.v1.json' index.json; }\n"
        f"server {{ listen 127.0.0.1:{front};\n"
        f"location ~ ^(?<folder>.*)/$ {{ proxy_pass {moto}/wheels/team$folder/$page; }}\n"
        f"location / {{ rewrite ^(.*)$ /wheels/team$1 break; proxy_pass {moto}; }} }}"
    )
    with nginx(tmp_path, tmp_path / "nginx", upstream=config, port=front) as server:
        index, environment = f"{server.url}/simple/", clean_environment(tmp_path)
        for number, command in enumerate(
            (
                [sys.executable, "-m", "pip", "--python", "PYTHON", "install", "--index-url", index],
                [tool("uv"), "pip", "install", "--python", "PYTHON", "--default-index", index],
            )
        ):
            python = venv(tmp_path / f"venv{number}")
            words = [str(python) if word == "PYTHON" else word for word in command]
            subprocess.run([*words, "--dry-run", "vllm==0.20.1+cu130.sm90"], env=environment, check=True)
            assert number or nginx_bytes(tmp_path / "nginx", ".whl") == 0
            subprocess.run([*words, "vllm==0.20.1+cu130.sm90"], env=environment, check=True)
        page = subprocess.run(["curl", "-fsS", index + "vllm/"], check=True, capture_output=True, text=True).stdout
    assert all(one.name.replace("+", "%2B") in page for one in [wheel, later, *more])


def counted(moto: str, log: Path, *words: object) -> int:
    """Publish in a process of its own; return how many requests the S3 server saw."""
    before = log.read_text(errors="replace").count(" HTTP/1.1")
    command = [sys.executable, "-m", "scripts.commands.publish", "--no-audit", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return log.read_text(errors="replace").count(" HTTP/1.1") - before


@pytest.mark.large
def test_requests_do_not_grow_with_the_wheels_that_are_there(moto: str, tmp_path: Path) -> None:
    target, log = ("--to", "s3://wheels/many"), tmp_path / "server.log"
    wheels = [small(tmp_path / "w", f"1.{number}+cu130") for number in range(42)]
    first = counted(moto, log, wheels[0], *target)
    nothing = [counted(moto, log, wheels[0], *target)]
    one = [counted(moto, log, wheels[1], *target)]
    counted(moto, log, *wheels[:41], *target)
    nothing.append(counted(moto, log, *wheels[:41], *target))
    one.append(counted(moto, log, *wheels, *target))
    sys.stderr.write(f"\nfirst {first}; nothing new with 1 and 41 wheels {nothing}; one more {one} requests\n")
    assert nothing[1] <= nothing[0] + 1
    assert one[1] <= one[0] + 4
    assert nothing[1] < 15


def published_now(target: str) -> dict[str, Entry]:
    return StaticIndex(ObjectStore(target), Console(quiet=True)).entries()


def check_bucket(target: str) -> set[str]:
    """Fetch everything that pages list, as a reader does; return the names on the widest page."""
    store = ObjectStore(target)
    page = store.read("simple/vllm/index.json")
    assert page
    files = json.loads(page.data)["files"]
    for file in files:
        key = unquote(file["url"].removeprefix("../../"))
        for name, sha256 in ((key, file["hashes"]["sha256"]), (f"{key}.metadata", file["core-metadata"]["sha256"])):
            found = store.read(name)
            assert found, f"{name} is listed and not there"
            assert hashlib.sha256(found.data).hexdigest() == sha256
    return {file["filename"] for file in files}


@pytest.mark.large
def test_twenty_races_of_prune_and_publish_lose_no_wheel(moto: str, tmp_path: Path) -> None:
    target = "s3://wheels/races"
    words = [sys.executable, "-m", "scripts.commands.publish", "--no-audit", "--to", target]
    wheel = small(tmp_path / "w", "1.0+cu130", size=2_000_000)
    keeper = small(tmp_path / "w", "0.9+cu128")
    run(wheel, keeper, "--to", target)
    back = 0
    for number in range(20):
        # Everything at once: the wheel is taken out with its files, put in again, and others come and go.
        newer = small(tmp_path / "w", f"2.{number}+cu126")
        jobs: list[list[Any]] = [
            ["--prune", wheel.name, "--grace", "0"],
            [wheel],
            [newer],
            ["--prune", "keep=2", "--grace", "0"],
        ]
        running = [_start([*words, *map(str, job)]) for job in jobs]
        said = [child.communicate()[1].decode() for child in running]
        for child, text in zip(running, said, strict=True):
            assert child.returncode == 0 or "is not in the index" in text or "taken out" in text, text
        listed = check_bucket(target)
        entries = published_now(target)
        assert listed == set(entries)
        assert {keeper.name, newer.name} <= listed
        last = [event.action for event in _record(target, wheel.name).history if event.action != "sweep"][-1]
        assert (wheel.name in listed) is (last in {"publish", "restore"})
        back += wheel.name in listed
        run(wheel, "--to", target)  # and it always comes back whole
        assert wheel.name in check_bucket(target)
    sys.stderr.write(f"\n20 races: nothing lost; the wheel was there after {back} of them\n")


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _record(target: str, name: str) -> Entry:
    found = StaticIndex(ObjectStore(target), Console(quiet=True)).history()
    return next(entry for entry in found if entry.filename == name)


@pytest.mark.large
@pytest.mark.parametrize("kind", ["bucket", "directory"])
def test_twelve_publishers_that_are_killed_again_and_again_lose_nothing(moto: str, tmp_path: Path, kind: str) -> None:
    target = "s3://wheels/killed" if kind == "bucket" else str(tmp_path / "index")
    words = [sys.executable, "-m", "scripts.commands.publish", "--no-audit", "--to", target]
    wheels = [small(tmp_path / "w", f"1.{number}+cu130", size=3_000_000) for number in range(12)]
    chance, kills, looks = random.Random(7), 0, 0
    waiting = [(wheel, chance.randrange(5, 9)) for wheel in wheels]
    running: dict[subprocess.Popen[bytes], tuple[Path, int, float]] = {}
    while waiting or running:
        while waiting and len(running) < 12:
            wheel, left = waiting.pop()
            child = subprocess.Popen([*words, str(wheel)], cwd=ROOT, stdout=subprocess.DEVNULL)
            running[child] = (wheel, left, time.monotonic() + chance.uniform(3, 15) if left else 1e12)
        for child, (wheel, left, until) in list(running.items()):
            if child.poll() is not None:
                assert child.returncode == 0
                del running[child]
            elif time.monotonic() > until:
                child.kill()
                child.wait()
                kills += 1
                del running[child]
                waiting.append((wheel, left - 1))
        time.sleep(0.2)
        looks += _look(target, kind)
    assert _look(target, kind) == 1
    names = check_bucket(target) if kind == "bucket" else check_index(Path(target))["simple/vllm/index.json"]
    assert names == {wheel.name for wheel in wheels}
    sys.stderr.write(f"\n12 publishers into a {kind}, {kills} kills, {looks} looks in between: nothing lost\n")


def _look(target: str, kind: str) -> int:
    """Check that all that is listed now is there whole; 0 while there is nothing yet."""
    if kind == "bucket":
        if ObjectStore(target).read("simple/vllm/index.json") is None:
            return 0
        check_bucket(target)
    elif (Path(target) / "simple/vllm/index.json").exists():
        check_index(Path(target))
    else:
        return 0
    return 1
