"""What must not be lost or leaked: idle locks, full disks, wrong clocks, shared caches, names in disguise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from scripts.commands import publish
from scripts.core.console import Console
from scripts.core.errors import AuditError, PublishError
from scripts.core.files import file_sha256
from scripts.core.paths import ROOT
from scripts.index.entry import identity, read_entry, same_wheel
from scripts.index.provenance import load_key
from scripts.index.static import StaticIndex
from scripts.index.store import Directory
from tests.integration.index.test_provenance import key_pair, verify, wheel_with_sbom
from tests.integration.index.test_publish_static import PLAIN, check_index, run, small
from tests.integration.index_servers import JSON, Served, basic, free_port, needs, nginx, nginx_cache, squid
from tests.wheels import make_wheel


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WHEELSMITH_INVOKED_FROM", str(tmp_path))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "scripts.commands.publish", "--no-audit", *map(str, words)]


# ---- locks


@pytest.fixture(scope="module")
def no_flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that makes flock what it is on poor file systems: missing, or doing nothing."""
    folder = tmp_path_factory.mktemp("flock")
    (folder / "flock.c").write_text(
        "#include <errno.h>\n#include <stdlib.h>\n"
        'int flock(int fd, int how) { if (getenv("FLOCK_MISSING")) { errno = ENOLCK; return -1; } return 0; }\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"], check=True)
    return folder / "flock.so"


@pytest.mark.parametrize(
    ("missing", "why"), [("1", "flock says: No locks available"), ("", "same lock to two at once")]
)
def test_a_file_system_without_locks_or_with_idle_ones_is_noticed(
    tmp_path: Path, no_flock: Path, missing: str, why: str
) -> None:
    environment = {**os.environ, "LD_PRELOAD": str(no_flock), **({"FLOCK_MISSING": missing} if missing else {})}
    words = command(small(tmp_path / "w"), "--to", tmp_path / "index")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert "has no working locks" in done.stderr
    assert why in re.sub(r"\s+", " ", done.stderr)
    assert not list((tmp_path / "index").rglob("*.whl"))


def test_waiting_names_the_holder_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = small(tmp_path / "w")
    holding = "import sys, time; from pathlib import Path; from scripts.index.store import Directory; "
    holding += "from scripts.core.console import Console\nwith Directory(Path(sys.argv[1])).lock(Console()): "
    holding += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "index")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PublishError, match=f"process {holder.pid} on ") as caught:
            publish.main([str(wheel), "--to", "index", "--no-audit", "--wait", "0.5"], Console())
        assert "waited" in caught.value.why
        assert f"waiting for process {holder.pid} on " in re.sub(r"\s+", " ", capsys.readouterr().err)
        holder.kill()
    run(wheel, "--to", "index", "--no-audit")  # the kernel has released it


def test_a_publisher_of_another_machine_that_got_the_same_lock_is_noticed(tmp_path: Path) -> None:
    store = Directory(tmp_path / "index")
    with store.lock(Console(quiet=True)):
        assert store.write("a", b"1", over=None)
        (tmp_path / "index/.publish.lock").write_text("process 7 on elsewhere")
        with pytest.raises(PublishError, match="process 7 on elsewhere works on"):
            store.write("b", b"1", over=None)
        with pytest.raises(PublishError, match="at the same time"):
            store.remove("a")
    assert (tmp_path / "index/a").exists()


# ---- disks and folders


def test_what_does_not_fit_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        wheels = [small(tmp_path / "w", f"{number}.0", size=9_000_000) for number in (1, 2)]
        with pytest.raises(PublishError, match="too little space: nothing was copied"):
            run(*wheels, "--to", disk / "index", "--no-audit")
        assert not list(disk.rglob("*.whl"))
        run(small(tmp_path / "w", "3.0", size=1_000_000), "--to", disk / "index", "--no-audit")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_folders_may_be_symlinks_to_other_disks(tmp_path: Path) -> None:
    for folder in ("files", "vllm"):
        (tmp_path / "other" / folder).mkdir(parents=True)
        (tmp_path / "index").mkdir(exist_ok=True)
        (tmp_path / "index" / folder).symlink_to(tmp_path / "other" / folder)
    (tmp_path / "link").symlink_to(tmp_path / "index")
    (tmp_path / "other/files/loop").symlink_to(tmp_path / "other/files")
    left = tmp_path / "other/files/.left.partial"
    left.write_text("what a killed publisher left")
    wheel, other = small(tmp_path / "w"), small(tmp_path / "w", "1.0+cu130")
    run(wheel, other, "--to", "link", "--no-audit")
    assert not left.exists()
    assert check_index(tmp_path / "index")["simple/vllm/index.html"] == {wheel.name, other.name}
    run("--to", "link", "--prune", wheel.name, "--prune", other.name, "--grace", "0")
    assert (tmp_path / "index/files").is_symlink()
    assert (tmp_path / "index/vllm").is_symlink()
    assert not list((tmp_path / "other").rglob("*.whl"))


# ---- clocks


def test_a_wrong_clock_takes_nothing_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, past, coming = (small(tmp_path / "w", f"{number}.0+cu130") for number in (1, 2, 3))
    run(old, past, coming, "--to", "index", "--no-audit")
    for wheel, when in ((old, "2020-01-01"), (past, "1970-01-01"), (coming, "2090-01-01")):
        path = tmp_path / "index/entries" / f"{wheel.name}.json"
        entry = read_entry(path.read_bytes(), f"entries/{wheel.name}.json")
        path.write_bytes(entry.model_copy(update={"uploaded": f"{when}T00:00:00.000000Z"}).json())
    [really_old] = (tmp_path / "index/files").rglob(old.name)
    os.utime(really_old, (1_577_836_800, 1_577_836_800))
    # Publishers whose clocks said 1970 and 2090; the disk knows that both wheels are new.
    publish.main(["--to", str(tmp_path / "index"), "--prune", "older=90d"], Console())
    assert "in the future" in capsys.readouterr().err
    assert check_index(tmp_path / "index")["simple/vllm/index.json"] == {past.name, coming.name}


def test_files_stay_for_the_grace_period_by_the_store_s_clock(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    run(wheel, "--to", "index", "--no-audit")
    run("--to", "index", "--prune", wheel.name)
    index = StaticIndex(Directory(tmp_path / "index"), Console(quiet=True))
    assert index.entries() == {}
    assert index.sweep(timedelta(days=1)) == []
    run(wheel, "--to", "index", "--no-audit")  # taken back: nothing is copied
    assert set(index.entries()) == {wheel.name}
    assert index.sweep(timedelta(0)) == []
    check_index(tmp_path / "index")


# ---- names


def test_one_wheel_by_two_spellings_is_one_wheel(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w", "1.0+cu130")
    run(wheel, "--to", "index", "--no-audit")
    (tmp_path / "v").mkdir()
    twin = tmp_path / "v" / "VLLM-1.0.0+CU130-py3-none-any.whl"
    twin.write_bytes(wheel.read_bytes())
    assert same_wheel(twin.name, "vllm-1.0.0+cu130-py3-none-any.whl")
    assert identity("vLLM_x-1.0-1-py3.py2-none-any.whl") == identity("vllm.x-1.0-1-py2.py3-none-any.whl")
    assert not same_wheel(twin.name, "junk")
    run(twin, "--to", "index", "--no-audit")
    assert check_index(tmp_path / "index")["simple/vllm/index.json"] == {wheel.name} or not same_wheel(
        twin.name, wheel.name
    )
    other = small(tmp_path / "o", "1.0+cu130", text="y = 1")
    disguised = other.rename(other.with_name("VLLM-1.0+cu130-py3-none-any.whl"))
    with pytest.raises(PublishError, match="has another"):
        run(disguised, "--to", "index", "--no-audit")


@pytest.mark.parametrize("name", ["vllm-2.0-py3-none-any.whl", "other-1.0-py3-none-any.whl"])
def test_a_wheel_that_was_renamed_is_refused(tmp_path: Path, name: str) -> None:
    wheel = small(tmp_path / "w", "1.0")
    with pytest.raises(AuditError, match=r"its \.dist-info and its file name disagree"):
        run(wheel.rename(wheel.with_name(name)), "--to", "index", "--no-audit")
    lying = make_wheel(tmp_path, {}, version="1.0", metadata=PLAIN.replace("{version}", "3.0"), tags="py3-none-any")
    with pytest.raises(AuditError) as caught:
        run(lying, "--to", "index", "--no-audit")
    assert "METADATA: vllm 3.0" in caught.value.why
    assert not (tmp_path / "index/index.html").exists()


# ---- signatures that come later


def test_a_signature_that_comes_later_or_changes_reaches_the_index(tmp_path: Path) -> None:
    first, second = key_pair(tmp_path, "first"), key_pair(tmp_path, "second")
    wheel = wheel_with_sbom(tmp_path)
    run(wheel, "--to", "index")
    [there] = (tmp_path / "index/files").rglob("*.whl")
    envelope = there.with_name(there.name + ".intoto.jsonl")
    assert not envelope.exists()
    assert there.with_name(there.name + ".cdx.json").is_file()
    run(wheel, "--to", "index", "--sign-key", first[0], "--dry-run", "--json", "plan.json")
    states = {row["name"]: row["state"] for row in json.loads((tmp_path / "plan.json").read_text())["wheels"]}
    assert states == {f"{wheel.name}.intoto.jsonl": "would be signed", wheel.name: "unchanged"}
    for private, public in (first, second):
        run(wheel, "--to", "index", "--sign-key", private, "--json", "done.json")
        assert json.loads((tmp_path / "done.json").read_text())["wheels"][-1]["state"] == "updated"
        assert verify(there, "--key", public) == 0
        before = envelope.read_bytes()
        run(wheel, "--to", "index", "--sign-key", private, "--json", "done.json")
        assert json.loads((tmp_path / "done.json").read_text())["wheels"][-1]["state"] == "unchanged"
        assert envelope.read_bytes() == before
    page = (tmp_path / "index/index.html").read_text()
    assert ".intoto.jsonl" in page
    assert ".cdx.json" in page
    record = json.loads(next((tmp_path / "index/entries").iterdir()).read_text())
    assert record["extras"][".intoto.jsonl"] == file_sha256(envelope)
    assert [row["action"] for row in record["history"]] == ["publish", "update", "update"]
    assert load_key(first[1])


def test_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, _ = key_pair(tmp_path, "key")
    old, wheel = small(tmp_path / "w", "1.0+cu130"), wheel_with_sbom(tmp_path)
    run(old, "--to", "index", "--no-audit")
    before = {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()}
    run(wheel, "--to", "index", "--sign-key", private, "--prune", "keep=1", "--prune", old.name, "--dry-run")
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"would be signed {wheel.name}.intoto.jsonl" in said
    assert f"would be published {wheel.name}" in said
    assert "below vllm/0.20.1/cu130/, .cdx.json, .report.json" in said
    assert f"would be removed {old.name}" in said
    assert {path: path.read_bytes() for path in before} == before
    assert not wheel.with_name(wheel.name + ".intoto.jsonl").exists()


# ---- shared caches


CACHES = [
    pytest.param(nginx_cache, marks=needs("nginx"), id="nginx"),
    pytest.param(squid, marks=needs("squid"), id="squid"),
]


@pytest.mark.servers
@pytest.mark.large
@needs("nginx")
@pytest.mark.parametrize("shared", CACHES)
@pytest.mark.parametrize("kind", ["private", "public"])
def test_a_cache_that_readers_share_never_hands_out_what_needs_a_password(
    tmp_path: Path, kind: str, shared: Callable[[Path, int], AbstractContextManager[Served]]
) -> None:
    wheel = small(tmp_path / "w", size=100_000)
    run(wheel, "--to", "index", "--no-audit")
    for name in ("origin", "proxy"):
        (tmp_path / name).mkdir()
    text = (ROOT / "docs" / "nginx.conf").read_text().replace('"private,', f'"{kind},')
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{(origin := free_port())};")
    text = text.replace("/srv/wheels", str(tmp_path / "index")).replace("/etc/nginx/wheels", str(tmp_path / "origin"))
    assert "no-store" not in text
    with (
        nginx(tmp_path, tmp_path / "origin", upstream=text, port=origin),
        shared(tmp_path / "proxy", origin) as proxy,
    ):
        paths = ["simple/vllm/", "", "SHA256SUMS"]
        paths += [str(path.relative_to(tmp_path / "index")) for path in (tmp_path / "index/files").rglob("*.whl*")]
        leaked = [path for path in paths if _leaks(f"{proxy.url}/{path.replace('+', '%2B')}")]
        # The proxy does keep what it may: with "public", as it was, the wheel leaks.
        assert bool(leaked) is (kind == "public")
        assert not leaked or any(path.endswith(".whl") for path in leaked)


def _leaks(url: str) -> bool:
    """Whether a page is given without a password once somebody with one has read it twice."""
    for _ in range(2):
        request = urllib.request.Request(url, headers={"Accept": JSON, **basic()})
        with urllib.request.urlopen(request) as answer:
            assert answer.read()  # whole: squid keeps nothing of what was broken off
    status = subprocess.run(
        ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", "-H", f"Accept: {JSON}", url],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert status in {"200", "401"}
    return status == "200"


ACCEPTS = {
    "text/html": "html",
    JSON: "json",
    f"{JSON}, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01": "json",  # pip
    f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01": "json",  # uv
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "html",  # browsers
    f"text/html, {JSON};q=0": "html",
    f"text/html;q=0.8, {JSON};q=0.9": "json",
    f"text/html;q=0.9, {JSON};q=0.8": "html",
    f"text/html;q=0.25, {JSON};q=0.2": "html",
    f"text/html;q=0.2, {JSON};q=0.25": "json",
    f"text/html;q=0.5,{JSON};q=0.5": "json",
    f"text/html;q=0.002,{JSON};q=0.001": "html",
}


@pytest.mark.servers
@pytest.mark.large
@needs("nginx")
def test_nginx_minds_how_much_each_kind_of_page_is_wanted(tmp_path: Path) -> None:
    run(small(tmp_path / "w"), "--to", "index", "--no-audit")
    (tmp_path / "nginx").mkdir()
    with nginx(tmp_path / "index", tmp_path / "nginx") as server:
        for accept, wanted in ACCEPTS.items():
            request = urllib.request.Request(f"{server.url}/simple/vllm/", headers={"Accept": accept, **basic()})
            with urllib.request.urlopen(request) as answer:
                assert wanted in answer.headers["Content-Type"], accept
        for hidden in ("entries/", ".state.json", ".publish.lock"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(f"{server.url}/{hidden}", headers=basic()))
