"""Stage fetch: the pinned sources of a recipe, in the cache, checked against their sha256.

Index look-up and download go through unearth (index URLs, find-links) and its HTTP client (netrc, proxies); an sdist
is never executed to be fetched.
"""

from __future__ import annotations

from pathlib import Path

from scripts.core.console import human_bytes
from scripts.core.files import digest, file_sha256
from scripts.core.paths import RECIPES
from scripts.downloads.access import Access
from scripts.downloads.download import download, not_in_cache, open_client
from scripts.downloads.listing import IndexSource, find_link
from scripts.downloads.unpack import unpack_sdist, unpack_wheel
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, MembersSource, SdistSource, WheelSource
from scripts.sources.git_source import fetch_git
from scripts.sources.members import fetch_members, write_excerpt
from scripts.sources.types import Archive, Fetched, GitTree


def fetch_recipe(recipe: Recipe, access: Access) -> Fetched:
    """Return a recipe's sources from the cache, downloading what is missing. Raises FetchError."""
    received: dict[str, int] = {}
    source: Archive | GitTree
    if isinstance(recipe.source, GitSource):
        source = _fetch_git(recipe.source, recipe.folder, access)
        received["source"] = source.received
        access.console.stage("fetch", f"{recipe.package.name} {recipe.package.version} ({_arrived(source)})")
    else:
        source = fetch_archive(recipe.source, access)
        access.console.stage("fetch", f"{source.path.name} ({human_bytes(source.size)})")
    folders = {}
    for name, dependency in recipe.needed_dependencies().items():
        if isinstance(dependency.source, GitSource):
            tree = _fetch_git(dependency.source, recipe.folder, access)
            folders[name], received[name] = tree.path, tree.received
            access.console.note(f"{name} {dependency.version} ({_arrived(tree)})")
        else:
            folders[name] = fetch_dependency(dependency.source, access, recipes=recipe.folder)
            access.console.note(f"{name} {dependency.version}")
    return Fetched(source, folders, received)


def _fetch_git(source: GitSource, folder: Path, access: Access) -> GitTree:
    return fetch_git(source, access, recipes=folder)


def _arrived(tree: GitTree) -> str:
    got = f"{human_bytes(tree.received)} received" if tree.received else "in the cache"
    return f"commit {tree.commit[:12]}, {tree.files} files, {got}"


def fetch_dependency(source: IndexSource, access: Access, *, recipes: Path = RECIPES) -> Path:
    """Return the folder of a dependency from the package index, unpacked once into the cache."""
    if isinstance(source, MembersSource):
        return fetch_members(
            source,
            access,
            recipes=recipes,
            cached=lambda: _cached(source, access),
            whole=lambda: fetch_archive(source, access),
        )
    folder = source.path if isinstance(source, WheelSource) else ""
    key = digest([source.sha256, folder])

    def make(target: Path) -> None:
        unpack_wheel(fetch_archive(source, access).path, target, folder=folder)

    return access.cache.once("dependencies", key, make, console=access.console)


def fetch_archive(source: IndexSource, access: Access) -> Archive:
    """Return the pinned file: from the cache, where its digest is checked again, or from the package index."""
    cached = _cached(source, access)
    if cached:
        return cached
    if access.offline:
        raise not_in_cache(f"{source.name} {source.version}")
    with open_client(access) as client:
        link = find_link(source, access.indexes, client)
        path = download(client, link.normalized, access, sha256=source.sha256, filename=link.filename)
    return Archive(path, source.sha256, path.stat().st_size)


def fetch_for_bundle(source: IndexSource, access: Access, recipes: Path) -> Path:
    """Return the file that a bundle carries for a source: the pinned file, or an excerpt of it. Raises FetchError."""
    if isinstance(source, MembersSource):
        return write_excerpt(source, fetch_dependency(source, access, recipes=recipes), recipes, access)
    return fetch_archive(source, access).path


def _cached(source: IndexSource, access: Access) -> Archive | None:
    folder = access.cache.place("downloads", source.sha256)
    for path in sorted(folder.glob("[!.]*")) if folder.is_dir() else []:
        if file_sha256(path) == source.sha256:
            return Archive(path, source.sha256, path.stat().st_size)
        access.console.warn(f"{path.name} in the cache is damaged and is fetched again")
        path.unlink()
    return None


def source_tree(source: SdistSource | GitSource, access: Access) -> Path:
    """Return a source as a tree without patches, from the cache or fetched. Raises FetchError."""
    if isinstance(source, GitSource):
        return _fetch_git(source, RECIPES, access).path
    archive = fetch_archive(source, access)
    key = archive.sha256[:20]
    return access.cache.once("sources", key, lambda target: unpack_sdist(archive.path, target), console=access.console)
