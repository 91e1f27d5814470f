"""Single files of a wheel as a dependency: out of the whole wheel where it is at hand, else by range requests."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import IO

from scripts.core.console import human_bytes
from scripts.core.files import digest
from scripts.downloads.access import Access
from scripts.downloads.download import not_in_cache, open_client
from scripts.downloads.listing import find_link
from scripts.downloads.ranges import NoRangesError, RemoteFile
from scripts.downloads.unpack import unpack_members
from scripts.recipe.sources import MembersSource
from scripts.sources.digests import read_list
from scripts.sources.types import Archive


def fetch_members(
    source: MembersSource,
    access: Access,
    *,
    recipes: Path,
    cached: Callable[[], Archive | None],
    whole: Callable[[], Archive],
) -> Path:
    """Return the folder that holds a source's files, taken once into the cache, each with the digest that is listed.

    `cached` and `whole` give the wheel from the cache and from the index. Raises FetchError.
    """
    listed = read_list(source, recipes)
    wanted = {f"{source.path}/{item.path}": (f"{source.into}/{item.path}", item.sha256) for item in listed}

    def make(target: Path) -> None:
        if archive := cached():
            return _unpack_whole(archive, wanted, target)
        if access.offline:
            raise not_in_cache(f"{source.name} {source.version} (the wheel, or {len(wanted)} of its files)")
        try:
            _unpack_remote(source, wanted, target, access)
        except NoRangesError:
            access.console.note(f"{source.name} {source.version}: the index sends whole files only")
            _unpack_whole(whole(), wanted, target)
        return None

    key = digest([source.sha256, source.path, source.into, [[item.path, item.sha256] for item in listed]])
    return access.cache.once("dependencies", key, make, console=access.console)


def _unpack_whole(archive: Archive, wanted: dict[str, tuple[str, str]], target: Path) -> None:
    with archive.path.open("rb") as file:
        unpack_members(file, archive.path.name, wanted, target)


def _unpack_remote(source: MembersSource, wanted: dict[str, tuple[str, str]], target: Path, access: Access) -> None:
    with open_client(access) as client:
        link = find_link(source, access.indexes, client)
        if not link.normalized.startswith(("http://", "https://")):
            raise NoRangesError
        remote = RemoteFile(client, link.normalized, access)
        file: IO[bytes] = io.BufferedReader(remote)
        unpack_members(file, link.filename, wanted, target)
    access.console.note(
        f"{link.filename}: {len(wanted)} files, {human_bytes(remote.received)} of {human_bytes(remote.size)} received"
    )
