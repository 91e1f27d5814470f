"""Read a package index (PEP 503 and 691): which files it lists for a project, with which sha256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from packaging.utils import canonicalize_name

from scripts.core.errors import PublishError, from_os_error
from scripts.downloads.access import Access
from scripts.downloads.download import http_errors, open_client
from scripts.downloads.indexes import redacted

if TYPE_CHECKING:
    import httpx2

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.5, text/html;q=0.2"
MAX_SMALL = 16 << 20  # bytes of what is read into memory
_UNKNOWN_ISSUER = re.compile(r"CERTIFICATE_VERIFY_FAILED|unable to get local issuer|self.signed", re.IGNORECASE)
_NAME_IT = "name the index itself, as in https://host/simple/ (for uploads: --check-url)"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Listed:
    """A file as an index lists it."""

    name: str
    url: str
    """As the page has it: relative to the page, or absolute."""
    sha256: str = ""
    """"" when the index gives none."""
    provenance: str = ""
    """URL of its PEP 740 provenance, "" when there is none."""


class SimpleClient:
    """An index as its readers see it, with the credentials that uploads use. Methods raise PublishError."""

    def __init__(self, url: str, access: Access) -> None:
        self._url = url.rstrip("/") + "/"
        import httpx2  # noqa: PLC0415  (loaded by open_client)

        self._client = open_client(access)
        environment = access.environment
        user, password = environment.get("UV_PUBLISH_USERNAME"), environment.get("UV_PUBLISH_PASSWORD")
        if token := environment.get("UV_PUBLISH_TOKEN"):
            user, password = "__token__", token
        self._auth = httpx2.BasicAuth(user, password) if user and password else None

    def __enter__(self) -> SimpleClient:
        """Return itself: connections are closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self._client.close()

    def files(self, project: str) -> dict[str, Listed]:
        """Return the files of a project by name, with whole URLs; nothing for a project that the index does not know.

        Raises PublishError when it cannot be told whether it knows it.
        """
        page = f"{self._url}{project}/"
        response = self._get(page)
        if response.status_code == 404:
            self._check_is_index()
            return {}
        if response.is_error:
            raise PublishError(
                f"{redacted(self._url)} cannot be read",
                why=f"the server answered {response.status_code} {response.reason_phrase}",
                fix=["check the credentials", _NAME_IT],
            )
        as_json = "json" in response.headers.get("content-type", "")
        found = json_files(response.content) if as_json else html_files(response.text)
        base = str(response.url)
        return {item.name: self._whole(item, base) for item in found.values()}

    @staticmethod
    def _whole(item: Listed, base: str) -> Listed:
        provenance = urljoin(base, item.provenance) if item.provenance else ""
        return Listed(item.name, urljoin(base, item.url), item.sha256, provenance)

    def _check_is_index(self) -> None:
        """Raise PublishError unless the index shows its list of projects: a 404 for everything says nothing."""
        response = self._get(self._url)
        text = response.text[:100_000]
        if response.is_success and ('"projects"' in text or "<a" in text.lower() or "<html" in text.lower()):
            return
        raise PublishError(
            f"{redacted(self._url)} does not look like an index: it could not be read, and nothing was sent",
            why=f"it answers {response.status_code} for its list of projects too",
            fix=_NAME_IT,
        )

    def projects(self) -> list[str]:
        """Return the names of the projects that the index lists, normalised; nothing where it has no list."""
        response = self._get(self._url)
        if response.is_error:
            return []
        if "json" in response.headers.get("content-type", ""):
            return json_projects(response.content)
        return html_projects(response.text)

    def sha256_of(self, item: Listed) -> str:
        """Fetch a file and return its sha256, for indexes that give none."""
        digest = hashlib.sha256()
        for block in self._blocks(item.url):
            digest.update(block)
        return digest.hexdigest()

    def save(self, item: Listed, path: Path) -> str:
        """Fetch a file to a path; return its sha256."""
        digest = hashlib.sha256()
        try:
            with path.open("wb") as file:
                for block in self._blocks(item.url):
                    digest.update(block)
                    file.write(block)
        except OSError as error:
            raise from_os_error(PublishError, error, doing="writing", path=path, variable="TMPDIR") from error
        return digest.hexdigest()

    def small(self, url: str) -> bytes:
        """Fetch a small file."""
        data = b""
        for block in self._blocks(url):
            data += block
            if len(data) > MAX_SMALL:
                raise PublishError(f"{redacted(url)} is too large", fix="look at what the index serves there")
        return data

    def _blocks(self, url: str) -> Iterator[bytes]:
        options: dict[str, Any] = {"auth": self._auth} if self._auth and self._ours(url) else {}
        try:
            with self._client.stream("GET", url, headers={"Accept-Encoding": "identity"}, **options) as response:
                response.raise_for_status()
                yield from response.iter_bytes(1 << 20)
        except http_errors() as error:
            raise unreachable(url, error) from error

    def _ours(self, url: str) -> bool:
        """Tell whether a URL is of the index's own host: credentials go nowhere else."""
        return urlsplit(url)[:2] == urlsplit(self._url)[:2]

    def server(self) -> str:
        """Return which software runs the index, as far as it tells: `pypiserver`, else its Server header."""
        parts = urlsplit(self._url)
        response = self._get(f"{parts.scheme}://{parts.netloc}/")
        return "pypiserver" if "pypiserver" in response.text[:5000] else str(response.headers.get("server", ""))

    def _get(self, url: str) -> httpx2.Response:
        headers = {"Accept": _ACCEPT, "Cache-Control": "no-cache"}
        try:
            if self._auth:
                return self._client.get(url, headers=headers, auth=self._auth)
            return self._client.get(url, headers=headers)
        except http_errors() as error:
            raise unreachable(url, error) from error


def unreachable(url: str, error: Exception) -> PublishError:
    """Return the error for an index that cannot be read; a certificate nobody vouches for is called that."""
    if _UNKNOWN_ISSUER.search(str(error)):
        return unknown_issuer(url)
    return PublishError(
        f"{redacted(url)} cannot be reached",
        why=f"{type(error).__name__}: {error}",
        fix="check the network, HTTPS_PROXY and the URL",
    )


def unknown_issuer(url: str) -> PublishError:
    """Return the error for a certificate whose issuer is not known here."""
    return PublishError(
        f"the certificate of {urlsplit(url).hostname} was issued by an authority that this machine does not know",
        why="a company's own authority is in no public list",
        fix="name its certificate: PIP_CERT=/path/ca.pem (pip config: global.cert), or SSL_CERT_FILE",
    )


def json_files(data: bytes) -> dict[str, Listed]:
    """Return the files of a PEP 691 page. Raises PublishError when it is none."""
    try:
        rows = json.loads(data)["files"]
        return {str(row["filename"]): _listed(row) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PublishError("the index's JSON page cannot be read", why=str(error), fix=_NAME_IT) from error


def html_projects(text: str) -> list[str]:
    """Return the names of a PEP 503 list of projects: the last folder of each link."""
    folders = [unquote(link.split("#")[0].split("?")[0]).rstrip("/").rpartition("/")[2] for link in links(text)]
    return [canonicalize_name(name) for name in folders if name not in {"", ".", ".."}]


def json_projects(data: bytes) -> list[str]:
    """Return the names of a PEP 691 list of projects, nothing for what is none."""
    try:
        return [canonicalize_name(str(row["name"])) for row in json.loads(data)["projects"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _listed(row: Any) -> Listed:
    url, provenance = row.get("url"), row.get("provenance")
    sha256 = _digest(row.get("hashes", {}).get("sha256"))
    return Listed(str(row["filename"]), str(url or ""), sha256, provenance if isinstance(provenance, str) else "")


def _digest(value: object) -> str:
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else ""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the targets of links."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def links(text: str) -> list[str]:
    """Return the targets of the links of a page."""
    parser = _Links()
    parser.feed(text)
    return parser.links


def html_files(text: str) -> dict[str, Listed]:
    """Return the files of a PEP 503 page: names from the links, digests from their fragments."""
    found = {}
    for link in links(text):
        path, _, fragment = link.partition("#")
        name = unquote(path.split("?")[0]).rsplit("/", 1)[-1]
        if name.endswith((".whl", ".tar.gz", ".zip")):
            found[name] = Listed(name, path, _digest(fragment.removeprefix("sha256=").split("&")[0]))
    return found
