"""Checks of git, the package index, proxies, certificates and the clock."""

from __future__ import annotations

import os
import socket
import time
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from scripts.core.paths import ROOT
from scripts.core.process import capture
from scripts.doctor.preflight import git_problems, missing_git
from scripts.doctor.registry import Result, Subject, blocked, check, ok, unknown, warning
from scripts.downloads.access import Access
from scripts.downloads.indexes import redacted
from scripts.sources.git_process import git_program
from scripts.toolchain.provide import environment_key

TIMEOUT = 5.0  # seconds for each answer
SKEW = 600  # seconds of difference that certificates and make still bear


@lru_cache(maxsize=8)
def _asked(url: str, access: Access) -> tuple[str, float]:
    """Ask an index for its page of torch; return ("" or why not, seconds by which this clock is ahead)."""
    import httpx2  # noqa: PLC0415  (0.1 s: most runs ask no host)

    try:
        with httpx2.Client(
            verify=access.indexes.ssl_context(access.environment), timeout=TIMEOUT, follow_redirects=True
        ) as client:
            answer = client.head(url.rstrip("/") + "/torch/")
    except httpx2.HTTPError as error:
        return f"{type(error).__name__}: {error}", 0.0
    date = answer.headers.get("Date")
    ahead = time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    return ("" if answer.status_code < 500 and answer.status_code != 407 else f"HTTP {answer.status_code}"), ahead


@lru_cache(maxsize=1)
def _public() -> str:
    """Return the index that is asked without a setting."""
    from unearth import PackageFinder  # noqa: PLC0415  (0.2 s: most runs ask no host)

    return str(PackageFinder().sources[0]["url"])


def _indexes(subject: Subject) -> list[str]:
    """Return the index URLs that are asked over the network."""
    named = [subject.environment.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")]
    urls = [*(url for url in named if url), *(url or _public() for url in subject.access.indexes.all_index_urls)]
    return [url for url in urls if urlsplit(url).scheme in {"http", "https"}]


def _ready(subject: Subject) -> bool:
    return (subject.cache / "toolchains" / environment_key(subject.recipe, subject.torch)).is_dir()


def _proxy(url: str) -> str:
    """Return the proxy in force for a URL, without its password; "" for none."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme, "")
    return redacted(proxy) if proxy and not proxy_bypass(parts.hostname or "") else ""


@check("index-unreachable", network=True)
def index(subject: Subject) -> Result:
    """Check that a package index answers; the proxy in force is named."""
    urls = _indexes(subject)
    if not urls:
        return ok("no package index is asked over the network")
    answers = {url: _asked(url, subject.access)[0] for url in urls}
    shown = "; ".join(f"{redacted(url)}: {why or 'answers'}{_via(url)}" for url, why in answers.items())
    if all(answers.values()) and not _ready(subject):
        return blocked(shown, "check HTTPS_PROXY and PIP_INDEX_URL: pip download --no-deps packaging must work")
    return ok(shown) if not any(answers.values()) else warning(shown)


def _via(url: str) -> str:
    proxy = _proxy(url)
    return f" (through the proxy {proxy})" if proxy else ""


@check("corporate-proxy-tls-interception", network=True)
def certificates(subject: Subject) -> Result:
    """Check that the index's certificate is trusted, and by which authority it is signed."""
    bad = [
        f"{redacted(url)}: {why}"
        for url in _indexes(subject)
        if "CERTIFICATE" in (why := _asked(url, subject.access)[0]).upper()
    ]
    if bad:
        fix = "export SSL_CERT_FILE=/path/to/company-ca.pem PIP_CERT=$SSL_CERT_FILE GIT_SSL_CAINFO=$SSL_CERT_FILE"
        return blocked("; ".join(bad), fix)
    return ok("certificates are trusted")


@check("proxy-broken", network=True)
def proxy(subject: Subject) -> Result:
    """Check that the proxy in force passes connections on."""
    urls = [url for url in _indexes(subject) if _proxy(url)]
    bad = [f"{_proxy(url)} for {redacted(url)}: {why}" for url in urls if (why := _asked(url, subject.access)[0])]
    if bad:
        return blocked("; ".join(bad), "correct HTTPS_PROXY, or: export NO_PROXY=HOST; unset HTTPS_PROXY")
    return ok("; ".join(f"{_proxy(url)} passes on" for url in urls) or "no proxy is in force")


@check("clock-wrong", network=True)
def clock(subject: Subject) -> Result:
    """Check this clock against the index's."""
    answers = [_asked(url, subject.access) for url in _indexes(subject)]
    ahead = [seconds for why, seconds in answers if not why]
    if not ahead:
        return unknown("no index answered with its time")
    worst = max(ahead, key=abs)
    text = f"this clock is {abs(worst):.0f} s {'ahead of' if worst > 0 else 'behind'} the index's"
    return ok(text) if abs(worst) < SKEW else blocked(text, "timedatectl set-ntp true")


@check("large-wheel-download-timeout")
def timeouts(subject: Subject) -> Result:
    """Check for time-outs that are too short for wheels of a gigabyte."""
    short = []
    for name in ("UV_HTTP_TIMEOUT", "PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT"):
        value = subject.environment.get(name, "")
        if value.isdecimal() and int(value) < 30:
            short.append(f"{name}={value}")
    return (
        warning(f"{', '.join(short)} is short for files of a gigabyte", "export UV_HTTP_TIMEOUT=300")
        if short
        else ok("time-outs are 30 s or more")
    )


@check("git-missing-in-image")
def git(subject: Subject) -> Result:
    """Check for git, where sources must be cloned."""
    urls = missing_git(subject.recipe, subject.access.cache, subject.access.mirrors)
    if not urls:
        return ok("no git source is missing in the cache: git is not needed")
    if subject.which("git") is None:
        return blocked("git is not on PATH, and sources are on git hosts", "apt-get install git   (or dnf install git)")
    return ok(git_program())


@check("fetchcontent-clone-failed")
def git_hosts(subject: Subject) -> Result:
    """Check that the hosts of missing git sources can be reached."""
    urls = missing_git(subject.recipe, subject.access.cache, subject.access.mirrors)
    problems = git_problems(urls, offline=subject.access.offline) if urls else []
    if problems:
        fix = (
            "check the network and HTTPS_PROXY; "
            "or a mirror: WHEELSMITH_MIRROR='https://github.com/=https://your-mirror/'; "
            "or bring the sources on a disk: nox -s fetch -- --from-bundle FILE (docs/sources.md)"
        )
        return blocked("; ".join(problems), fix)
    return ok(
        f"{len(urls)} git sources to fetch, their hosts answer"
        if urls
        else "all git sources are in the cache, or none is needed"
    )


@check("github-or-dockerhub-rate-limit")
def rate_limit(subject: Subject) -> Result:
    """Check for anonymous fetches from CI, which share a limit."""
    urls = missing_git(subject.recipe, subject.access.cache, subject.access.mirrors)
    if urls and subject.environment.get("CI"):
        return warning(
            f"CI fetches {len(urls)} git sources without the cache of an earlier job",
            "keep WHEELSMITH_CACHE between jobs, or set WHEELSMITH_MIRROR",
        )
    return ok("no anonymous fetches from CI")


@check("git-dubious-ownership")
def ownership(subject: Subject) -> Result:
    """Check that this checkout belongs to the user who runs it."""
    del subject
    folder = ROOT / ".git"
    if not folder.exists() or folder.stat().st_uid == os.geteuid():
        return ok("this checkout is the user's own")
    return warning(
        f"{ROOT} belongs to user id {folder.stat().st_uid}, not {os.geteuid()}",
        f"git config --global --add safe.directory {ROOT}",
    )


@check("git-lfs-missing")
def git_lfs(subject: Subject) -> Result:
    """Check that git-lfs is there where git's configuration calls it."""
    if subject.which("git") is None:
        return ok("there is no git")
    code, text = capture(["git", "config", "--get", "filter.lfs.process"], environment=subject.environment)
    if code == 0 and text.strip() and subject.which("git-lfs") is None:
        return blocked(
            "git's configuration calls git-lfs, which is not installed",
            "apt-get install git-lfs, or git config --global --remove-section filter.lfs",
        )
    return ok("git calls no git-lfs, or it is installed")


@check("sccache-or-ccache-breaks-nvcc")
def compiler_cache(subject: Subject) -> Result:
    """Check a running sccache server's health; without one there is nothing to check."""
    program = subject.which("sccache") or next(iter(subject.cache.glob("toolchains/*/venv/bin/sccache")), None)
    if program is None:
        return ok("no sccache here: none is used")
    port = subject.environment.get("SCCACHE_SERVER_PORT", "4226")
    if not _listens(int(port) if port.isdecimal() else 4226):
        return ok(f"{program} is there, its server is not running")
    code, text = capture([program, "--show-stats"], environment=subject.environment, timeout=5)
    if code:
        return warning(f"the sccache server does not answer: {text.strip()[-200:]}", f"{program} --stop-server")
    return ok(f"{program}: its server answers")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True
