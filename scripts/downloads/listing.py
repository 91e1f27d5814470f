"""What an index lists: the digest of an sdist that no recipe pins yet."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from scripts.core.errors import FetchError
from scripts.downloads.access import Access
from scripts.downloads.download import http_errors, open_client, unreachable
from scripts.downloads.indexes import Indexes, redacted
from scripts.recipe.sources import MembersSource, SdistSource, WheelSource

if TYPE_CHECKING:  # 0.2 s to load
    from unearth import Link

    from scripts.downloads.download import Client

IndexSource = SdistSource | WheelSource | MembersSource


def find_sdist(name: str, version: str, access: Access) -> str | None:
    """Return the sha256 that the first index with an sdist of `name` `version` lists for it, None without one."""
    from unearth import PackageFinder  # noqa: PLC0415  (0.2 s: only who asks an index loads it)

    with open_client(access) as client:
        for place in access.indexes.all_index_urls:
            finder = PackageFinder(
                client,
                index_urls=[place] if place else [],
                ignore_compatibility=True,
            )
            for match in finder.find_matches(f"{name}=={version}", allow_yanked=True, allow_prereleases=True):
                if not match.link.is_wheel:
                    sha256 = next(iter((match.link.hash_option or {}).get("sha256", [])), "")
                    if not sha256:
                        raise FetchError(
                            f"the index lists no sha256 for {match.link.filename}", fix="use another index"
                        )
                    return sha256
    return None


class _Warnings(logging.Handler):
    """Collects what unearth only logs: indexes that answered with an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def find_link(source: IndexSource, indexes: Indexes, client: Client) -> Link:
    """Return the link to the pinned file: the first index or find-links folder that lists it.

    Raises FetchError when no place lists it, or one lists other bytes under its name.
    """
    listed: list[Link] = []
    problems: list[str] = []
    for is_index, place in [(True, u) for u in indexes.all_index_urls] + [(False, u) for u in indexes.find_links]:
        try:
            listed += _links(source, place, client, is_index=is_index, problems=problems)
        except http_errors() as error:
            problems.append(f"{redacted(place)}: {type(error).__name__}: {error}")
        right = [link for link in listed if _listed_sha256(link) in {"", source.sha256}]
        if right:
            return right[0]
    raise _not_found(source, indexes, listed, problems)


def _links(source: IndexSource, place: str, client: Client, *, is_index: bool, problems: list[str]) -> list[Link]:
    from unearth import PackageFinder  # noqa: PLC0415  (loaded by open_client)

    finder = PackageFinder(
        client,  # type: ignore[arg-type]  # unearth's own client; only its protocol's annotations differ
        index_urls=[place] if is_index and place else [],
        find_links=[] if is_index else [place],
        trusted_hosts=(),
        ignore_compatibility=True,
    )
    heard = _Warnings()
    logger = logging.getLogger("unearth.collector")
    logger.addHandler(heard)
    logger.propagate = False
    try:
        matches = finder.find_matches(f"{source.name}=={source.version}", allow_yanked=True, allow_prereleases=True)
        wants_wheel = isinstance(source, WheelSource | MembersSource)
        return [match.link for match in matches if match.link.is_wheel == wants_wheel]
    finally:
        logger.removeHandler(heard)
        problems += [message for message in heard.messages if "(404)" not in message and "is ignored" not in message]


def _listed_sha256(link: Link) -> str:
    """Return the sha256 that an index lists for a file: in its JSON, or after `#` in the URLs of its HTML."""
    fragment = re.search(r"#.*sha256=([0-9a-f]{64})", link.url)
    return (link.hashes or {}).get("sha256", fragment[1] if fragment else "")


def _not_found(source: IndexSource, indexes: Indexes, listed: list[Link], problems: list[str]) -> FetchError:
    places = ", ".join(redacted(url) for url in (*indexes.all_index_urls, *indexes.find_links))
    if listed:
        digest_found = _listed_sha256(listed[0])
        return FetchError(
            f"the index lists other bytes for {listed[0].filename} than the recipe pins",
            why=f"sha256 there: {digest_found}; in the recipe: {source.sha256}",
            fix="do not build from it; find out who changed the file, or correct the recipe",
        )
    if problems:
        return unreachable(indexes.index_url, problems[0])
    kind = "wheel" if isinstance(source, WheelSource | MembersSource) else "sdist"
    return FetchError(
        f"no {kind} of {source.name} {source.version} was found",
        why=f"looked in: {places or 'nowhere: no index is configured'}",
        fix="check PIP_INDEX_URL and pip.conf: the index must carry this file",
    )
