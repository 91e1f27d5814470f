"""Upload wheels through an index's API with `uv publish`, tried again on what may pass, and read back afterwards.

Credentials are uv's affair: UV_PUBLISH_USERNAME, UV_PUBLISH_PASSWORD, UV_PUBLISH_TOKEN, netrc or a keyring. They are
never on a command line, and what uv says is shown without them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from scripts.core import interrupt
from scripts.core.console import Console, human_bytes
from scripts.core.errors import PublishError, UsageError
from scripts.core.process import call
from scripts.downloads.access import Access
from scripts.downloads.indexes import redacted
from scripts.formats.wheel import wheel_name
from scripts.index.entry import same_wheel
from scripts.index.reader import Listed, SimpleClient, unknown_issuer
from scripts.index.static import refuse_other_bytes
from scripts.report.wheelhouse import Local

ATTEMPTS = 3
_SECRETS = ("UV_PUBLISH_PASSWORD", "UV_PUBLISH_TOKEN")
_MB = 1_000_000


@dataclass(frozen=True)
class Limit:
    """What a hosted index takes; sources: the services' own documentation, read in November 2026, not tried."""

    host: str
    size: int
    """Bytes per file."""
    name: str


LIMITS = (
    Limit("pkgs.dev.azure.com", 500 << 20, "Azure Artifacts"),
    Limit("pkgs.visualstudio.com", 500 << 20, "Azure Artifacts"),
    Limit("gitlab.com", 5000 * _MB, "GitLab"),
    Limit("amazonaws.com", 5000 * _MB, "CodeArtifact"),
)


@dataclass(frozen=True)
class Api:
    """An upload API and the index that shows what it has."""

    url: str
    check_url: str
    """Simple index: `https://host/root/prod/+simple/`."""
    keyring: bool = False
    user: str = ""
    """With a keyring: whose password."""
    certificates: Mapping[str, str] = field(default_factory=dict)
    """What tells uv of a company's own authority: `SSL_CERT_FILE`."""


def check_url_syntax(url: str, option: str) -> str:
    """Return a URL that may stand on a command line. Raises UsageError for one with credentials or none at all."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UsageError(
            f"{option} {redacted(url)} has credentials in it",
            why="command lines are seen by other users and end in logs",
            fix="put them into UV_PUBLISH_USERNAME and UV_PUBLISH_PASSWORD, or ~/.netrc",
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{option} {url} is not a URL", fix="https://host/path/")
    return url


def default_check_url(url: str) -> str:
    """Return where the index of an upload API is by the habits of its kind; devpi's is the default."""
    base, host = url.rstrip("/"), urlsplit(url).hostname or ""
    if "/api/v4/projects/" in url or host.endswith(("pkg.dev", "amazonaws.com")) or "/artifactory/" in url:
        return f"{base}/simple/"
    if base.endswith("/upload") and "azure" in host + url:
        return f"{base.removesuffix('/upload')}/simple/"
    if base.endswith("/legacy"):
        return f"{base.removesuffix('/legacy')}/simple/"
    return f"{base}/+simple/"


def find_check_url(url: str, client: Callable[[str], SimpleClient]) -> str:
    """Return where the index of an upload API is: a pypiserver's at /simple/, others by the habits of their kind."""
    guess = default_check_url(url)
    if not guess.endswith("/+simple/"):
        return guess
    with client(guess) as reader:
        return f"{url.rstrip('/')}/simple/" if "pypiserver" in reader.server() else guess


def upload(
    wheels: Sequence[Local],
    api: Api,
    client: SimpleClient,
    access: Access,
    *,
    dry_run: bool = False,
) -> list[str]:
    """Upload what the index does not have, and read it back; return `published` or `unchanged` per wheel.

    Raises PublishError; nothing is sent when a wheel is there with other bytes.
    """
    states = [_state(wheel, client, api) for wheel in wheels]
    _warn_of_hazards(wheels, api, client, access.console)
    for wheel, state in zip(wheels, states, strict=True):
        if state == "unchanged" or dry_run:
            continue
        if _state(wheel, client, api) == "unchanged":
            continue  # another publisher was first
        access.console.note(f"{wheel.path.name} ({human_bytes(wheel.size)})")
        _upload_one(wheel, api, access)
        _read_back(wheel, client, api)
    return [f"would be {state}" if dry_run and state != "unchanged" else state for state in states]


def _state(wheel: Local, client: SimpleClient, api: Api) -> str:
    listed = _find(wheel, client)
    if listed is None:
        return "published"
    sha256 = listed.sha256 or client.sha256_of(listed)
    refuse_other_bytes(listed.name, published=sha256, ours=wheel.sha256, place=redacted(api.url))
    return "unchanged"


def _find(wheel: Local, client: SimpleClient) -> Listed | None:
    """Return what the index lists for a wheel, however it spells the name."""
    listed = client.files(_project(wheel))
    found = listed.get(wheel.path.name)
    return found or next((item for name, item in listed.items() if same_wheel(name, wheel.path.name)), None)


def _project(wheel: Local) -> str:
    return canonicalize_name(wheel_name(wheel.path).name)


def _warn_of_hazards(wheels: Sequence[Local], api: Api, client: SimpleClient, console: Console) -> None:
    host = urlsplit(api.url).hostname or ""
    for limit in LIMITS:
        large = [wheel for wheel in wheels if host.endswith(limit.host) and wheel.size > limit.size]
        if large:
            raise PublishError(
                f"{large[0].path.name} is too large for {limit.name}",
                why=f"{human_bytes(large[0].size)}; it takes {human_bytes(limit.size)} per file",
                fix=["cut it per arch: nox -s slim", "use a static index: --to s3://bucket/wheels"],
            )
    if "pypiserver" in client.server():
        console.warn(
            f"{redacted(api.url)} is a pypiserver: when an upload is cut it publishes the part that came "
            "(docs/publishing.md#pypiserver). Put nginx with request buffering before it, or use devpi"
        )


def pause(seconds: float) -> None:
    """Wait before the next attempt."""
    interrupt.pause(seconds)


def _upload_one(wheel: Local, api: Api, access: Access) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        code, said = run_uv_publish(wheel.path, api, access.environment)
        if code == 0:
            return
        cause = explain(said, api)
        if not cause.again or attempt == ATTEMPTS:
            raise PublishError(
                f"{wheel.path.name} could not be uploaded to {redacted(api.url)}",
                why=cause.why,
                fix=cause.fix,
                detail=said[-2000:],
            )
        delay = 2.0 * 2**attempt
        access.console.warn(f"{cause.why}; attempt {attempt + 1} of {ATTEMPTS} in {delay:.0f} s")
        pause(delay)


def run_uv_publish(wheel: Path, api: Api, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run `uv publish`; return its exit code and what it said, without secrets. Ctrl-C ends it too."""
    command = [str(Path(sys.executable).with_name("uv")), "publish", "--no-progress", "--trusted-publishing", "never"]
    command += ["--no-attestations", "--publish-url", api.url, "--check-url", api.check_url]
    if api.keyring:
        command += ["--keyring-provider", "subprocess", "--username", api.user]
    timeouts = {"UV_UPLOAD_HTTP_TIMEOUT": "3600", "UV_HTTP_TIMEOUT": "60", "NO_COLOR": "1", "UV_NO_CONFIG": "1"}
    done = call(
        [*command, wheel],
        environment={**timeouts, **api.certificates, **environment},
        limit=None,
        merged=True,
    )
    return done.code, without_secrets(done.text, environment)


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Return what a tool said without passwords, tokens and credentials in URLs."""
    text = re.sub(r"://[^/\s@]+@", "://", text)
    for name in _SECRETS:
        if len(secret := environment.get(name, "")) > 3:
            text = text.replace(secret, "***")
    return text.strip()


@dataclass(frozen=True)
class Cause:
    """Why an upload failed, and whether it may succeed when tried again."""

    why: str
    fix: str
    again: bool = False


_CAUSES = (
    (
        {"401"},
        "the server does not accept the credentials, or there are none",
        "set UV_PUBLISH_USERNAME and UV_PUBLISH_PASSWORD (UV_PUBLISH_TOKEN sends the user __token__), or ~/.netrc",
    ),
    ({"403"}, "this user may not upload there", "ask for the right to upload, or take another index"),
    (
        {"413"},
        "the server or a proxy before it takes no file of this size",
        "raise its limit (nginx: client_max_body_size 2g; devpi: --max-request-body-size), or: nox -s slim",
    ),
    (
        {"400", "409"},
        "the index has other bytes under this name, or refuses the file",
        "build it under another version label, or delete it on the index; read what the server said above",
    ),
)
_UNKNOWN_ISSUER = re.compile(r"UnknownIssuer|invalid peer certificate|unable to get local issuer", re.IGNORECASE)
_BROKEN = re.compile(r"error sending|connection|timed? ?out|reset|closed|dns|broken pipe|retries", re.IGNORECASE)


def explain(said: str, api: Api) -> Cause:
    """Read uv's message: its HTTP status, else whether the connection broke."""
    status = re.search(r"\b([45]\d\d) [A-Z]|(?:status|code|error|HTTP)[^\n\d]{0,20}\b([45]\d\d)\b", said)
    code = (status[1] or status[2]) if status else ""
    code = "409" if "do not match" in said else "401" if "Missing credentials" in said else code
    for codes, why, fix in _CAUSES:
        if code in codes:
            return Cause(why, fix)
    if code[:1] == "5" or code in {"408", "425", "429"}:
        again = f"{redacted(api.url)} answered {code}"
        return Cause(again, "try again later; what was sent in part is not visible", again=True)
    if _UNKNOWN_ISSUER.search(said):
        issuer = unknown_issuer(api.url)
        return Cause(issuer.what, issuer.fix[0])
    if not code and _BROKEN.search(said):
        broken = f"the connection to {redacted(api.url)} broke"
        return Cause(broken, "check the network and proxies; on slow lines cut the wheel: nox -s slim", again=True)
    return Cause("uv publish failed", "read its message above")


def _read_back(wheel: Local, client: SimpleClient, api: Api) -> None:
    """Compare what the index shows now with what was sent. Raises PublishError."""
    listed = _find(wheel, client)
    name, place = wheel.path.name, redacted(api.check_url)
    if listed is None:
        raise PublishError(
            f"{name} was uploaded, but {place} does not list it",
            why="--check-url is another index, or the server publishes later",
            fix="look at the index; run the same command again: what is there is left alone",
        )
    if not listed.sha256:
        raise PublishError(
            f"{place} gives no sha256 for {name}: so whether it arrived whole stays unknown",
            fix="install with a hash (--require-hashes), or use an index that gives hashes",
        )
    if listed.sha256 != wheel.sha256:
        raise PublishError(
            f"{place} serves another {name} than was sent",
            why=f"there sha256 {listed.sha256}, here {wheel.sha256}: it was cut or changed on the way",
            fix="delete it on the index and upload it again; pypiserver publishes uploads that were cut",
        )
