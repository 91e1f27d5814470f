"""What a command hands down to its stages: settings of the environment given, and no secret shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.core.cache import Cache
from scripts.core.errors import FetchError
from scripts.downloads.access import Access
from scripts.downloads.download import open_client
from scripts.downloads.indexes import Indexes
from tests.accesses import make_access

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_INDEX_URL": "https://me:geheim@index.example/simple",
    "UV_PUBLISH_TOKEN": "geheim",
}


def test_indexes_are_those_of_the_environment_given_and_are_asked_for_once(cache: Cache) -> None:
    access = make_access(cache, environment=ENVIRONMENT)
    assert access.indexes.index_url == ENVIRONMENT["PIP_INDEX_URL"]
    assert access.indexes is access.indexes


def test_indexes_that_are_given_win(cache: Cache) -> None:
    given = Indexes(no_index=True)
    assert make_access(cache, environment=ENVIRONMENT, indexes=given).indexes is given


def test_a_change_keeps_the_rest(cache: Cache) -> None:
    access = replace(make_access(cache, environment=ENVIRONMENT), offline=True)
    assert access.offline
    assert access.indexes.index_url == ENVIRONMENT["PIP_INDEX_URL"]


def test_neither_the_environment_nor_an_index_s_password_is_in_its_repr(cache: Cache) -> None:
    access = make_access(cache, environment=ENVIRONMENT, indexes=Indexes(ENVIRONMENT["PIP_INDEX_URL"]))
    shown = repr(access) + repr(access.indexes)
    assert "geheim" not in shown
    assert "index.example/simple" in shown


@pytest.mark.parametrize(
    ("environment", "bundle"),
    [
        ({}, ""),
        ({"SSL_CERT_FILE": "/system.pem"}, "/system.pem"),
        ({"SSL_CERT_FILE": "/system.pem", "PIP_CERT": "/mine.pem"}, "/mine.pem"),
    ],
)
def test_git_trusts_what_pip_trusts(cache: Cache, environment: dict[str, str], bundle: str) -> None:
    assert make_access(cache, environment=environment).ca_bundle == bundle


def test_a_client_takes_netrc_and_certificates_from_the_environment_given(access: Access) -> None:
    missing = {"REQUESTS_CA_BUNDLE": str(access.cache.root / "none.pem")}
    with pytest.raises(FetchError, match=r"none\.pem"):
        open_client(make_access(access.cache, environment=missing, indexes=Indexes()))
    netrc = access.cache.root / "netrc"
    netrc.write_text("machine\n")
    with pytest.raises(FetchError, match="netrc cannot be used"):
        open_client(make_access(access.cache, environment={"NETRC": str(netrc)}, indexes=Indexes()))
