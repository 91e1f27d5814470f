"""`nox -s index`: yank, unyank, promote, mirror and the log, with real installers, in a directory and in a bucket."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from scripts.commands import index, publish
from scripts.commands import verify as verify_command
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import AuditError, PublishError, UsageError
from scripts.core.files import file_sha256
from scripts.downloads.indexes import Indexes
from scripts.index.reader import SimpleClient
from scripts.index.wanted import matching
from tests.accesses import make_access
from tests.builds import put_report
from tests.integration.index.test_attestations import attestation
from tests.integration.index.test_provenance import key_pair, wheel_with_sbom
from tests.integration.index.test_publish_static import _tamper, check_index, small
from tests.integration.index_servers import clean_environment, serve, tool, venv


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WHEELSMITH_INVOKED_FROM", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a target of both kinds; the bucket is obstore's own in memory."""
    if request.param == "directory":
        return str(tmp_path / "index")
    stores: dict[str, MemoryStore] = {}
    monkeypatch.setattr("scripts.index.object_store.from_url", lambda url, **_: stores.setdefault(url, MemoryStore()))
    return "s3://bucket/index"


def do(*words: object) -> int:
    return index.main([str(word) for word in words], Console(quiet=True))


def put(*words: object) -> int:
    return publish.main([*(str(word) for word in words), "--no-audit"], Console(quiet=True))


def events(place: str, folder: Path, *wheels: str) -> list[dict[str, Any]]:
    do("log", place, *wheels, "--json", folder / "log.json")
    found: list[dict[str, Any]] = json.loads((folder / "log.json").read_text())
    return found


def test_a_place_where_nothing_was_published_is_called_that(place: str, tmp_path: Path) -> None:
    for words in (
        ["log", place],
        ["yank", place, "a.whl", "--reason", "x"],
        ["promote", place, tmp_path / "to", "a.whl"],
    ):
        with pytest.raises(UsageError, match="there is no index in"):
            do(*words)
    assert not (tmp_path / "to").exists()
    put(small(tmp_path / "w"), "--to", place)
    for action in ("unyank", "log"):
        with pytest.raises(UsageError, match="Perhaps you meant"):
            do(action, place, small(tmp_path / "w").name.replace("sm90", "sm9O"))
    with pytest.raises(UsageError) as caught:
        do("promote", place, tmp_path / "to", "vllm==0.20.1")
    assert caught.value.why == f"its wheels are {small(tmp_path / 'w').name}"
    with pytest.raises(UsageError, match="FROM and TO are both"):
        do("promote", place, place, small(tmp_path / "w").name)
    for wrong in (place, "ftp://host/simple/"):
        with pytest.raises(UsageError, match="is not the URL of an index") as caught:
            do("mirror", wrong, tmp_path / "to", "vllm==0.20.1")
        assert "index -- promote" in caught.value.fix[1]
    put("--to", place, "--prune", small(tmp_path / "w").name)
    with pytest.raises(UsageError) as caught:
        do("yank", place, small(tmp_path / "w").name, "--reason", "x")
    assert caught.value.why == "all of its wheels were taken out"
    assert do("log", place, small(tmp_path / "w").name) == 0  # the log tells of wheels that are gone


def test_the_help_of_an_action_is_where_its_mistakes_say(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as caught:
        do("yank", "--nonsense", "a", "b", "--reason", "c")
    [fix] = caught.value.fix
    command = fix.partition(" lists")[0]
    assert command == "nox -s index -- yank --help"
    with pytest.raises(SystemExit) as ended:
        do(*command.removeprefix("nox -s index -- ").split())
    assert ended.value.code == 0
    assert "usage: nox -s index -- yank [-h]" in capsys.readouterr().out


def test_all_that_is_done_is_written_down_with_who_and_why(place: str, tmp_path: Path) -> None:
    wheel, other = small(tmp_path / "w"), small(tmp_path / "w", "1.0+cu130")
    put(wheel, other, "--to", place, "--who", "ann")
    put(wheel, other, "--to", place)  # nothing is done, nothing is written down
    do("yank", place, wheel, "--reason", "wrong on sm_89", "--who", "bob")
    do("yank", place, wheel, "--reason", "wrong on sm_89", "--dry-run")
    do("unyank", place, wheel.name)
    put("--to", place, "--prune", wheel.name, "--who", "eve")
    put(wheel, "--to", place)
    put("--to", place, "--prune", wheel.name, "--grace", "0")
    put(wheel, "--to", place)
    found = [(row["who"], row["action"], row["note"]) for row in events(place, tmp_path, wheel.name)]
    me = found[2][0]
    assert "@" in me
    assert found == [
        ("ann", "publish", ""),
        ("bob", "yank", "wrong on sm_89"),
        (me, "unyank", ""),
        ("eve", "remove", f"--prune {wheel.name}"),
        (me, "restore", ""),
        (me, "remove", f"--prune {wheel.name}"),
        (me, "sweep", ""),
        (me, "restore", ""),
    ]
    assert len(events(place, tmp_path)) == 9
    assert all(row["when"].endswith("Z") for row in events(place, tmp_path))


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_yanked_wheel_is_left_alone_unless_it_is_pinned(tmp_path: Path, installer: str) -> None:
    old, new = small(tmp_path / "w", "1.0+cu130"), small(tmp_path / "w", "2.0+cu130")
    put(old, new, "--to", "index")
    do("yank", "index", new.name, "--reason", 'hangs on "H100" <&>')
    python, environment = venv(tmp_path / "venv"), clean_environment(tmp_path)
    heads = {
        "pip": [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--index-url"],
        "uv": [tool("uv"), "pip", "install", "--python", str(python), "--dry-run", "--refresh", "--default-index"],
    }

    def takes(server: str, wanted: str) -> str:
        command = [*heads[installer], f"{server}/simple/", wanted]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return done.stdout + done.stderr

    with serve(tmp_path / "index") as server:
        assert "1.0+cu130" in takes(server.url, "vllm")
        pinned = takes(server.url, "vllm==2.0+cu130")
        assert "2.0+cu130" in pinned
        assert "hangs on" in pinned
        do("unyank", "index", new.name)
        assert "2.0+cu130" in takes(server.url, "vllm")
    check_index(tmp_path / "index")


def test_yank_shows_in_html_json_and_on_the_page_for_people(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    put(wheel, "--to", "index")
    do("yank", "index", wheel.name, "--reason", 'a "<b>"')
    page = json.loads((tmp_path / "index/simple/vllm/index.json").read_text())
    assert page["files"][0]["yanked"] == 'a "<b>"'
    assert 'data-yanked="a &quot;&lt;b&gt;&quot;"' in (tmp_path / "index/simple/vllm/index.html").read_text()
    people = (tmp_path / "index/index.html").read_text()
    assert 'yanked: a "<b>"' in html.unescape(people)
    assert "<b>" not in people
    do("yank", "index", wheel.name, "--reason", "")
    assert json.loads((tmp_path / "index/simple/vllm/index.json").read_text())["files"][0]["yanked"] is True
    for words in (
        ["yank", "index", "gone.whl", "--reason", "x"],
        ["yonk", "index"],
        ["yank", "ftp://x/y", "a", "--reason", "b"],
    ):
        with pytest.raises(UsageError):
            do(*words)


def signed_staging(tmp_path: Path, place: str) -> tuple[Path, Path, Path]:
    private, public = key_pair(tmp_path, "key")
    wheel = wheel_with_sbom(tmp_path)
    wheel.with_name(wheel.name + ".publish.attestation").write_bytes(attestation(wheel.name, file_sha256(wheel)))
    publish.main([str(wheel), "--to", place, "--sign-key", str(private)], Console(quiet=True))
    return wheel, private, public


def test_promote_gives_production_the_same_bytes_and_signatures(place: str, tmp_path: Path) -> None:
    wheel, _, public = signed_staging(tmp_path, place)
    do("promote", place, tmp_path / "production", wheel.name, "--dry-run")
    assert not (tmp_path / "production").exists()
    do("promote", place, tmp_path / "production", wheel.name, "--key", public)
    [path] = (tmp_path / "production/files").rglob("*.whl")
    assert path.read_bytes() == wheel.read_bytes()
    for suffix in (".intoto.jsonl", ".report.json"):
        assert path.with_name(path.name + suffix).read_bytes() == wheel.with_name(wheel.name + suffix).read_bytes()
    assert json.loads(path.with_name(path.name + ".provenance").read_text())["version"] == 1
    assert verify_command.main([str(path), "--key", str(public)], Console(quiet=True)) == 0
    check_index(tmp_path / "production")
    [event] = events(str(tmp_path / "production"), tmp_path)
    assert (event["action"], event["note"]) == ("promote", f"from {place}")
    record = json.loads(next((tmp_path / "production/entries").iterdir()).read_text())
    assert record["serves"] is not None  # it was audited again
    do("promote", place, tmp_path / "production", wheel.name)
    assert len(events(str(tmp_path / "production"), tmp_path)) == 1


def test_promote_refuses_what_is_yanked_unsigned_or_was_changed(tmp_path: Path) -> None:
    wheel, _, public = signed_staging(tmp_path, str(tmp_path / "staging"))
    stranger = key_pair(tmp_path, "stranger")[1]
    with pytest.raises(AuditError, match="another key"):
        do("promote", "staging", "production", wheel.name, "--key", stranger)
    do("yank", "staging", wheel.name, "--reason", "bad")
    with pytest.raises(PublishError, match="is yanked"):
        do("promote", "staging", "production", wheel.name)
    do("unyank", "staging", wheel.name)
    plain = small(tmp_path / "w", "3.0+cu130")
    put(plain, "--to", "staging")
    with pytest.raises(AuditError, match="is not signed"):
        do("promote", "staging", "production", plain.name, "--key", public)
    [published] = (tmp_path / "staging/files").rglob(wheel.name)
    report = published.with_name(published.name + ".report.json")
    good = report.read_bytes()
    report.write_bytes(good + b"\n")
    with pytest.raises(PublishError, match="than its record says"):
        do("promote", "staging", "production", wheel.name)
    report.write_bytes(good)
    _tamper(published)
    with pytest.raises(PublishError, match="than its record says"):
        do("promote", "staging", "production", wheel.name)
    assert not list((tmp_path / "production").rglob("*.whl"))


def test_mirror_takes_named_wheels_in_with_where_they_came_from(place: str, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "ours")
    wheel, _, _ = signed_staging(tmp_path, str(tmp_path / "theirs"))
    other = small(tmp_path / "w", "7.0")
    put(other, "--to", "theirs")
    with serve(tmp_path / "theirs") as server:
        url = f"{server.url}/simple/"
        do("mirror", url, place, wheel.name, "vllm==7.0", "--sign-key", private)
        for wrong in ("vllm==9", "x.whl"):
            with pytest.raises(UsageError):
                do("mirror", url, place, wrong)
        _tamper(next((tmp_path / "theirs/files").rglob(other.name)))
        with pytest.raises(PublishError, match="has another"):
            do("mirror", url, "elsewhere", "vllm==7.0")
    do("promote", place, "copy", wheel.name, other.name, "--key", public)
    [path] = (tmp_path / "copy/files").rglob(wheel.name)
    assert path.read_bytes() == wheel.read_bytes()
    assert path.with_name(path.name + ".provenance").is_file()
    found = events(place, tmp_path, wheel.name)
    assert [(row["action"], row["note"]) for row in found] == [("mirror", f"from {url}")]
    verify_command.main([str(path), "--key", str(public), "--json", str(tmp_path / "v.json")], Console(quiet=True))
    assert json.loads((tmp_path / "v.json").read_text())["index"] == url
    assert "Taken from" in (tmp_path / "copy/index.html").read_text()


def test_promote_says_why_an_audit_did_not_pass_and_names_each_wheel_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"level": "error", "code": "x", "where": "vllm/a.so", "text": "no GPU code"}
    bad, good = small(tmp_path / "w"), small(tmp_path / "w", "1.0+cu130")
    put_report(bad, ok=False, findings=[wrong])
    put(bad, good, "--to", "staging")
    with pytest.raises(AuditError, match="its audit did not pass") as caught:
        do("promote", "staging", "production", bad.name)
    assert caught.value.why == "vllm/a.so: no GPU code"
    capsys.readouterr()
    index.main(["promote", "staging", "production", good.name], Console())
    assert capsys.readouterr().err.count(good.name) == 1


def refused(url: str, folder: Path, cases: dict[str, tuple[str, str]]) -> None:
    """Ask an index for wheels that it does not have; compare what is said with (what, why)."""
    access = make_access(Cache(folder / "cache"), environment={}, indexes=Indexes())
    with SimpleClient(url, access) as client:
        for wanted, (what, why) in cases.items():
            with pytest.raises(UsageError) as caught:
                matching(client, wanted, url)
            assert what in caught.value.what
            assert caught.value.why == why


def test_an_index_of_json_pages_tells_what_it_has_instead(tmp_path: Path) -> None:
    labelled, plain = small(tmp_path / "w"), small(tmp_path / "w", "7.0")
    put(labelled, plain, "--to", "theirs")
    other = plain.name.replace("py3", "cp38")
    cases = {
        "vllm==9": ("has no wheel of vllm 9", "it has 7.0, 0.20.1+cu130.sm90"),
        "vllm==0.20.1": ("has no wheel of vllm 0.20.1", "it has 0.20.1+cu130.sm90, 7.0"),
        "vllm": ("'vllm' names no version", "it has 7.0, 0.20.1+cu130.sm90"),
        "vlm==7.0": ("has no project vlm. Perhaps you meant 'vllm'?", ""),
        "torch==2.9": ("has no project torch.", "its projects are vllm"),
        "x.whl": ("'x.whl' names no wheel", "Invalid wheel filename (wrong number of parts): 'x'"),
        other: (f"has no {other}", f"of this version it has {plain.name}"),
    }
    with serve(tmp_path / "theirs") as server:
        refused(f"{server.url}/simple/", tmp_path, cases)


def test_an_index_of_html_pages_tells_what_it_has_instead(tmp_path: Path) -> None:
    pages = {
        "": "".join(f'<a href="/simple/p{number}/">p{number}</a>' for number in range(2100))
        + '<a href="Flash_Attn/">Flash_Attn</a> <a href="../">up</a> <a href="mamba/#x">mamba</a>',
        "mamba": '<a href="mamba-1.0.tar.gz#sha256=0">mamba-1.0.tar.gz</a> <a href="mamba-2.zip">mamba-2.zip</a>',
        "flash-attn": '<a href="flash_attn-2.0-py3-none-any.whl">x</a> <a href="flash_attn-odd.whl">x</a>',
    }
    for name, text in pages.items():
        (tmp_path / "site/simple" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "site/simple" / name / "index.html").write_text(f"<!DOCTYPE html><html><body>{text}</body></html>")
    cases = {
        "mamba==1.0": ("has no wheel of mamba", "only sources: mamba-1.0.tar.gz, mamba-2.zip"),
        "flash-atn==2.0": ("has no project flash-atn. Perhaps you meant 'flash-attn'?", ""),
        "zebra==1": ("has no project zebra.", ""),
        "flash_attn==3": ("has no wheel of flash-attn 3", "it has 2.0"),
    }
    with serve(tmp_path / "site") as server:
        refused(f"{server.url}/simple/", tmp_path, cases)
