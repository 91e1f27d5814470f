"""Single files of a wheel as a dependency: out of the whole wheel where it is at hand, else by range requests.

An excerpt is a zip of these files alone, under the names that they have in the wheel; bundles carry it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from scripts.core.console import human_bytes
from scripts.core.errors import FetchError
from scripts.core.files import digest, remove_tree
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
    key, wanted = _plan(source, recipes)

    def make(target: Path) -> None:
        if archive := cached():
            return _unpack_whole(archive.path, wanted, target)
        if _unpack_excerpt(source, key, wanted, target, access):
            return None
        if access.offline:
            raise not_in_cache(f"{source.name} {source.version} (the wheel, or {len(wanted)} of its files)")
        try:
            _unpack_remote(source, wanted, target, access)
        except NoRangesError:
            access.console.note(f"{source.name} {source.version}: the index sends whole files only")
            _unpack_whole(whole().path, wanted, target)
        return None

    return access.cache.once("dependencies", key, make, console=access.console)


def write_excerpt(source: MembersSource, folder: Path, recipes: Path, access: Access) -> Path:
    """Return the excerpt of a source whose files `folder` holds, from the cache's `excerpts`."""
    key, wanted = _plan(source, recipes)
    path = _excerpt(source, key, access)
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for member, (place, _) in sorted(wanted.items()):
            archive.writestr(zipfile.ZipInfo(member), (folder / place).read_bytes())  # of 1980: the same bytes always
    return partial.replace(path)


def _plan(source: MembersSource, recipes: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the key of a source's files, and member -> (path below the dependency's root, sha256)."""
    listed = read_list(source, recipes)
    key = digest([source.sha256, source.path, source.into, [[item.path, item.sha256] for item in listed]])
    return key, {f"{source.path}/{item.path}": (f"{source.into}/{item.path}", item.sha256) for item in listed}


def _excerpt(source: MembersSource, key: str, access: Access) -> Path:
    return access.cache.place("excerpts", f"{source.name}-{source.version}-{key[:20]}.zip")


def _unpack_excerpt(
    source: MembersSource, key: str, wanted: dict[str, tuple[str, str]], target: Path, access: Access
) -> bool:
    path = _excerpt(source, key, access)
    if not path.is_file():
        return False
    try:
        _unpack_whole(path, wanted, target)
    except FetchError as error:
        access.console.warn(f"{path.name} in the cache is damaged and is not used: {error.why}")
        path.unlink()
        remove_tree(target)
        target.mkdir()
        return False
    return True


def _unpack_whole(wheel: Path, wanted: dict[str, tuple[str, str]], target: Path) -> None:
    with wheel.open("rb") as file:
        unpack_members(file, wheel.name, wanted, target)


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
