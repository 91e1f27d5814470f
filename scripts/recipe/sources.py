"""Where a recipe's bytes come from: archives on the package index, and commits of git repositories."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scripts.core.models import CommitSha, Model, Sha256
from scripts.recipe.fields import RelativePath, SubmodulePin, TagText, VersionText


class SdistSource(Model):
    """A source distribution on the package index. Never executed to be fetched."""

    kind: Literal["sdist"]
    name: str
    """Project name on the index."""
    version: VersionText
    sha256: Sha256


class WheelSource(Model):
    """A wheel on the package index of which one folder is used (headers, say). Only unpacked, never installed."""

    kind: Literal["wheel"]
    name: str
    """Project name on the index."""
    version: VersionText
    sha256: Sha256
    path: RelativePath
    """Folder inside the wheel that is the dependency's root."""


class MembersSource(Model):
    """Files of a wheel on the package index, each pinned by its digest; only they are fetched where that can be."""

    kind: Literal["wheel-members"]
    name: str
    """Project name on the index."""
    version: VersionText
    sha256: Sha256
    """Of the whole wheel: it says which file of the index is meant, and is checked when all of it is downloaded."""
    path: RelativePath
    """Folder inside the wheel that the files are taken from."""
    files_sha256: RelativePath
    """File beside the recipe that lists `sha256  path` of each file to take, with paths below `path`."""
    into: RelativePath = "."
    """Folder below the dependency's root that they go to: `flash_attn/cute`."""


class GitSource(Model):
    """A commit of a git repository."""

    kind: Literal["git"]
    repository: str = Field(pattern=r"^(https|ssh|file)://\S+$")
    """URL of the repository; mirrors are set outside recipes (WHEELSMITH_MIRROR)."""
    commit: CommitSha
    tag: TagText = ""
    """Label for people; checked to name the commit when the server is asked."""
    subdirectories: tuple[RelativePath, ...] = ()
    """Fetch only these folders or files (all when empty); one inside a submodule restricts that submodule only."""
    path: RelativePath = "."
    """Folder inside the repository that is the dependency's root."""
    submodules: dict[RelativePath, SubmodulePin] = {}
    """Submodules to fetch, by path, with the commit each must be at; `tree`: the one that the tree of `commit` names,
    which is as surely pinned by `commit`, but not written down here."""
    skip_submodules: tuple[RelativePath, ...] = ()
    """Submodules that are knowingly left out."""
    files_sha256: RelativePath | None = None
    """File beside the recipe that lists `sha256  path` of every file the dependency must consist of."""


Source = Annotated[SdistSource | WheelSource | MembersSource | GitSource, Field(discriminator="kind")]


def describe(source: Source) -> str:
    """Return a source in one line: where from and its pin."""
    if isinstance(source, GitSource):
        return f"git {source.repository} at {source.commit[:12]}" + (f" ({source.tag})" if source.tag else "")
    inside = f", folder {source.path}" if source.kind in {"wheel", "wheel-members"} else ""
    return f"{source.kind} {source.name} {source.version}{inside}, sha256 {source.sha256[:12]}…"
