from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.core.errors import FetchError
from scripts.downloads.indexes import Indexes, parse_pip_config, read_indexes, redacted

LISTED = """
:env:.extra-index-url='https://env/simple'
global.cert='/etc/ca.pem'
global.index-url='https://user:secret@mirror/simple'
global.extra-index-url='https://one/simple\\nhttps://two/simple'
global.timeout='60'
install.trusted-host='mirror other:8080'
download.find-links='/wheels /more'
not a line
"""


def test_pip_s_settings_are_read_with_pip_s_precedence() -> None:
    read = parse_pip_config(LISTED, {})
    assert read.index_url == "https://user:secret@mirror/simple"
    assert read.extra_index_urls == ("https://env/simple",)
    assert read.find_links == ("/wheels", "/more")
    assert read.trusted_hosts == ("mirror", "other:8080")
    assert read.cert == "/etc/ca.pem"
    assert read.all_index_urls == ("https://user:secret@mirror/simple", "https://env/simple")


def test_the_environment_wins_over_every_file() -> None:
    read = parse_pip_config(
        LISTED, {"PIP_INDEX_URL": "https://mine/simple", "PIP_EXTRA_INDEX_URL": "https://a file:///b"}
    )
    assert read.all_index_urls == ("https://mine/simple", "https://a", "file:///b")


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("True", True), ("on", True), ("0", False), ("", False)])
def test_no_index_leaves_only_find_links(text: str, expected: object) -> None:
    read = parse_pip_config("", {"PIP_NO_INDEX": text, "PIP_FIND_LINKS": "/w"})
    assert read.no_index == expected
    assert bool(read.all_index_urls) != expected


def test_without_settings_the_public_index_is_used() -> None:
    assert parse_pip_config("", {}) == Indexes()
    assert Indexes().all_index_urls == ("",)


def test_what_pip_itself_reads_from_its_files_is_found(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://from-file/simple\nextra-index-url =\n  https://b/s\n  https://c/s\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    found = read_indexes({**environment, "PIP_CONFIG_FILE": str(config)})
    assert found.all_index_urls == ("https://from-file/simple", "https://b/s", "https://c/s")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:8443/simple?token=x#y", "https://host:8443/simple"),
        ("https://host/simple", "https://host/simple"),
        ("/some/folder", "/some/folder"),
        ("", "the public package index"),
    ],
)
def test_credentials_never_show(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_uv_gets_the_same_indexes() -> None:
    indexes = Indexes("https://main/s", ("https://a/s", "https://b/s"), ("/w", "/x"), ("h", "i:1"), "/ca.pem")
    found = indexes.uv_environment({"HOME": "/h"})
    assert found["HOME"] == "/h"
    assert found["UV_DEFAULT_INDEX"] == "https://main/s"
    assert found["UV_INDEX"] == "https://a/s https://b/s"
    assert found["UV_FIND_LINKS"] == "/w,/x"
    assert found["UV_INSECURE_HOST"] == "h i:1"
    assert found["SSL_CERT_FILE"] == "/ca.pem"
    assert "UV_NO_INDEX" not in found


def test_without_settings_uv_keeps_its_own_defaults() -> None:
    found = Indexes().uv_environment({})
    assert set(found) == {"UV_INDEX_STRATEGY"}
    assert "UV_DEFAULT_INDEX" not in Indexes("https://main/s", no_index=True).uv_environment({})


@pytest.mark.parametrize(
    ("variable", "not_set"),
    [
        ("UV_DEFAULT_INDEX", ""),
        ("UV_INDEX", ""),
        ("UV_INDEX_URL", "UV_DEFAULT_INDEX"),
        ("UV_EXTRA_INDEX_URL", "UV_INDEX"),
    ],
)
def test_the_user_s_own_uv_settings_win(variable: str, not_set: str) -> None:
    found = Indexes("https://main/s", ("https://a/s",)).uv_environment({variable: "https://mine/s"})
    assert found[variable] == "https://mine/s"
    assert not not_set or not_set not in found


def test_uv_itself_finds_packages_in_every_find_links_folder(tmp_path: Path) -> None:
    for folder, name in (("one", "left"), ("two", "right")):
        (tmp_path / folder).mkdir()
        with zipfile.ZipFile(tmp_path / folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    folders = (str(tmp_path / "one"), str(tmp_path / "two"))
    environment = Indexes(find_links=folders, no_index=True).uv_environment(
        {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "uv"), "UV_NO_CONFIG": "1"}
    )
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [uv, "pip", "compile", "--offline", "-"],
        input="left\nright\n",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "left==1.0" in done.stdout
    assert "right==1.0" in done.stdout


def test_certificates_come_from_pip_s_setting_or_the_environment(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(FetchError, match=r"ca\.pem") as raised:
        Indexes(cert=str(missing)).ssl_context({})
    assert "PIP_CERT" in raised.value.fix[0]
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        with pytest.raises(FetchError):
            Indexes().ssl_context({name: str(missing)})
    missing.write_text("not a certificate")
    with pytest.raises(FetchError):
        Indexes().ssl_context({"REQUESTS_CA_BUNDLE": str(missing)})
    folder = {"REQUESTS_CA_BUNDLE": str(tmp_path)}  # of certificates
    assert Indexes().ssl_context(folder).get_ca_certs()


def test_credentials_of_an_index_are_not_in_its_repr() -> None:
    indexes = Indexes("https://me:secret@a/simple?token=secret", ("https://b/s",), ("/links", "https://u:secret@c/l"))
    assert repr(indexes) == "Indexes(https://a/simple, https://b/s, /links, https://c/l)"


@pytest.mark.parametrize("url", ["notaurl", "http://[::1", "http://127.0.0.1:99999/simple"])
def test_an_index_that_is_no_url_is_refused_and_the_variable_named(url: str) -> None:
    with pytest.raises(FetchError, match="not a URL") as caught:
        parse_pip_config("", {"PIP_INDEX_URL": url})
    assert "PIP_INDEX_URL" in caught.value.fix[0]
