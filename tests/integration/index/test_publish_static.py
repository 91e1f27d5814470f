"""The static index: pages, installers against a real server, kill -9 at every step, publishers at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.commands import publish
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import AuditError, PublishError, UsageError
from scripts.core.files import file_sha256
from scripts.core.paths import ROOT
from scripts.index.entry import make_entry, read_entry
from tests.builds import put_report
from tests.fatbins import container, sass, shared_object
from tests.integration.index_servers import clean_environment, serve, tool, venv
from tests.wheels import make_wheel

PLAIN = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nRequires-Python: >=3.10,<3.14\n\nText.\n"


def small(folder: Path, version: str = "0.20.1+cu130.sm90", text: str = "x = 1", size: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    members = {"vllm/__init__.py": text.encode(), "vllm/data": os.urandom(size)}
    return make_wheel(folder, members, version=version, metadata=PLAIN, tags="py3-none-any")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WHEELSMITH_INVOKED_FROM", str(tmp_path))
    monkeypatch.setattr("os.fsync", lambda _: None)  # the tests' disk is not what is tested
    return tmp_path / "cache"


def run(*arguments: object) -> int:
    return publish.main([str(word) for word in arguments], Console(quiet=True))


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def check_index(root: Path) -> dict[str, set[str]]:
    """Check what readers see: every page whole, every file listed there with its digest. Return names per page."""
    listed: dict[str, set[str]] = {}
    for page in root.rglob("index.json"):
        data = json.loads(page.read_bytes())
        for file in data.get("files", []):
            listed.setdefault(f"{page.relative_to(root)}", set()).add(file["filename"])
            _check_file(root, page, file["url"], file["hashes"]["sha256"], file["core-metadata"]["sha256"])
            assert _target(root, page, file["url"]).stat().st_size == file["size"]
    for page in root.rglob("*/vllm/index.html"):
        text = page.read_text()
        assert text.endswith("</html>\n")
        for link in Links(text).found:
            url, _, fragment = str(link["href"]).partition("#sha256=")
            assert "+" not in url
            _check_file(root, page, url, fragment, str(link["data-core-metadata"]).removeprefix("sha256="))
            listed.setdefault(f"{page.relative_to(root)}", set()).add(unquote(url).rsplit("/", 1)[-1])
    return listed


def _target(root: Path, page: Path, url: str) -> Path:
    return root / unquote(urljoin(f"/{page.relative_to(root)}", url)).lstrip("/")


def _check_file(root: Path, page: Path, url: str, sha256: str, metadata: str) -> None:
    target = _target(root, page, url)
    assert file_sha256(target) == sha256
    assert file_sha256(target.with_name(target.name + ".metadata")) == metadata


def test_pages_list_a_wheel_under_all_its_cuda_its_version_and_its_variant(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    assert run(wheel, "--to", "index", "--no-audit") == 0
    listed = check_index(tmp_path / "index")
    roots = ("simple", "cu130", "vllm/0.20.1", "vllm/0.20.1/cu130-sm90")
    assert set(listed) == {f"{root}/vllm/index.{kind}" for root in roots for kind in ("html", "json")}
    assert all(names == {wheel.name} for names in listed.values())
    page = json.loads((tmp_path / "index/simple/vllm/index.json").read_text())
    [file] = page["files"]
    assert page["meta"] == {"api-version": "1.3"}
    assert page["versions"] == ["0.20.1+cu130.sm90"]
    assert "%2B" in file["url"]
    assert file["yanked"] is False
    assert file["provenance"] is None
    assert file["requires-python"] == ">=3.10,<3.14"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", file["upload-time"])
    html = (tmp_path / "index/simple/vllm/index.html").read_text()
    assert 'data-requires-python="&gt;=3.10,&lt;3.14"' in html
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "index", capture_output=True, check=False)
    assert sums.returncode == 0


def test_the_same_bytes_are_a_no_op_and_other_bytes_are_refused(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    run(wheel, "--to", "index", "--no-audit")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*") if path.is_file()}
    run(wheel, "--to", "index", "--no-audit", "--json", "done.json")
    assert json.loads((tmp_path / "done.json").read_text())["wheels"][0]["state"] == "unchanged"
    after = {path: path.stat().st_mtime_ns for path in before if path.name != ".publish.lock"}
    assert all(before[path] == when for path, when in after.items())
    other, third = small(tmp_path / "w2", text="y = 1"), small(tmp_path / "w3", version="0.20.2+cu130")
    with pytest.raises(PublishError) as caught:
        run(third, other, "--to", "index", "--no-audit")
    assert caught.value.exit_code == 10
    assert file_sha256(wheel) in caught.value.why
    assert file_sha256(other) in caught.value.why
    assert "0.20.2" not in (tmp_path / "index/SHA256SUMS").read_text()  # nothing was sent before all were looked at


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert run(small(tmp_path / "w"), "--to", "index", "--no-audit", "--dry-run") == 0
    assert not (tmp_path / "index").exists()


def test_a_wheel_without_a_passed_audit_is_left_out_or_refused_when_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = small(tmp_path / "w", "1.0+cu130"), small(tmp_path / "w", "2.0+cu130")
    for wheel, ok in ((good, True), (bad, False)):
        wrong = [] if ok else [{"level": "error", "code": "x", "where": "vllm/a.so", "text": "no GPU code"}]
        put_report(wheel, ok=ok, findings=wrong, recipe={"name": "mine", "digest": "1", "notice": "mini"})
    missing = small(tmp_path / "w", "3.0+cu130")
    assert run("--wheelhouse", tmp_path / "w", "--to", "index") == 0
    [names] = {frozenset(names) for names in check_index(tmp_path / "index").values()}
    assert names == {good.name}
    said = capsys.readouterr().err
    assert f"{bad.name} is left out: its audit did not pass: vllm/a.so: no GPU code (--no-audit" in said
    assert f"{missing.name} is left out: it has no audit report about these bytes" in said
    with pytest.raises(PublishError, match="its audit did not pass") as caught:
        run(bad, "--to", "index")
    assert caught.value.why == "vllm/a.so: no GPU code"
    good.unlink()
    with pytest.raises(UsageError, match="no wheel of "):
        run("--wheelhouse", tmp_path / "w", "--to", "index")
    published = next((tmp_path / "index/files").rglob("*.report.json"))
    assert json.loads(published.read_text())["audit"]["ok"] is True


@pytest.mark.parametrize("where", ["", "no"])
def test_nothing_to_publish_is_said(tmp_path: Path, where: str) -> None:
    (tmp_path / "w").mkdir()
    with pytest.raises(UsageError):
        run(*[tmp_path / "no.whl"] * bool(where), "--wheelhouse", tmp_path / "w", "--to", "index")


def test_half_a_wheel_is_refused(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w", size=100_000)
    wheel.write_bytes(wheel.read_bytes()[:50_000])
    with pytest.raises(AuditError):
        run(wheel, "--to", "index", "--no-audit")


def test_a_wheel_that_changes_while_it_is_published_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = small(tmp_path / "w")
    monkeypatch.setattr("scripts.report.wheelhouse.known_sha256", lambda *_: "0" * 64)
    with pytest.raises(PublishError, match="changed while"):
        run(wheel, "--to", "index", "--no-audit")
    assert not [path for path in (tmp_path / "index/files").rglob("*") if path.is_file()]


def test_the_audit_of_every_gpu_gets_into_the_record(tmp_path: Path) -> None:
    units = {"a.cu": container(sass("90", "a"), sass("80", "a"))}
    library = shared_object(tmp_path / "x.so", units).read_bytes()
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="1.0+cu130")
    put_report(wheel)
    run(wheel, "--to", "index")
    [path] = (tmp_path / "index/entries").iterdir()
    entry = json.loads(path.read_text())
    served = {row["arch"]: row for row in entry["serves"]}
    assert {"8.0", "8.6", "8.9", "9.0"} == set(served)
    assert served["8.6"]["compatible"] == 1
    assert served["9.0"]["native"] == 1
    assert entry["torch"] == "==2.9.1"


def test_prune_takes_out_pages_and_files_and_keeps_the_newest(tmp_path: Path) -> None:
    wheels = [small(tmp_path / "w", f"{version}+cu130") for version in ("1.0", "1.1", "1.10")]
    other = small(tmp_path / "w", "0.9+cu128")
    run(*wheels, other, "--to", "index", "--no-audit")
    run("--to", "index", "--prune", "keep=2")
    listed = check_index(tmp_path / "index")
    assert listed["simple/vllm/index.html"] == {wheels[1].name, wheels[2].name, other.name}
    assert not (tmp_path / "index/vllm/1.0").exists()
    assert len(list((tmp_path / "index/files").iterdir())) == 4  # readers may just fetch it
    run("--to", "index", "--prune", "keep=2", "--grace", "0")
    assert len(list((tmp_path / "index/files").iterdir())) == 3
    run("--to", "index", "--prune", wheels[1].name)
    run("--to", "index", "--prune", "older=1d", "--dry-run")
    assert check_index(tmp_path / "index")["simple/vllm/index.json"] == {wheels[2].name, other.name}
    for rule in ("keep=0", "older=3", "nonsense", "gone.whl"):
        with pytest.raises(UsageError):
            run("--to", "index", "--prune", rule)


def test_a_damaged_record_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    run(small(tmp_path / "w"), "--to", "index", "--no-audit")
    [record] = (tmp_path / "index/entries").iterdir()
    good = record.read_bytes()
    for bad in (good[:100], b"[]", good.replace(b"sm90", b"sm80"), b"\xff"):
        record.write_bytes(bad)
        with pytest.raises(PublishError, match="record"):
            run(small(tmp_path / "w", "2.0+cu130"), "--to", "index", "--no-audit")


@given(st.data())
def test_no_record_however_it_was_edited_leads_outside_or_crashes(data: st.DataObject) -> None:
    good = {
        "filename": "vllm-1.0-py3-none-any.whl",
        "name": "vllm",
        "version": "1.0",
        "sha256": "a" * 64,
        "size": 1,
        "metadata_sha256": "b" * 64,
        "requires_python": "",
        "uploaded": "",
        "torch": "",
        "notice": "",
        "extras": {".report.json": ""},
        "serves": None,
    }
    field = data.draw(st.sampled_from(sorted(good)))
    good[field] = data.draw(st.one_of(st.text(), st.none(), st.sampled_from(["../x", "/etc/x"]), st.lists(st.text())))
    try:
        entry = read_entry(json.dumps(good).encode(), "entries/vllm-1.0-py3-none-any.whl.json")
    except PublishError:
        return
    places = [entry.key, entry.record, *entry.roots, *(entry.key + suffix for suffix in entry.extras)]
    assert not any(".." in place or place.startswith("/") for place in places)


def test_a_target_that_cannot_be_written_is_a_publish_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="file"):
        run(small(tmp_path / "w"), "--to", "file/index", "--no-audit")


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, cache: Cache) -> None:
    from scripts.report import wheelhouse

    path = tmp_path / "x"
    path.write_bytes(b"one")
    time.sleep(1.1)
    first = wheelhouse.known_sha256(path, cache)
    [remembered] = (cache.root / "digests").iterdir()
    remembered.write_text("f" * 64)
    assert wheelhouse.known_sha256(path, cache) == "f" * 64 != first
    path.write_bytes(b"two")
    assert wheelhouse.known_sha256(path, cache) == hashlib.sha256(b"two").hexdigest()


# For N = 1, 2, ...: copies the index and forks a publisher that kills itself at its N-th change of a file in the copy.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from scripts.commands import publish
from scripts.core.console import Console
os.fsync = lambda _: None  # kill -9 loses nothing that was written
before, arguments = sys.argv[1], sys.argv[2:]
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
step, killed = 0, True
while killed:
    step += 1
    root = f"{before}-killed-{step}"
    shutil.copytree(before, root)
    if child := os.fork():
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        continue
    count = 0
    def hook(event, args):
        global count
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in CHANGES) and root in str(args[:2]):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    publish.main([*arguments, "--to", root], Console(quiet=True))
    os._exit(0)
"""


def kill_everywhere(before: Path, *arguments: object) -> list[Path]:
    """Publish into a copy of an index, killed at every step; return the copies, the last of a run that got through."""
    command = [sys.executable, "-c", KILLER, str(before), *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return sorted(before.parent.glob(f"{before.name}-killed-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))


@pytest.mark.builds
@pytest.mark.large
def test_kill_9_at_every_step_leaves_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    old, new = small(tmp_path / "w", "1.0+cu130"), small(tmp_path / "w", "2.0+cu130")
    run(old, "--to", "index", "--no-audit")
    copies = kill_everywhere(tmp_path / "index", new, "--no-audit")
    assert len(copies) > 60
    seen = set()
    for copy in copies:
        for names in check_index(copy).values():
            assert names in ({old.name}, {old.name, new.name}, {new.name})
            seen.add(frozenset(names))
    assert len(seen) == 3
    for copy in copies[::12]:  # the next run goes on
        run(new, "--to", copy, "--no-audit")
        listed = check_index(copy)
        assert listed["simple/vllm/index.html"] == {old.name, new.name}
        assert listed["vllm/2.0/vllm/index.json"] == {new.name}
        assert not list(copy.rglob("*.partial"))


@pytest.mark.builds
@pytest.mark.large
def test_kill_9_while_pruning_never_leaves_a_page_that_lists_what_is_gone(tmp_path: Path) -> None:
    old, new = small(tmp_path / "w", "1.0+cu130"), small(tmp_path / "w", "2.0+cu130")
    run(old, new, "--to", "index", "--no-audit")
    copies = kill_everywhere(tmp_path / "index", "--prune", "keep=1", "--grace", "0")
    for copy in copies:
        check_index(copy)
    for copy in [*copies[::5], copies[-1]]:  # the next run goes on
        run("--to", copy, "--prune", "keep=1", "--grace", "0")
        assert {frozenset(names) for names in check_index(copy).values()} == {frozenset([new.name])}
        assert len(list((copy / "files").iterdir())) == 1


# A publisher per wheel, all at once.
TOGETHER = """
import os, sys
from scripts.commands import publish
from scripts.core.console import Console
os.fsync = lambda _: None
children = []
for wheel in sys.argv[2:]:
    children.append(os.fork())
    if not children[-1]:
        os._exit(publish.main([wheel, "--no-audit", "--to", sys.argv[1]], Console(quiet=True)))
print([os.waitpid(child, 0)[1] for child in children])
"""


def test_eight_publishers_at_once_do_not_lose_wheels(tmp_path: Path) -> None:
    wheels = [small(tmp_path / "w", f"1.{number}+cu130") for number in range(8)]
    command = [sys.executable, "-c", TOGETHER, str(tmp_path / "index"), *map(str, wheels)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str([0] * 8), done.stderr
    listed = check_index(tmp_path / "index")
    assert listed["simple/vllm/index.html"] == listed["cu130/vllm/index.json"] == {wheel.name for wheel in wheels}


Install = Callable[[Path, str, str], list[str]]


def pip(python: Path, url: str, wanted: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--python", str(python), "install", "--index-url", url, wanted]


def uv(python: Path, url: str, wanted: str) -> list[str]:
    return [tool("uv"), "pip", "install", "--python", str(python), "--default-index", url, wanted]


@pytest.mark.parametrize("install", [pip, uv])
def test_installers_resolve_by_metadata_alone_and_refuse_a_tampered_wheel(tmp_path: Path, install: Install) -> None:
    wheel = small(tmp_path / "w", size=3_000_000)
    run(wheel, "--to", "index", "--no-audit")
    python, environment = venv(tmp_path / "venv"), clean_environment(tmp_path)
    with serve(tmp_path / "index") as server:
        index = f"{server.url}/vllm/0.20.1/cu130-sm90/"
        command = install(python, index, "vllm==0.20.1+cu130.sm90")
        subprocess.run([*command, "--dry-run"], env=environment, check=True, capture_output=True)
        assert server.bytes_of(".metadata") == len(PLAIN.format(name="vllm", version="0.20.1+cu130.sm90"))
        assert server.bytes_of(".whl") == 0
        assert [path for path in server.sent if path.endswith("index.json")]
        published = next((tmp_path / "index/files").rglob("*.whl"))
        good = published.read_bytes()
        _tamper(published)
        refused = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert refused.returncode
        assert re.search(r"hash mismatch|not match the hashes", refused.stderr, re.IGNORECASE), refused.stderr
        published.write_bytes(good)
        subprocess.run(command, env=environment, check=True, capture_output=True)
    done = subprocess.run([python, "-c", "import vllm"], cwd=tmp_path, check=False)
    assert done.returncode == 0


def _tamper(wheel: Path) -> None:
    """Change a file in a wheel, the rest stays right."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["vllm/__init__.py"] = b"print('gotcha')"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def sparse_wheel(folder: Path, version: str, size: int) -> Path:
    """Write a wheel of any size that takes no disk: a hole before the archive, which the format allows."""
    folder.mkdir(exist_ok=True)
    seed = small(folder / "seed", version, text=f"# {version}")
    path = folder / seed.name
    with path.open("wb") as file:
        file.seek(size)
        with zipfile.ZipFile(seed) as source, zipfile.ZipFile(file, "w") as archive:
            for member in source.infolist():
                archive.writestr(member, source.read(member))
    seed.unlink()
    return path


@pytest.mark.large
def test_one_new_wheel_among_fifty_of_300_mb_takes_time_for_the_one(tmp_path: Path) -> None:
    wheels = [sparse_wheel(tmp_path / "w", f"0.{number}+cu130", 300_000_000) for number in range(50)]
    time.sleep(1.1)
    rest, new = wheels[:-1], wheels[-1]
    started = time.monotonic()
    run(*rest, "--to", "index", "--no-audit")
    first = time.monotonic() - started
    started = time.monotonic()
    run(new, *rest, "--to", "index", "--no-audit")
    second = time.monotonic() - started
    started = time.monotonic()
    run(*wheels, "--to", "index", "--no-audit")
    third = time.monotonic() - started
    sys.stderr.write(f"\n49 wheels {first:.1f} s, one more {second:.2f} s, nothing new {third:.2f} s\n")
    assert len(check_index(tmp_path / "index")["simple/vllm/index.json"]) == 50
    assert second < first / 8
    assert third < 3


@pytest.mark.parametrize(
    ("requires", "shown"),
    [
        ("torch==2.9.1", "==2.9.1"),
        ("torch (==2.9.1)", "==2.9.1"),
        ("Torch<3,>=2.11", ">=2.11,<3"),
        ('torch==1.0 ; extra == "old"', ""),
        ("torchvision==0.24", ""),
        ("torch @@ nonsense", ""),
    ],
)
def test_the_torch_that_a_wheel_asks_for_is_in_its_record_be_it_one_or_a_range(
    tmp_path: Path, requires: str, shown: str
) -> None:
    metadata = PLAIN.replace("\n\n", f"\nRequires-Dist: numpy\nRequires-Dist: {requires}\n\n")
    wheel = make_wheel(tmp_path, {"vllm/a.py": b""}, version="1.0+cu130", metadata=metadata, tags="py3-none-any")
    entry, _ = make_entry(wheel, file_sha256(wheel), audit=False)
    assert entry.torch == shown
