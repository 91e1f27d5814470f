"""Before anything large starts: can every source and the CUDA toolkit be had? One message for all that cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from scripts.cache import Cache
from scripts.cuda_redist import is_cached
from scripts.cuda_system import find_system_toolkit, ways_to_get
from scripts.cuda_toolkit import needs_packages
from scripts.errors import DoctorError
from scripts.git_checkout import Access
from scripts.git_process import git_program, unreachable
from scripts.git_source import tree_key
from scripts.mirrors import VARIABLE, Mirror, address, rewrite
from scripts.recipe import RECIPES, GitSource, Recipe


def missing_git(recipe: Recipe, cache: Cache, mirrors: Sequence[Mirror]) -> list[str]:
    """Return the URLs (as mirrors rewrite them) of git sources that are not in the cache yet."""
    sources = [recipe.source, *(item.source for item in recipe.needed_dependencies().values())]
    urls = []
    for source in sources:
        if isinstance(source, GitSource):
            beside = source.files_sha256 is not None and (recipe.folder / source.files_sha256).is_file()
            key = tree_key(source, recipes=recipe.folder if beside else RECIPES)
            if not cache.place("git-trees", key).is_dir():
                urls.append(address(rewrite(source.repository, mirrors)).url)
    return urls


def check_reach(recipe: Recipe, access: Access, *, environment: Mapping[str, str]) -> None:
    """Refuse to start when git hosts or CUDA that the recipe needs cannot be reached. Raises DoctorError.

    Hosts are asked for a TCP connection only, all at once, with a short time-out.
    """
    lacks: list[str] = []
    fixes: list[str] = []
    urls = missing_git(recipe, access.cache, access.mirrors)
    if urls:
        git_program()
        lacks += _git_problems(urls, offline=access.offline)
        if lacks:
            fixes += [
                "check the network and HTTPS_PROXY, then run again: what came is kept",
                f"fetch from a mirror: {VARIABLE}='https://github.com/=https://your-mirror/' (or file:///path)",
                "bring the sources on a disk: nox -s fetch -- --from-bundle FILE (docs/sources.md)",
            ]
    if toolkit := _toolkit_problem(recipe, access, environment):
        lacks.append(toolkit)
        fixes += ways_to_get(recipe.toolchain.cuda)[1:]
    if lacks:
        raise DoctorError(
            f"{recipe.name} cannot be built here yet: {len(lacks)} thing(s) are missing",
            why="\n       ".join(lacks),
            fix=[*fixes, "build what needs neither: nox -s wheel -- --recipe quickstart"],
            docs="docs/production.md",
        )


def _git_problems(urls: Sequence[str], *, offline: bool) -> list[str]:
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


def _toolkit_problem(recipe: Recipe, access: Access, environment: Mapping[str, str]) -> str:
    """Return why no CUDA toolkit can be had, "" when one can."""
    if needs_packages(recipe):
        return ""
    kind, cuda, redist = recipe.toolchain.kind, recipe.toolchain.cuda, recipe.toolchain.redist
    found = find_system_toolkit(cuda, environment) if kind in {"auto", "system"} else None
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
