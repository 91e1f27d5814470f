"""Package indexes as the user configured them for pip: environment, pip.conf, netrc, proxies, certificates."""

from __future__ import annotations

import ast
import re
import shutil
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import certifi

from scripts.core.errors import FetchError
from scripts.core.process import call

DEFAULT_INDEX = ""  # empty: the public index that unearth and uv know themselves
_SECTIONS = (":env:", "download", "install", "global")  # pip's precedence, strongest first


@dataclass(frozen=True)
class Indexes:
    """Where packages are looked up. URLs may hold credentials: show them only through `redacted`."""

    index_url: str = DEFAULT_INDEX
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str = ""
    no_index: bool = False

    @property
    def all_index_urls(self) -> tuple[str, ...]:
        """All indexes, the main one first; none with `no_index`."""
        return () if self.no_index else (self.index_url, *self.extra_index_urls)

    def __repr__(self) -> str:
        """Show where packages come from, without credentials."""
        return f"Indexes({', '.join(redacted(url) for url in (*self.all_index_urls, *self.find_links))})"

    def ssl_context(self, environment: Mapping[str, str]) -> ssl.SSLContext:
        """Return a context that trusts the system's store, certifi's, SSL_CERT_FILE and the configured bundle.

        Raises FetchError when the bundle cannot be read.
        """
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        bundle = self.cert or environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
        if bundle:
            path = Path(bundle)
            try:
                context.load_verify_locations(
                    cafile=None if path.is_dir() else path, capath=path if path.is_dir() else None
                )
            except OSError as error:  # ssl.SSLError is one
                raise FetchError(
                    f"the certificates in {path} cannot be read",
                    why=error.strerror or str(error),
                    fix="correct PIP_CERT (or cert in pip.conf), REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE",
                ) from error
        return context

    def certificates(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return what makes uv trust what pip trusts, for its uploads too; SSL_CERT_FILE of the user wins."""
        bundle = self.cert or base.get("REQUESTS_CA_BUNDLE") or base.get("CURL_CA_BUNDLE") or ""
        if not bundle or base.get("SSL_CERT_FILE"):
            return {}
        return {"SSL_CERT_DIR" if Path(bundle).is_dir() else "SSL_CERT_FILE": bundle}

    def uv_environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return `base` plus UV_* variables that make uv use the same indexes; the user's own UV_* win.

        Credentials travel in the environment only, never on a command line.
        """
        wanted = {
            "UV_DEFAULT_INDEX": self.index_url,
            "UV_INDEX": " ".join(self.extra_index_urls),
            "UV_FIND_LINKS": ",".join(self.find_links),
            "UV_INSECURE_HOST": " ".join(self.trusted_hosts),
            "UV_NO_INDEX": "1" if self.no_index else "",
            "UV_INDEX_STRATEGY": "unsafe-best-match",  # pip's behaviour; safe here, as every file has a hash
            "SSL_CERT_FILE": self.cert,
        }
        # uv prefers these names to their older ones, which the user may have set.
        if self.no_index or "UV_INDEX_URL" in base:
            wanted["UV_DEFAULT_INDEX"] = ""
        if "UV_EXTRA_INDEX_URL" in base:
            wanted["UV_INDEX"] = ""
        return {**{name: value for name, value in wanted.items() if value}, **base}


def redacted(url: str) -> str:
    """Return a URL without user name, password and query, fit for messages and reports."""
    if url == DEFAULT_INDEX:
        return "the public package index"
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def read_indexes(environment: Mapping[str, str]) -> Indexes:
    """Return the indexes that pip would use here: `pip config list` merges environment and every pip.conf."""
    pip = [sys.executable, "-m", "pip"]
    if call([*pip, "--version"], environment=environment).code:
        found = next(filter(None, (shutil.which(name, path=environment.get("PATH")) for name in ("pip", "pip3"))), "")
        pip = [found] if found else []
    listed = call([*pip, "config", "list"], environment=environment) if pip else None
    if listed and listed.code:  # never fall back to the public index in silence
        raise FetchError(
            "pip's configuration cannot be read",
            why=(listed.error_text.strip().splitlines() or ["pip config list failed"])[-1],
            fix="correct the pip.conf it names; `pip config debug` lists the files",
        )
    return parse_pip_config(listed.text if listed else "", environment)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = not url or (parts.scheme in {"http", "https", "file"} and parts.port != 0)
    except ValueError:  # a port or an IPv6 address that is none
        good = False
    if not good:
        raise FetchError(
            "the package index is not a URL that wheelsmith can use",
            why="index-url and extra-index-url must start with https://, http:// or file:// and have a valid port",
            fix="correct PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or pip.conf (`pip config list` shows them)",
        )


def parse_pip_config(text: str, environment: Mapping[str, str]) -> Indexes:
    """Read the output of `pip config list`; the PIP_* variables of `environment` win."""
    values: dict[tuple[str, str], str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(:env:|\w+)\.([\w-]+)=('.*'|\".*\")", line.strip())
        if match:
            values[match[1], match[2]] = str(ast.literal_eval(match[3]))
    for name in ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "no-index"):
        variable = "PIP_" + name.upper().replace("-", "_")
        if variable in environment:
            values[":env:", name] = environment[variable]

    def setting(name: str) -> str:
        return next((values[section, name] for section in _SECTIONS if (section, name) in values), "")

    for url in [setting("index-url"), *setting("extra-index-url").split()]:
        _check_url(url)
    return Indexes(
        index_url=setting("index-url") or DEFAULT_INDEX,
        extra_index_urls=tuple(setting("extra-index-url").split()),
        find_links=tuple(setting("find-links").split()),
        trusted_hosts=tuple(setting("trusted-host").split()),
        cert=setting("cert"),
        no_index=setting("no-index").lower() in {"1", "true", "yes", "on"},
    )
