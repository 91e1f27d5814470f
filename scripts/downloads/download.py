"""Downloads: streamed, resumed after a break, retried on network errors, checked against sha256 before use."""

from __future__ import annotations

import http
import netrc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from scripts.core import interrupt
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.errors import FetchError, from_os_error
from scripts.core.files import file_sha256
from scripts.downloads.access import Access
from scripts.downloads.indexes import redacted

if TYPE_CHECKING:  # loaded by open_client
    from unearth.fetchers import PyPIClient

    Client: TypeAlias = PyPIClient

ATTEMPTS = 5
BLOCK = 1 << 18  # bytes
TIMEOUT, CONNECT_TIMEOUT = 30.0, 10.0  # seconds
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}


def open_client(access: Access) -> Client:
    """Return an HTTP client that uses proxies, netrc, certificates and trusted hosts as pip would."""
    import httpx2  # noqa: PLC0415  (0.2 s with unearth: only who asks a server loads them)
    from unearth.fetchers import PyPIClient  # noqa: PLC0415

    try:
        auth = httpx2.NetRCAuth(access.environment.get("NETRC"))
    except OSError:  # no netrc file
        auth = None
    except netrc.NetrcParseError as error:
        raise FetchError(
            "~/.netrc cannot be used", why=str(error), fix="correct it, and: chmod 600 ~/.netrc"
        ) from error
    return PyPIClient(
        trusted_hosts=access.indexes.trusted_hosts,
        verify=access.indexes.ssl_context(access.environment),
        timeout=httpx2.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
        follow_redirects=True,
        auth=auth,
    )


def http_errors() -> tuple[type[Exception], ...]:
    """Return what a client raises when a server cannot be asked or refuses."""
    import httpx2  # noqa: PLC0415  (loaded by open_client)

    return httpx2.HTTPError, httpx2.InvalidURL


@dataclass
class Transfer:
    """State of a download, for the progress display."""

    name: str
    total: int = 0
    done: int = 0
    started: float = 0.0
    resumed_at: int = 0

    def rate(self) -> float:
        """Bytes per second since this run began."""
        seconds = time.monotonic() - self.started
        return (self.done - self.resumed_at) / seconds if seconds > 0.5 else 0.0

    def text(self) -> str:
        """Return bytes, rate and time left."""
        rate = self.rate()
        left = f", {human_seconds((self.total - self.done) / rate)} left" if rate and self.total else ""
        of = f" of {human_bytes(self.total)}" if self.total else ""
        return f"{self.name}: {human_bytes(self.done)}{of}, {human_bytes(rate)}/s{left}"

    def render(self) -> RenderableType:
        """Return the same with a bar."""
        grid = Table.grid(padding=(0, 1))
        grid.add_row(" " * 9, ProgressBar(total=self.total or None, completed=self.done, width=30), self.text())
        return grid


def download(client: Client, url: str, access: Access, *, sha256: str, filename: str, size: int = 0) -> Path:
    """Return the file with digest `sha256`, from the cache or, unless `access` is offline, from `url`.

    A break is resumed where it was, in this run (with back-off) or a later one. Raises FetchError when the network
    fails five times, the server refuses, or the bytes are not the pinned ones (which are then deleted).
    """
    console = access.console
    final = access.cache.place(f"downloads/{sha256}", filename)
    if final.is_file():
        return final
    if access.offline:
        raise not_in_cache(filename)
    partial = final.with_name(f".{filename}.part")
    transfer = Transfer(filename, total=size)
    with access.cache.lock(f"download-{sha256[:20]}", console):
        if final.is_file():
            return final
        try:
            with console.progress(transfer.render, transfer.text) as progress:
                retried(lambda: _stream(client, url, partial, transfer, progress.tick), url, console, access.pause)
            _check(partial, sha256, url)
            partial.replace(final)
        except OSError as error:
            raise from_os_error(FetchError, error, doing=f"downloading {filename}", path=partial) from error
    return final


def not_in_cache(name: str) -> FetchError:
    """Return the error for something that --offline does not allow to be fetched."""
    return FetchError(
        f"{name} is not in the cache",
        why="--offline forbids downloads",
        fix="run once without --offline, or copy a filled cache and point WHEELSMITH_CACHE at it",
    )


def retried(attempt: Callable[[], None], url: str, console: Console, pause: Callable[[float], None]) -> None:
    """Run `attempt` again, with back-off, when the network fails. Raises FetchError after five times, or refusals."""
    import httpx2  # noqa: PLC0415  (loaded by open_client)

    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except httpx2.TransportError as error:
            cause = f"{type(error).__name__}: {error}"
        except (httpx2.RequestError, httpx2.InvalidURL) as error:  # a redirect loop, say: no use to repeat
            raise unreachable(url, f"{type(error).__name__}: {error}") from error
        except httpx2.HTTPStatusError as error:
            cause = f"the server answered {error.response.status_code} {error.response.reason_phrase}"
            if error.response.status_code not in _RETRY_STATUS:
                raise _refused(url, error.response.status_code, cause) from error
        if number < ATTEMPTS:
            delay = 0.5 * 2.0**number
            console.warn(f"{redacted(url)}: {cause}; attempt {number + 1} of {ATTEMPTS} in {delay:.0f} s")
            pause(delay)
    raise unreachable(url, cause)


def _refused(url: str, status: int, cause: str) -> FetchError:
    fix = {
        401: "put the credentials for this host into ~/.netrc or the index URL (PIP_INDEX_URL)",
        403: "check that your account or proxy may read this host",
        404: "check the index: the pinned file is not on it",
    }.get(status, "try again later, or use another index (PIP_INDEX_URL)")
    return FetchError(f"{redacted(url)} was refused", why=cause, fix=fix)


def unreachable(url: str, cause: str) -> FetchError:
    """Return the error for a host that cannot be reached: names the proxy and index settings."""
    return FetchError(
        f"{redacted(url)} cannot be reached",
        why=cause,
        fix=[
            "check the network, HTTPS_PROXY and certificates (PIP_CERT)",
            "use a mirror of the package index: PIP_INDEX_URL=https://mirror/simple",
            "with a warm cache, --offline needs no network",
        ],
    )


def _stream(client: Client, url: str, partial: Path, transfer: Transfer, tick: Callable[[], None]) -> None:
    """Fetch what is missing of `url` into `partial`."""
    import httpx2  # noqa: PLC0415  (loaded by open_client)

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with client.get_stream(url, headers=headers) as response:
        if response.status_code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all there already; the digest decides
        response.raise_for_status()
        resumed = response.status_code == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0
        expected = have + int(response.headers.get("content-length") or 0)
        transfer.total, transfer.done, transfer.resumed_at = expected or transfer.total, have, have
        transfer.started = time.monotonic()
        with partial.open("ab" if resumed else "wb") as file:
            for block in response.iter_raw(BLOCK):
                file.write(block)
                transfer.done += len(block)
                interrupt.check()
                tick()
    if expected > have and transfer.done < expected:
        raise httpx2.ReadError(f"connection closed after {transfer.done} of {expected} bytes")


def _check(path: Path, sha256: str, url: str) -> None:
    found = file_sha256(path)
    if found == sha256:
        return
    size = path.stat().st_size
    path.unlink()
    raise FetchError(
        f"{redacted(url)} is not the pinned file",
        why=f"its sha256 is {found} ({human_bytes(size)}), the recipe pins {sha256}; the download was deleted",
        fix=[
            "run again: a broken proxy or mirror may have cut or changed the file",
            "if it stays so, the index serves other bytes than the recipe was made for: do not build from it",
        ],
    )
