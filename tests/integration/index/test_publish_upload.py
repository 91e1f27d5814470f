"""Upload APIs: a server told to fail, and (large) devpi and pypiserver."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.commands import publish
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import PublishError, UsageError
from scripts.core.paths import ROOT
from scripts.downloads.indexes import Indexes
from scripts.index import upload
from scripts.index.reader import Listed, SimpleClient, html_files, html_projects, json_files, json_projects
from scripts.index.upload import Api, default_check_url, explain, without_secrets
from tests.accesses import make_access
from tests.integration.index.test_publish_static import sparse_wheel
from tests.integration.index_servers import free_port, netrc, nginx
from tests.integration.upload_servers import Index, devpi, pypiserver, small_index
from tests.support import wait_for
from tests.wheels import make_wheel

PLAIN = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nText.\n"


def small(folder: Path, text: str = "x = 1", size: int = 0, version: str = "0.20.1+cu130.sm90") -> Path:
    folder.mkdir(exist_ok=True)
    members = {"vllm/__init__.py": text.encode(), "vllm/data": os.urandom(size)}
    return make_wheel(folder, members, version=version, metadata=PLAIN, tags="py3-none-any")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc(tmp_path)))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setattr("scripts.index.upload.pause", lambda _: None)


@pytest.fixture
def index() -> Iterator[Index]:
    with small_index() as found:
        yield found


def run(wheel: Path, url: str, *more: str) -> int:
    check = [] if "--check-url" in more else ["--check-url", url + "simple/"]
    words = [str(wheel), "--to", url, *check, "--no-audit", *more]
    return publish.main(words, Console())


def test_an_upload_is_read_back_and_repeating_it_sends_nothing(index: Index, tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    assert run(wheel, index.url) == 0
    assert index.files == {wheel.name: wheel.read_bytes()}
    assert run(wheel, index.url) == 0
    assert index.posts == 1


def test_dry_run_uploads_nothing(index: Index, tmp_path: Path) -> None:
    assert run(small(tmp_path / "w"), index.url, "--dry-run") == 0
    assert not index.posts


def test_other_bytes_under_a_name_are_refused_before_anything_is_sent(index: Index, tmp_path: Path) -> None:
    run(small(tmp_path / "w"), index.url)
    with pytest.raises(PublishError, match="has another") as caught:
        run(small(tmp_path / "w2", "y = 2"), index.url)
    assert caught.value.exit_code == 10
    assert index.posts == 1


@pytest.mark.parametrize("answers", [[503], [503, 502], [0, 503], [0]])
def test_what_may_pass_is_tried_again(index: Index, tmp_path: Path, answers: list[int]) -> None:
    index.answers = list(answers)
    wheel = small(tmp_path / "w", size=1_000_000)
    assert run(wheel, index.url) == 0
    assert index.files[wheel.name] == wheel.read_bytes()
    assert index.posts == len(answers) + 1


@pytest.mark.parametrize(
    ("answers", "why", "posts"),
    [
        ([503] * 9, "answered 503", 3),
        ([413], "no file of this size", 1),
        ([403], "may not upload", 1),
        ([400], "other bytes under this name, or refuses", 1),
        ([418], "uv publish failed", 1),
    ],
)
def test_what_will_not_pass_is_explained(
    index: Index, tmp_path: Path, answers: list[int], why: str, posts: int
) -> None:
    index.answers = list(answers)
    with pytest.raises(PublishError) as caught:
        run(small(tmp_path / "w"), index.url)
    assert why in caught.value.why
    assert index.posts == posts
    assert not index.files


def test_wrong_credentials_are_told_and_never_shown(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UV_PUBLISH_USERNAME", "team")
    monkeypatch.setenv("UV_PUBLISH_PASSWORD", "hunter2hunter2")
    with pytest.raises(PublishError, match="cannot be read") as caught:
        run(small(tmp_path / "w"), index.url)
    assert "401" in caught.value.why
    assert "hunter2" not in f"{caught.value.args}{caught.value.detail}{capsys.readouterr()}"
    code, said = upload.run_uv_publish(small(tmp_path / "w"), Api(index.url, index.url), os.environ)
    assert code
    assert "accept the credentials" in explain(said, Api(index.url, index.url)).why


def test_credentials_never_reach_a_command_line(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    real = subprocess.Popen

    def spy(command: list[object], **options: Any) -> subprocess.Popen[str]:
        seen.append([str(word) for word in command])
        return real([str(word) for word in command], **options)

    monkeypatch.setattr("scripts.core.process.subprocess.Popen", spy)
    monkeypatch.setenv("UV_PUBLISH_USERNAME", "team")
    monkeypatch.setenv("UV_PUBLISH_PASSWORD", "secret")
    assert run(small(tmp_path / "w"), index.url) == 0
    assert seen
    assert "secret" not in str(seen)


def test_an_index_that_kept_a_part_only_is_caught(index: Index, tmp_path: Path) -> None:
    index.truncate = 10
    with pytest.raises(PublishError, match="serves another") as caught:
        run(small(tmp_path / "w"), index.url)
    assert "cut or changed" in caught.value.why


def test_an_index_that_does_not_list_or_gives_no_hash_is_told(index: Index, tmp_path: Path) -> None:
    index.hashes = False
    with pytest.raises(PublishError, match="gives no sha256"):
        run(small(tmp_path / "w"), index.url)
    with small_index() as other, pytest.raises(PublishError, match="does not list it"):
        run(small(tmp_path / "w3", version="3.0"), index.url, "--check-url", other.url)


def test_a_pypiserver_is_recognised(index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.banner = "<h1>Welcome to pypiserver!</h1>"
    run(small(tmp_path / "w"), index.url)
    assert "publishes the part that came" in capsys.readouterr().err


def test_an_index_that_answers_404_for_everything_is_not_taken_for_an_empty_one(index: Index, tmp_path: Path) -> None:
    index.blind = True
    with pytest.raises(PublishError, match="does not look like an index") as caught:
        run(small(tmp_path / "w"), index.url)
    assert "nothing was sent" in caught.value.what
    assert index.posts == 0


def test_other_bytes_are_seen_without_a_hash_and_under_another_spelling(index: Index, tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    index.files["VLLM-0.20.1+CU130.sm90-py3-none-any.whl"] = wheel.read_bytes()
    index.hashes = False
    assert run(wheel, index.url) == 0  # the same bytes: fetched, compared, left alone
    with pytest.raises(PublishError, match="has another"):
        run(small(tmp_path / "w2", "y = 2"), index.url)
    assert index.posts == 0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a company's own authority (ca.pem) and a certificate for 127.0.0.1 that it issued."""
    folder = tmp_path_factory.mktemp("ca")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=Our-Company",
        "req -newkey rsa:2048 -nodes -keyout host.key -out host.csr -subj /CN=127.0.0.1",
        "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out host.pem -days 2 -extfile ext",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed: apt-get install nginx-light")
def test_a_company_s_own_authority_works_for_uploads_too_and_an_unknown_one_is_called_that(
    index: Index, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nginx").mkdir()
    port = free_port()
    front = (
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {authority}/host.pem; "
        f"ssl_certificate_key {authority}/host.key; location / {{ proxy_pass {index.url}; }} }}"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with nginx(tmp_path, tmp_path / "nginx", upstream=front, port=port):
        url = f"https://127.0.0.1:{port}/"
        with pytest.raises(PublishError, match=r"certificate of 127\.0\.0\.1 was issued by an authority") as caught:
            run(small(tmp_path / "w"), url)
        assert "PIP_CERT" in caught.value.fix[0]
        # The index can be read, the upload cannot: uv's words are understood too.
        with pytest.raises(PublishError, match="could not be uploaded") as caught:
            run(small(tmp_path / "w"), url, "--check-url", index.url)
        assert "issued by an authority that this machine does not know" in caught.value.why
        assert index.posts == 0
        for number, name in enumerate(("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(authority / "ca.pem"))
                assert run(small(tmp_path / "w", version=f"{number}.0"), url) == 0
            assert index.posts == number + 1


def test_urls_with_credentials_or_without_host_are_refused(tmp_path: Path) -> None:
    wheel = small(tmp_path / "w")
    for url in ("https://me:hunter2@host/", "https://"):
        with pytest.raises(UsageError) as caught:
            run(wheel, url)
        assert "hunter2" not in str(caught.value.what)
    with pytest.raises(UsageError, match="static"):
        run(wheel, "https://host/", "--prune", "keep=1")


def test_an_index_that_cannot_be_reached_is_a_publish_error(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="cannot be reached"):
        run(small(tmp_path / "w"), f"http://127.0.0.1:{free_port()}/")


def test_hosted_indexes_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimpleClient, "files", lambda *_: {})
    wheel = small(tmp_path / "w")
    monkeypatch.setattr(upload, "LIMITS", (upload.Limit("host.invalid", 10, "a small one"),))
    with pytest.raises(PublishError, match="too large for a small one"):
        run(wheel, "https://up.host.invalid/x/")


@pytest.mark.parametrize(
    ("url", "check"),
    [
        ("https://h/team/prod/", "https://h/team/prod/+simple/"),
        ("https://g/api/v4/projects/7/packages/pypi", "https://g/api/v4/projects/7/packages/pypi/simple/"),
        ("https://e-python.pkg.dev/p/r/", "https://e-python.pkg.dev/p/r/simple/"),
        ("https://a/artifactory/api/pypi/r", "https://a/artifactory/api/pypi/r/simple/"),
        (
            "https://pkgs.dev.azure.com/o/_packaging/f/pypi/upload/",
            "https://pkgs.dev.azure.com/o/_packaging/f/pypi/simple/",
        ),
        ("https://u/legacy/", "https://u/simple/"),
    ],
)
def test_the_index_of_known_services_is_guessed(url: str, check: str) -> None:
    assert default_check_url(url) == check


def test_secrets_are_taken_out_of_what_tools_say() -> None:
    said = without_secrets("at https://u:pw@h/x with tok-123456", {"UV_PUBLISH_TOKEN": "tok-123456"})
    assert said == "at https://h/x with ***"


def test_html_pages_are_read_too() -> None:
    page = f'<a href="../../x/a%2Bb-1-py3-none-any.whl#sha256={"a" * 64}">a</a>'
    page += '<a href="b-1.tar.gz">b</a><a href="/">up</a>'
    assert html_files(page) == {
        "a+b-1-py3-none-any.whl": Listed("a+b-1-py3-none-any.whl", "../../x/a%2Bb-1-py3-none-any.whl", "a" * 64),
        "b-1.tar.gz": Listed("b-1.tar.gz", "b-1.tar.gz"),
    }


@given(
    st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.text() | st.integers(),
            lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["files", "filename", "hashes", "sha256"]), x),
        ).map(lambda v: __import__("json").dumps(v).encode()),
    )
)
def test_any_page_of_an_index_is_read_or_refused(data: bytes) -> None:
    with suppress(PublishError):
        json_files(data)
    html_files(data.decode("latin-1"))
    for name in (*json_projects(data), *html_projects(data.decode("latin-1"))):
        assert name


@pytest.mark.servers
@pytest.mark.large
def test_devpi_upload_repeat_other_bytes_and_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with devpi(tmp_path) as url:
        wheel = small(tmp_path / "w")
        assert publish.main([str(wheel), "--to", url, "--no-audit"], Console()) == 0
        assert publish.main([str(wheel), "--to", url, "--no-audit"], Console()) == 0
        with pytest.raises(PublishError, match="has another"):
            publish.main([str(small(tmp_path / "w2", "y = 1")), "--to", url, "--no-audit"], Console())
        monkeypatch.setenv("UV_PUBLISH_USERNAME", "team")
        monkeypatch.setenv("UV_PUBLISH_PASSWORD", "wrong-password")
        with pytest.raises(PublishError):
            publish.main([str(small(tmp_path / "w3", version="9")), "--to", url, "--no-audit"], Console())
        monkeypatch.delenv("UV_PUBLISH_PASSWORD")
        monkeypatch.delenv("UV_PUBLISH_USERNAME")
        assert listed(url) == {wheel.name}


def listed(url: str) -> set[str]:
    # Nothing is kept: its cache is any folder.
    access = make_access(Cache(Path()), environment={}, indexes=Indexes())
    with SimpleClient(url + "+simple/", access) as client:
        return set(client.files("vllm"))


@pytest.mark.large
def test_devpi_a_killed_publisher_leaves_nothing_visible_and_the_next_one_succeeds(tmp_path: Path) -> None:
    traffic = Traffic()
    with devpi(tmp_path) as url, slow_proxy(url, 20_000_000, traffic=traffic) as slow:
        wheel = small(tmp_path / "w", size=60_000_000)
        words = [sys.executable, "-m", "scripts.commands.publish", str(wheel), "--no-audit", "--to", slow]
        child = subprocess.Popen([*words, "--check-url", url + "+simple/"], cwd=ROOT)
        wait_for(lambda: traffic.sent > 20_000_000)  # a third of the wheel, and a second of its three
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        wait_for(lambda: traffic.open == 0)
        assert listed(url) == set()
        assert publish.main([str(wheel), "--to", url, "--no-audit"], Console()) == 0
        assert listed(url) == {wheel.name}


@pytest.mark.large
def test_devpi_413_is_explained(tmp_path: Path) -> None:
    with devpi(tmp_path, "--max-request-body-size", "1000000") as url:
        with pytest.raises(PublishError) as caught:
            publish.main([str(small(tmp_path / "w", size=3_000_000)), "--to", url, "--no-audit"], Console())
        assert "no file of this size" in caught.value.why


@pytest.mark.large
def test_devpi_503_from_a_proxy_then_recovery_and_a_connection_cut_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with devpi(tmp_path) as url:
        port = urlsplit(url).port
        (tmp_path / "nginx").mkdir()
        front = free_port()
        maintenance = (
            f"server {{ listen 127.0.0.1:{front}; client_max_body_size 2g; location / {{ "
            f"if (-f {tmp_path}/down) {{ return 503; }} proxy_pass http://127.0.0.1:{port}; "
            f"proxy_set_header X-outside-url http://127.0.0.1:{front}; }} }}"
        )
        (tmp_path / "down").write_text("")
        monkeypatch.setattr("scripts.index.upload.pause", lambda _: (tmp_path / "down").unlink(missing_ok=True))
        with nginx(tmp_path, tmp_path / "nginx", upstream=maintenance, port=front):
            wheel = small(tmp_path / "w")
            words = [str(wheel), "--to", f"http://127.0.0.1:{front}/team/prod/", "--check-url", url + "+simple/"]
            assert publish.main([*words, "--no-audit"], Console()) == 0
        with slow_proxy(url, 10**12, cut_first=30_000_000) as broken:
            large = small(tmp_path / "w2", size=60_000_000, version="2.0")
            words = [str(large), "--to", broken, "--check-url", url + "+simple/", "--no-audit"]
            assert publish.main(words, Console()) == 0
        assert listed(url) == {wheel.name, large.name}


def memory_of(pid: int) -> int:
    """Return the bytes that a process and those it started hold now."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
    return 0


@pytest.mark.large
def test_devpi_300_mb_under_200_mb_of_client_memory(tmp_path: Path) -> None:
    with devpi(tmp_path) as url:
        wheel = sparse_wheel(tmp_path / "w", "0.20.1+cu130.sm90", 300_000_000)
        words = [sys.executable, "-m", "scripts.commands.publish", str(wheel), "--no-audit", "--to", url]
        started, peak = time.monotonic(), 0
        with subprocess.Popen(words, cwd=ROOT) as publisher:
            while publisher.poll() is None:
                peak = max(peak, memory_of(publisher.pid))
                time.sleep(0.02)
        assert publisher.returncode == 0
        sys.stderr.write(f"\n300 MB: {time.monotonic() - started:.1f} s, peak {peak / 1e6:.0f} MB\n")
        assert 20e6 < peak < 200e6
        assert listed(url) == {wheel.name}


@pytest.mark.servers
@pytest.mark.large
def test_a_real_pypiserver_is_recognised_and_its_half_wheel_is_not_taken_for_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pypiserver(tmp_path) as url:
        wheel = small(tmp_path / "w", size=40_000_000)
        words = [str(wheel), "--no-audit", "--check-url", url + "simple/"]
        with slow_proxy(url, 10**12, cut_first=20_000_000, cuts=99) as broken, pytest.raises(PublishError):
            publish.main([*words, "--to", broken], Console())
        assert "publishes the part that came" in capsys.readouterr().err
        with pytest.raises(PublishError, match="has another"):
            publish.main([*words, "--to", url], Console())


@pytest.mark.large
def test_a_pypiserver_that_overwrites_keeps_what_it_has(tmp_path: Path) -> None:
    with pypiserver(tmp_path, "--overwrite") as url:
        wheel, other = small(tmp_path / "w"), small(tmp_path / "w2", "y = 2")
        assert publish.main([str(wheel), "--no-audit", "--to", url], Console()) == 0  # /simple/ is found by itself
        assert publish.main([str(wheel), "--no-audit", "--to", url], Console()) == 0
        with pytest.raises(PublishError, match="has another"):
            publish.main([str(other), "--no-audit", "--to", url], Console())
        # A check index that knows nothing, as devpi's would be here, is not believed.
        with pytest.raises(PublishError, match=r"does not look like an index|cannot be re"):
            publish.main([str(other), "--no-audit", "--to", url, "--check-url", f"{url}+simple/"], Console())
        assert (tmp_path / "packages" / wheel.name).read_bytes() == wheel.read_bytes()


def close_all(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


@dataclass
class Traffic:
    """What a proxy has passed on to the server so far, in bytes, and how many connections it holds."""

    sent: int = 0
    open: int = 0


@contextmanager
def slow_proxy(
    url: str, rate: int, *, cut_first: int = 0, cuts: int = 1, traffic: Traffic | None = None
) -> Iterator[str]:
    """Pass connections on at `rate` bytes a second; cut the first `cuts` that send so many bytes."""
    counted = traffic or Traffic()
    target = urlsplit(url)
    server = socket.create_server(("127.0.0.1", 0))
    left = [cuts if cut_first else 0]
    opened = [server]

    def pump(source: socket.socket, sink: socket.socket, *, limited: bool) -> None:
        sent, began = 0, time.monotonic()
        try:
            while data := source.recv(65536):
                sink.sendall(data)
                sent += len(data)
                if limited:
                    counted.sent += len(data)
                    time.sleep(max(0.0, sent / rate - (time.monotonic() - began)))
                    if left[0] and sent > cut_first:
                        left[0] -= 1
                        break
        except OSError:
            pass
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        counted.open -= limited

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            upstream = socket.create_connection((str(target.hostname), target.port or 80))
            opened.extend((client, upstream))
            counted.open += 1
            threading.Thread(target=pump, args=(client, upstream), kwargs={"limited": True}, daemon=True).start()
            threading.Thread(target=pump, args=(upstream, client), kwargs={"limited": False}, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}{target.path}"
    finally:
        close_all(opened)
