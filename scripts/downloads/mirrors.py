"""Where a git repository is fetched from: prefix rewriting for mirrors, and credentials kept out of URLs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from scripts.core.errors import UsageError
from scripts.core.files import digest

VARIABLE = "WHEELSMITH_MIRROR"
DEFAULT_PREFIX = "https://github.com/"  # what a mirror without `FROM=` stands for: the host of all pinned sources
_SCHEMES = ("https", "http", "ssh", "file")


@dataclass(frozen=True)
class Mirror:
    """One rewriting rule: URLs that start with `prefix` go to `target` instead."""

    prefix: str
    target: str = field(repr=False)  # may carry a password


@dataclass(frozen=True)
class Address:
    """A URL without its credentials, and the credentials."""

    url: str
    username: str = ""
    password: str = field(default="", repr=False)


def parse_mirrors(text: str) -> tuple[Mirror, ...]:
    """Read `FROM=TO` rules separated by blanks; a rule without `FROM=` stands for `https://github.com/`.

    Raises UsageError for a target that is no URL.
    """
    rules = []
    for word in text.split():
        split = re.fullmatch(r"(\w+://[^=\s]+)=(\w+://.*)", word)
        prefix, target = (split[1], split[2]) if split else (DEFAULT_PREFIX, word)
        if urlsplit(target).scheme not in _SCHEMES:
            raise UsageError(
                f"{VARIABLE}: {_shown(word)!r} is not a mirror",
                why=f"a mirror is a URL ({', '.join(_SCHEMES)}), or FROM=TO with two of them",
                fix=f"{VARIABLE}='https://github.com/=https://git.example.com/github/'",
            )
        rules.append(Mirror(prefix, target))
    return tuple(rules)


def rewrite(url: str, mirrors: Sequence[Mirror]) -> str:
    """Return `url` with the longest matching prefix replaced, or as it is when none matches."""
    matching = [mirror for mirror in mirrors if url.lower().startswith(mirror.prefix.lower())]
    if not matching:
        return url
    best = max(matching, key=lambda mirror: len(mirror.prefix))
    return f"{best.target.rstrip('/')}/{url[len(best.prefix) :].lstrip('/')}"


def address(url: str) -> Address:
    """Take user name and password out of an http(s) URL; other URLs keep theirs (ssh needs the user)."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or "@" not in parts.netloc:
        return Address(url)
    host = parts.netloc.rpartition("@")[2]
    clean = urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))
    return Address(clean, unquote(parts.username or ""), unquote(parts.password or ""))


def other_spelling(url: str) -> str:
    """Return a repository's URL with `.git` where it had none, without where it had one.

    Hosts take both; a mirror of plain directories has a repository under one of the names only.
    """
    plain = url.rstrip("/")
    return plain.removesuffix(".git") if plain.endswith(".git") else f"{plain}.git"


def repository_key(url: str) -> str:
    """Return the name of a repository's cache: the same for all spellings of one (`.git`, case, credentials)."""
    parts = urlsplit(address(url).url)
    path = parts.path.rstrip("/").removesuffix(".git")
    if parts.scheme != "file":
        path = path.lower()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", posixpath.basename(path)) or "repository"
    return f"{name}-{digest([parts.netloc.lower(), path])[:12]}"


def resolve(base: str, url: str) -> str:
    """Return a submodule's URL as an absolute one: `../x.git` is relative to the repository `base`."""
    if not url.startswith(("./", "../")):
        return url
    parts = urlsplit(base)
    path = posixpath.normpath(posixpath.join(parts.path.rstrip("/"), url))
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _shown(word: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", word)
