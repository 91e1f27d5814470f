"""Does a recipe say what its source says? Differences are found before the first compile, not after the last."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.core.console import Console
from scripts.core.errors import DoctorError
from scripts.recipe.model import Component, Dependency, Host, Recipe
from scripts.recipe.sources import GitSource
from scripts.upstream.fetches import Fetch
from scripts.upstream.known import KNOWN
from scripts.upstream.tree import Upstream, read_upstream

SHORT = 8  # digits of a commit that name it to people


def disagreements(recipe: Recipe, tree: Path) -> list[str]:
    """Return one sentence per point where `recipe` and the source tree differ. Raises FetchError (see upstream)."""
    return differences(recipe, read_upstream(tree))


def differences(recipe: Recipe, upstream: Upstream) -> list[str]:
    """Return one sentence per point where `recipe` and what was read from its source differ."""
    return [*_decisive(recipe, upstream), *_requirements(recipe, upstream)]


def check_agreement(recipe: Recipe, tree: Path, console: Console) -> None:
    """Refuse a recipe whose torch, components, archs or pins are not those of the source; warn of lesser things.

    Before anything is compiled: a component that upstream does not build would be missing hours later.
    Raises DoctorError, or FetchError for a source that fetches something unknown.
    """
    upstream = read_upstream(tree)
    for sentence in _requirements(recipe, upstream):
        console.warn(sentence)
    if decisive := list(_decisive(recipe, upstream)):
        raise DoctorError(
            f"recipe {recipe.name} and its source disagree",
            why="; ".join(decisive[:5]),
            fix=f"correct the recipe, or make one from the source: nox -s lock -- vllm {recipe.package.version}",
            docs="docs/sources.md",
        )


def _decisive(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    yield from _torch(recipe, upstream)
    yield from _components(recipe, upstream)
    yield from _archs(recipe, upstream)
    yield from _dependencies(recipe, upstream)
    yield from _host(recipe, upstream)


def _host(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    ours, theirs = recipe.toolchain.host, upstream.host
    if ours == Host():
        return  # says nothing of it: older recipes
    if (ours.python, ours.cxx) != (theirs.python, theirs.cxx):
        yield (
            f"toolchain.host says Python {ours.python} and C++{ours.cxx}, "
            f"upstream wants {theirs.python} and C++{theirs.cxx}"
        )
    newest = max(theirs.gcc.values(), key=Version, default="")
    if max(ours.gcc.values(), key=Version, default="") != newest:
        yield f"toolchain.host.gcc names no GCC {newest or 'at all'}, as upstream does"


def _torch(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    if recipe.torch.version != upstream.torch:
        yield f"torch is {recipe.torch.version} in the recipe, upstream pins {upstream.torch}"


def _components(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    known = {extension.name: extension for extension in upstream.extensions}
    for component in recipe.components:
        extension = known.get(component.value)
        if extension is None:
            yield f"component {component.value} is not among upstream's extensions: {', '.join(known)}"
        elif extension.cuda and _numbers(recipe.toolchain.cuda) < _numbers(extension.cuda):
            yield f"component {component.value} needs CUDA {extension.cuda}, the recipe has {recipe.toolchain.cuda}"


def _archs(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    cuda = _numbers(recipe.toolchain.cuda)
    first = max((key for key in upstream.archs if not key or _numbers(key) <= cuda), key=_numbers)
    for arch in recipe.archs:
        if arch.number not in upstream.archs[first]:
            shown = " ".join(upstream.archs[first])
            yield f"arch {arch} is not among those upstream builds for with CUDA {recipe.toolchain.cuda}: {shown}"


def _dependencies(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    wanted = set(recipe.components)
    for fetch in upstream.fetches:
        known = KNOWN.get(fetch.name)
        if known is None:
            yield f"upstream fetches {fetch.name} ({fetch.repository}), which no recipe can pin yet"
            continue
        dependency = recipe.dependencies.get(known.name)
        if dependency is None:
            needed = not known.components or wanted & (set(known.components) - {Component.CORE})
            if needed:
                yield f"dependency {known.name} is missing: upstream fetches it at {fetch.pin}"
            continue
        yield from _pin(known.name, dependency, fetch)
    fetched = {KNOWN[fetch.name].name for fetch in upstream.fetches if fetch.name in KNOWN}
    for name in recipe.dependencies:
        if name not in fetched:
            yield f"dependency {name} is in the recipe, but upstream does not fetch it"


def _pin(name: str, dependency: Dependency, fetch: Fetch) -> Iterator[str]:
    source = dependency.source
    is_commit = re.fullmatch(r"[0-9a-f]{40}", fetch.pin) is not None
    if isinstance(source, GitSource):
        ours = source.commit if is_commit else source.tag
    else:
        ours = dependency.version if is_commit else f"v{dependency.version}"
        if is_commit and len(ours) >= SHORT and fetch.pin.startswith(ours):
            ours = fetch.pin  # said to be of that commit; what it is, its digests say
    if dependency.instead_of:
        ours = dependency.instead_of
    if ours != fetch.pin:
        yield f"dependency {name} is at {ours or 'no tag'} in the recipe, upstream pins {fetch.pin}"
    if fetch.variable and dependency.variable != fetch.variable:
        yield f"dependency {name} is given as {dependency.variable}, upstream reads {fetch.variable}"


def _requirements(recipe: Recipe, upstream: Upstream) -> Iterator[str]:
    ours = {canonicalize_name(r.name): r for r in map(Requirement, recipe.toolchain.build_requirements)}
    for text in upstream.build_requirements:
        theirs = Requirement(text)
        own = ours.get(canonicalize_name(theirs.name))
        if own is None:
            yield f"build requirement {text} is missing"
        elif not _as_strict(own, theirs):
            yield f"build requirement {own} allows what upstream's {text} does not"


def _as_strict(own: Requirement, theirs: Requirement) -> bool:
    pinned = [item.version for item in own.specifier if item.operator == "=="]
    if pinned:
        return theirs.specifier.contains(pinned[0], prereleases=True)
    return {_clause(str(item)) for item in theirs.specifier} <= {_clause(str(item)) for item in own.specifier}


def _clause(text: str) -> str:
    return re.sub(r"(\.0)+$", "", text.replace(" ", ""))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if version else ()
