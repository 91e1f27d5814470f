"""Upstream's pins, resolved to commits and digests, as the data of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.core.errors import FetchError
from scripts.core.paths import RECIPES
from scripts.cuda.labels import cuda_label
from scripts.downloads.access import Access
from scripts.downloads.listing import find_sdist
from scripts.downloads.mirrors import VARIABLE, repository_key
from scripts.recipe.fields import FROM_TREE
from scripts.recipe.model import Component, Recipe
from scripts.recipe.sources import GitSource, SdistSource
from scripts.sources.git_checkout import Checkout, Work
from scripts.upstream.fetches import Fetch
from scripts.upstream.known import KNOWN, Known
from scripts.upstream.tree import Upstream

REPOSITORY = "https://github.com/vllm-project/vllm"
DOCS = "docs/sources.md#lock"
UNRESOLVED = "UNRESOLVED"  # no recipe reads it as a commit
TOOLKIT_WHEELS = {"13.0": "13.0.2"}  # CUDA whose compiler is on the package index: release of `cuda-toolkit`
REDIST_RELEASES = {"12.6": "12.6.3", "12.8": "12.8.1", "12.9": "12.9.1"}  # last release of each CUDA 12 line
WANTED_ARCHS = ("8.0", "8.6", "8.9", "9.0", "12.0")
_TOOLKIT = re.compile(r"^cuda-toolkit(?:\[[^]]*\])?==(\d+\.\d+\.\d+)", re.MULTILINE)
_CUDA = re.compile(r"^(?:nvidia-cuda-runtime(?:-cu\d+)?|cuda-toolkit)(?:\[[^]]*\])?==(\d+\.\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Resolver:
    """Turns what upstream writes into commits."""

    access: Access
    recipes: Sequence[Recipe]
    strict: bool = True
    """Whether a server that cannot be asked is an error; else the pin is shown as UNRESOLVED."""
    unresolved: list[str] = field(default_factory=list)

    def source(self, fetch: Fetch, known: Known) -> dict[str, Any]:
        """Return the `source` table of a fetch. Raises FetchError when the server is needed and cannot be asked."""
        repository = fetch.repository.removesuffix(".git")
        is_commit = re.fullmatch(r"[0-9a-f]{40}", fetch.pin) is not None
        commit = fetch.pin if is_commit else self.commit_of(repository, fetch.pin)
        table: dict[str, Any] = {"kind": "git", "repository": repository, "commit": commit}
        if not is_commit:
            table["tag"] = fetch.pin
        table["subdirectories"] = list(known.folders_of(fetch))
        table["path"] = known.path
        table["submodules"] = self.submodules(repository, commit, known.submodules_of(fetch))
        table["skip_submodules"] = list(known.skip_submodules)
        listed = f"{known.name}-{fetch.pin}.sha256"
        if (RECIPES / listed).is_file():
            table["files_sha256"] = listed
        return {key: value for key, value in table.items() if value and (key, value) != ("path", ".")}

    def commit_of(self, repository: str, tag: str) -> str:
        """Return the commit of a tag, from a recipe that pins it or from the server."""
        for source in self._pinned(repository):
            if source.tag == tag:
                return source.commit
        try:
            with Work(self._ask(), Checkout(repository, "")) as work:
                commit = work.tag_commit(tag)
        except FetchError as error:
            return self._given_up(f"tag {tag} of {repository}", error)
        if commit is None:
            missing = FetchError(f"{repository} has no tag {tag!r}", fix="check the version, or the mirror", docs=DOCS)
            return self._given_up(f"tag {tag} of {repository}", missing)
        return commit

    def submodules(self, repository: str, commit: str, paths: Sequence[str]) -> dict[str, str]:
        """Return the commits of submodules at `commit`, from a recipe that pins it or from the server.

        Without a server they are what the tree of `commit` names: as surely pinned, if not written down.
        """
        if not paths:
            return {}
        for source in self._pinned(repository):
            if source.commit == commit and set(paths) <= set(source.submodules):
                return {path: source.submodules[path] for path in paths}
        try:
            with Work(self._ask(), Checkout(repository, commit, folders=tuple(paths))) as work:
                work.fetch()
                return {entry.path: entry.oid for entry in work.entries() if entry.kind == "commit"}
        except FetchError:
            return dict.fromkeys(paths, FROM_TREE)

    def _ask(self) -> Access:
        """After one failure, the others need not wait for the same network."""
        return replace(self.access, offline=True) if self.unresolved else self.access

    def _given_up(self, what: str, error: FetchError) -> str:
        if self.strict:
            raise error
        if not self.unresolved:
            self.access.console.warn(f"{error.what}: {error.why}")
        self.unresolved.append(what)
        return UNRESOLVED

    def _pinned(self, repository: str) -> Iterable[GitSource]:
        key = repository_key(repository)
        for recipe in self.recipes:
            for source in [recipe.source, *(item.source for item in recipe.dependencies.values())]:
                if isinstance(source, GitSource) and repository_key(source.repository) == key:
                    yield source


def recipe_data(
    version: str, source: Mapping[str, Any], upstream: Upstream, resolver: Resolver, *, cuda: str, toolkit: str = ""
) -> dict[str, Any]:
    """Return the tables of a recipe for everything upstream builds with CUDA `cuda`.

    `toolkit`: release of the compiler's wheels, "" for the one that is known to go with `cuda`.
    """
    unknown = [fetch for fetch in upstream.fetches if fetch.name not in KNOWN]
    if unknown:
        raise FetchError(
            f"upstream fetches {unknown[0].name} ({unknown[0].repository}), which wheelsmith does not know",
            why=f"in {unknown[0].file}; a recipe without it would clone it unpinned",
            fix="enter it into scripts/upstream/known.py: which components need it, and which folders of it",
            docs=DOCS,
        )
    first = max((key for key in upstream.archs if not key or _numbers(key) <= _numbers(cuda)), key=_numbers)
    extensions = [e for e in upstream.extensions if not e.cuda or _numbers(e.cuda) <= _numbers(cuda)]
    strange = [e.name for e in extensions if e.name not in {item.value for item in Component}]
    if strange:
        raise FetchError(f"setup.py has the extension {strange[0]!r}, which wheelsmith does not know", docs=DOCS)
    components = [extension.name for extension in extensions]
    dependencies = {}
    for fetch in upstream.fetches:
        known = KNOWN[fetch.name]
        needed = [component.value for component in known.components if component.value in components]
        if known.components and not needed:
            continue
        if not fetch.variable:
            raise FetchError(f"{fetch.file}: {fetch.name} cannot be given as a directory", docs=DOCS)
        label = fetch.pin.removeprefix("v") if "." in fetch.pin else fetch.pin[:8]
        table: dict[str, Any] = {
            "version": label,
            "variable": fetch.variable,
            "components": needed,
            "cmake": known.cmake,
        }
        table["source"] = resolver.source(fetch, known)
        dependencies[known.name] = {key: value for key, value in table.items() if value}
    return {
        "description": f"vLLM {version} whole, against torch {upstream.torch} (CUDA {cuda})",
        "archs": [arch for arch in WANTED_ARCHS if arch in upstream.archs[first]],
        "components": components,
        "package": {"name": "vllm", "version": version},
        "source": dict(source),
        "dependencies": dependencies,
        "torch": {"version": upstream.torch, "cuda": cuda},
        "toolchain": _toolchain(version, cuda, upstream, toolkit),
    }


def remarks(upstream: Upstream, data: Mapping[str, Any]) -> list[str]:
    """Return what a user should know of a recipe that was made from upstream's files, one sentence each."""
    from_git = {name: item for name, item in data["dependencies"].items() if item["source"]["kind"] == "git"}
    named = [
        f"{name} {item['version']} ({', '.join(item.get('components', ())) or 'all components'})"
        for name, item in from_git.items()
    ]
    said = [f"no package index has, git hosts alone: {'; '.join(named)}"] if named else []
    if upstream.rust:
        said.append(
            "the Rust front end (vllm-rs) is left out: upstream makes it optional, and no package index has its crates"
        )
    for component, version in upstream.host.gcc.items():
        what = "configures with" if component == "all" else f"builds {component} with"
        said.append(f"upstream {what} GCC {version} or newer, in C++{upstream.host.cxx}")
    return said


def _toolchain(version: str, cuda: str, upstream: Upstream, toolkit: str) -> dict[str, Any]:
    table: dict[str, Any] = {
        "kind": "pypi" if cuda in TOOLKIT_WHEELS else "auto",
        "cuda": cuda,
        "lock": f"locks/vllm-{version}-{cuda_label(cuda)}.txt",
        "cuda_packages": _cuda_packages(cuda, toolkit),
        "build_requirements": [*upstream.build_requirements, "build"],
        "redist": {"release": REDIST_RELEASES[cuda]} if cuda in REDIST_RELEASES else {},
        "host": upstream.host.model_dump(mode="json", exclude_defaults=True),
    }
    return {key: value for key, value in table.items() if value}


def _cuda_packages(cuda: str, toolkit: str) -> list[str]:
    if cuda not in TOOLKIT_WHEELS:
        return []
    return [f"cuda-toolkit[nvcc,nvvm,crt,cccl]=={toolkit or TOOLKIT_WHEELS[cuda]}"]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if version else ()


def source_table(version: str, kind: str, resolver: Resolver) -> dict[str, Any]:
    """Return the `source` table for vLLM itself; `auto` is the sdist where the index has one, else git."""
    if kind != "git":
        found = find_sdist("vllm", version, resolver.access)
        if found is not None:
            return {"kind": "sdist", "name": "vllm", "version": version, "sha256": found}
        if kind == "sdist":
            raise FetchError(
                f"the index has no sdist of vllm {version}",
                fix=f"nox -s lock -- vllm {version} --source git",
                docs=DOCS,
            )
    commit = resolver.commit_of(REPOSITORY, f"v{version}")
    if commit == UNRESOLVED:
        raise FetchError(
            f"the commit of vllm {version} cannot be resolved",
            why="the index has no sdist of it, and the git host cannot be reached",
            fix=f"set {VARIABLE}, or name a version that has an sdist",
            docs=DOCS,
        )
    return {"kind": "git", "repository": REPOSITORY, "commit": commit, "tag": f"v{version}"}


def _source(table: Mapping[str, Any]) -> SdistSource | GitSource:
    return GitSource.model_validate(table) if table["kind"] == "git" else SdistSource.model_validate(table)


def torch_cuda(lock: str) -> str:
    """Return the CUDA that the locked torch was built with, by the runtime it depends on: `12.8`."""
    found = _CUDA.findall(lock)
    if not found:
        raise FetchError("the locked torch depends on no CUDA runtime", why="it is a CPU build", docs=DOCS)
    return str(found[0])


def torch_toolkit(lock: str) -> str:
    """Return the release of `cuda-toolkit` that the locked torch depends on, "" where it depends on none: `13.0.3`.

    Another release of the compiler's wheels would contradict it.
    """
    found = _TOOLKIT.findall(lock)
    return str(found[0]) if found else ""
