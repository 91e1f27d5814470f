"""Sources from git: exactly the pinned commit, only the files wanted, checked, as a plain directory in the cache.

One bare repository per upstream repository is kept in the cache and shared by all recipes, so two commits of one
repository share objects. What is fetched is the commit without history, its tree, and the blobs of the wanted
folders (partial clone); servers that cannot do that send the commit's files whole. No ref of the server is ever
used in place of the pinned commit: a tag is a label, compared with the commit and asked for only where a server
refuses to hand out commits by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from scripts.core.errors import FetchError
from scripts.core.files import digest, write_json
from scripts.core.paths import RECIPES
from scripts.downloads.access import Access
from scripts.downloads.mirrors import repository_key, resolve
from scripts.recipe.fields import FROM_TREE
from scripts.recipe.sources import GitSource
from scripts.sources.digests import check_files, read_list, tree_digest, tree_files
from scripts.sources.git_checkout import Checkout, TreeEntry, Work, is_below
from scripts.sources.types import GitTree

RECORD = "fetched.json"


def fetch_git(source: GitSource, access: Access, *, recipes: Path = RECIPES) -> GitTree:
    """Return the pinned tree of `source`, from the cache or the server. Raises FetchError."""
    listed = read_list(source, recipes)
    key = tree_key(source, recipes=recipes)
    final = access.cache.place("git-trees", key)
    known = final.is_dir()

    def make(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        received, submodules = _collect(access, source, tree)
        check_files(tree / source.path, listed, source)
        count = sum(1 for _ in tree_files(tree))
        record = {"repository": source.repository, "commit": source.commit, "tag": source.tag, "received": received}
        write_json(folder / RECORD, record | {"digest": tree_digest(tree), "files": count, "submodules": submodules})

    access.cache.once("git-trees", key, make, console=access.console)
    record = json.loads((final / RECORD).read_text(encoding="utf-8"))
    return GitTree(
        path=final / "tree" / source.path,
        commit=record["commit"],
        received=0 if known else record["received"],
        digest=record["digest"],
        files=record["files"],
        submodules=record["submodules"],
    )


def tree_key(source: GitSource, *, recipes: Path = RECIPES) -> str:
    """Return the cache key of a source's tree: it changes with anything that decides the tree."""
    wanted = source.model_dump(mode="json", exclude={"tag", "repository", "files_sha256"})
    listed = [asdict(item) for item in read_list(source, recipes)]
    return digest([repository_key(source.repository), wanted, listed])


def _collect(access: Access, source: GitSource, tree: Path) -> tuple[int, dict[str, str]]:
    """Write the repository and its submodules into `tree`; return bytes received and the submodules' commits."""
    received, submodules = 0, {}
    for work, count in walk(access, source):
        work.write(tree)
        received += count
        if work.job.prefix:
            submodules[work.job.prefix.rstrip("/")] = work.job.commit
    return received, submodules


def walk(access: Access, source: GitSource) -> Iterator[tuple[Work, int]]:
    """Yield each repository of a source, fetched and locked, with the bytes received: itself, then its submodules.

    Raises FetchError when submodules are not as the recipe says.
    """
    jobs = [Checkout(source.repository, source.commit, source.tag, source.subdirectories)]
    pinned: dict[str, str] = dict(source.submodules)
    done: set[str] = set()
    while jobs:
        job = jobs.pop()
        own = [path.removeprefix(job.prefix) for path in pinned if path.startswith(job.prefix)]
        with Work(access, _narrowed(job, own)) as work:
            received = work.fetch()
            gitlinks = [entry for entry in work.entries() if entry.kind == "commit"]
            urls = work.submodule_urls() if gitlinks else {}
            yield work, received
        for link in gitlinks:
            path = job.prefix + link.path
            if _skipped(path, source.skip_submodules):
                continue
            url = _checked_submodule(path, link, pinned, urls, job)
            inner = [PurePosixPath(f).relative_to(link.path).as_posix() for f in job.folders if is_below(f, link.path)]
            jobs.append(Checkout(resolve(job.url, url), link.oid, "", () if "." in inner else tuple(inner), path + "/"))
            done.add(path)
    if missing := sorted(set(pinned) - done):
        raise FetchError(
            f"{source.repository} has no submodule {missing[0]!r} at commit {source.commit}",
            why="the recipe pins one there" + (f"; it has {', '.join(sorted(done))}" if done else ""),
            fix="correct `submodules` in the recipe: paths as in the repository's .gitmodules",
        )


def _narrowed(job: Checkout, submodules: Sequence[str]) -> Checkout:
    """Return the job with folders of its own only: those inside a submodule restrict that submodule, not this one."""
    inside = {folder: path for folder in job.folders for path in submodules if is_below(folder, path)}
    own = tuple(folder for folder in job.folders if folder not in inside)
    return replace(job, folders=(*own, *dict.fromkeys(inside.values())) if own else ())


def _checked_submodule(path: str, link: TreeEntry, pinned: dict[str, str], urls: dict[str, str], job: Checkout) -> str:
    """Return the URL of a submodule that the recipe pins to the commit the tree has."""
    if path not in pinned:
        raise FetchError(
            f"{job.url} has a submodule at {path!r} that the recipe does not mention",
            why=f"it is at commit {link.oid}; leaving it out unseen could break the build",
            fix=f'pin it (submodules = {{ "{path}" = "{link.oid}" }}) or leave it out (skip_submodules = ["{path}"])',
        )
    if pinned[path] not in {link.oid, FROM_TREE}:
        raise FetchError(
            f"submodule {path!r} of {job.url} is not at the pinned commit",
            why=f"commit {job.commit} has it at {link.oid}, the recipe pins {pinned[path]}",
            fix="correct the recipe: both pins come from the same upstream commit",
        )
    if link.path not in urls:
        raise FetchError(
            f"submodule {path!r} of {job.url} has no URL",
            why=f".gitmodules of commit {job.commit} does not name it",
            fix="pin another commit, or report it to that project",
        )
    return urls[link.path]


def _skipped(path: str, skipped: Iterable[str]) -> bool:
    return any(is_below(path, folder) for folder in skipped)
