"""Mirrors, credentials and the names of repositories' caches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import UsageError
from scripts.downloads.mirrors import Address, Mirror, address, parse_mirrors, repository_key, resolve, rewrite

CUTLASS = "https://github.com/NVIDIA/cutlass"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", CUTLASS),
        ("https://mirror.example/gh", "https://mirror.example/gh/NVIDIA/cutlass"),
        ("file:///srv/git/", "file:///srv/git/NVIDIA/cutlass"),
        ("https://github.com/=ssh://git@mirror.example/gh/", "ssh://git@mirror.example/gh/NVIDIA/cutlass"),
        ("https://gitlab.com/=https://mirror.example/gl", CUTLASS),
        ("https://m.example/a https://github.com/NVIDIA/=https://m.example/nv?x=1", "https://m.example/nv?x=1/cutlass"),
        ("HTTPS://GITHUB.COM/=https://m.example", "https://m.example/NVIDIA/cutlass"),
    ],
)
def test_the_longest_matching_prefix_is_rewritten(text: str, expected: str) -> None:
    assert rewrite(CUTLASS, parse_mirrors(text)) == expected


@pytest.mark.parametrize("text", ["mirror.example", "ftp://mirror.example", "https://github.com/=ftp://me:pw@x"])
def test_what_is_no_url_is_refused_without_showing_credentials(text: str) -> None:
    with pytest.raises(UsageError, match="is not a mirror") as caught:
        parse_mirrors(text)
    assert "pw" not in caught.value.what


def test_a_mirror_does_not_show_its_password() -> None:
    assert "pw" not in repr(parse_mirrors("https://me:pw@mirror.example"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (CUTLASS, Address(CUTLASS)),
        ("https://me:p%40w@h.example:8443/x", Address("https://h.example:8443/x", "me", "p@w")),
        ("https://token@h.example/x", Address("https://h.example/x", "token")),
        ("ssh://git@h.example/x", Address("ssh://git@h.example/x")),
    ],
)
def test_credentials_are_taken_out_of_http_urls_only(url: str, expected: Address) -> None:
    assert address(url) == expected


def test_a_password_is_not_in_the_repr_of_an_address() -> None:
    assert "secret" not in repr(address("https://me:secret@h.example/x"))


@pytest.mark.parametrize(
    "other", ["https://github.com/nvidia/cutlass.git", "https://me:pw@github.com/NVIDIA/cutlass/", CUTLASS + ".git"]
)
def test_all_spellings_of_a_repository_share_a_cache(other: str) -> None:
    assert repository_key(other) == repository_key(CUTLASS)


def test_different_repositories_do_not_share_a_cache() -> None:
    keys = {repository_key(url) for url in (CUTLASS, CUTLASS + "2", "https://gitlab.com/NVIDIA/cutlass", "file:///a/x")}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("../cutlass.git", "https://github.com/vllm-project/cutlass.git"),
        ("../../NVIDIA/cutlass", CUTLASS),
        ("./x", "https://github.com/vllm-project/FlashMLA/x"),
        (CUTLASS, CUTLASS),
    ],
)
def test_relative_urls_of_submodules_start_at_their_repository(url: str, expected: str) -> None:
    assert resolve("https://github.com/vllm-project/FlashMLA", url) == expected


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=30))
def test_a_cache_name_is_a_plain_file_name(path: str) -> None:
    key = repository_key(f"https://h.example/{path.replace('?', '').replace('#', '')}")
    assert "/" not in key
    assert not key.startswith(".git")


def test_rewriting_keeps_what_follows_the_prefix() -> None:
    assert rewrite("https://a.example/x/y", [Mirror("https://a.example/x", "file:///m")]) == "file:///m/y"
