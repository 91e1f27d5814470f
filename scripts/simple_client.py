"""Read a package index (PEP 503 and 691): which files it lists for a project, with which sha256."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import httpx2

from scripts.download import Client, open_client
from scripts.errors import PublishError
from scripts.indexes import Indexes, redacted

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.5, text/html;q=0.2"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SimpleClient:
    """An index as its readers see it, with the credentials that uploads use. Methods raise PublishError."""

    def __init__(self, url: str, indexes: Indexes, environment: Mapping[str, str]) -> None:
        self._url = url.rstrip("/") + "/"
        self._client: Client = open_client(indexes)
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

    def files(self, project: str) -> dict[str, str]:
        """Return file name to sha256 ("" when the index gives none); nothing for a project it does not know."""
        response = self._get(f"{self._url}{project}/")
        if response.status_code == 404:
            return {}
        if response.is_error:
            raise PublishError(
                f"{redacted(self._url)} cannot be read",
                why=f"the server answered {response.status_code} {response.reason_phrase}",
                fix="name the index that shows the uploads: --check-url https://host/simple/; check the credentials",
            )
        if "json" in response.headers.get("content-type", ""):
            return json_files(response.content)
        return html_files(response.text)

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
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise PublishError(
                f"{redacted(url)} cannot be reached",
                why=f"{type(error).__name__}: {error}",
                fix="check the network, HTTPS_PROXY and --check-url",
            ) from error


def json_files(data: bytes) -> dict[str, str]:
    """Return the files of a PEP 691 page. Raises PublishError when it is none."""
    try:
        rows = json.loads(data)["files"]
        return {str(row["filename"]): _digest(row.get("hashes", {}).get("sha256")) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PublishError("the index's JSON page cannot be read", why=str(error), fix="check --check-url") from error


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


def html_files(text: str) -> dict[str, str]:
    """Return the files of a PEP 503 page: names from the links, digests from their fragments."""
    parser = _Links()
    parser.feed(text)
    found = {}
    for link in parser.links:
        path, _, fragment = link.partition("#")
        name = unquote(path.split("?")[0]).rsplit("/", 1)[-1]
        if name.endswith((".whl", ".tar.gz", ".zip")):
            found[name] = _digest(fragment.removeprefix("sha256=").split("&")[0])
    return found
