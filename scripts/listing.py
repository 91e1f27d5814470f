"""What an index lists: the digest of an sdist that no recipe pins yet."""

from __future__ import annotations

from unearth import PackageFinder

from scripts.core.errors import FetchError
from scripts.download import open_client
from scripts.indexes import Indexes


def find_sdist(name: str, version: str, indexes: Indexes) -> str | None:
    """Return the sha256 that the first index with an sdist of `name` `version` lists for it, None without one."""
    with open_client(indexes) as client:
        for place in indexes.all_index_urls:
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
