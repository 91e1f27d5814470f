"""Can a recipe's git sources and its CUDA toolkit be had?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from scripts.core.cache import Cache
from scripts.downloads.access import Access
from scripts.downloads.mirrors import Mirror, address, rewrite
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource
from scripts.sources.git_process import unreachable
from scripts.sources.git_source import tree_key
from scripts.toolchain.choice import needs_packages
from scripts.toolchain.installed import find_system_toolkit
from scripts.toolchain.redist import is_cached


def missing_git(recipe: Recipe, cache: Cache, mirrors: Sequence[Mirror]) -> list[str]:
    """Return the URLs (as mirrors rewrite them) of git sources that are not in the cache yet."""
    sources = [recipe.source, *(item.source for item in recipe.needed_dependencies().values())]
    urls = []
    for source in sources:
        if isinstance(source, GitSource):
            key = tree_key(source, recipes=recipe.folder)
            if not cache.place("git-trees", key).is_dir():
                urls.append(address(rewrite(source.repository, mirrors)).url)
    return urls


def git_problems(urls: Sequence[str], *, offline: bool) -> list[str]:
    """Return why git hosts cannot be reached, once per host: a TCP connection to each, with a short time-out."""
    if offline:
        return [f"{len(urls)} git sources are not in the cache and --offline forbids fetching: {', '.join(urls)}"]
    hosts = {urlsplit(url).netloc: url for url in urls}
    with ThreadPoolExecutor(max_workers=8) as pool:
        causes = dict(zip(hosts, pool.map(unreachable, hosts.values()), strict=True))
    return [
        f"git host {host}: {cause} (needed for {sum(urlsplit(url).netloc == host for url in urls)} sources)"
        for host, cause in causes.items()
        if cause
    ]


def toolkit_problem(recipe: Recipe, access: Access) -> str:
    """Return why no CUDA toolkit can be had, "" when one can."""
    if needs_packages(recipe):
        return ""
    kind, cuda, redist = recipe.toolchain.kind, recipe.toolchain.cuda, recipe.toolchain.redist
    found = find_system_toolkit(cuda, access.environment) if kind in {"auto", "system"} else None
    if found and found.home:
        return ""
    seen = "; ".join(f"{item.place}: {item.why}" for item in found.rejected) if found else ""
    none = f"CUDA {cuda}: none is installed ({seen})" if found else f"CUDA {cuda}"
    if kind == "system" or redist is None:
        return none
    if is_cached(redist, access.cache):
        return ""
    cause = "--offline forbids downloads" if access.offline else unreachable(redist.base_url)
    return f"{none}; NVIDIA's archives: {cause}" if cause else ""
