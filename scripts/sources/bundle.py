"""All sources of a recipe in one file, for machines without a network.

The file is a tar of `manifest.json` (names, sha256 and sizes), the pinned archives as they are, excerpts of wheels of
which a recipe takes single files, and one git pack per repository. Nothing in it is trusted: archives must have the
sha256 that the recipe pins, the files of an excerpt those that its list pins, and git objects are what their ids say,
from the pinned commit down.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.core.console import human_bytes
from scripts.core.errors import FetchError, from_os_error
from scripts.core.files import file_sha256
from scripts.core.models import CommitSha, Sha256
from scripts.downloads.access import Access
from scripts.downloads.listing import IndexSource
from scripts.downloads.mirrors import repository_key
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, MembersSource
from scripts.sources.git_checkout import Checkout, Work
from scripts.sources.git_source import walk

FORMAT = 1
DOCS = "docs/sources.md#bundles"
_BLOCK = 1 << 20


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Model):
    """A file of the bundle: a pinned archive, an excerpt of one, or a git pack of one commit."""

    kind: Literal["archive", "excerpt", "pack"]
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")
    """File name."""
    sha256: Sha256
    size: int
    """Bytes."""
    repository: str = Field(default="", pattern=r"^((https?|ssh|file)://\S+)?$")
    commit: CommitSha | Literal[""] = ""
    """For a pack: the commit it holds."""

    @property
    def path(self) -> str:
        """Where it lies in the tar."""
        return f"{self.kind}s/{self.sha256[:16]}-{self.name}"


class Manifest(_Model):
    """What a bundle holds."""

    format: Literal[1]
    recipe: str
    recipe_digest: str
    members: tuple[Member, ...]


ArchiveOf = Callable[[IndexSource], Path]
"""Fetches a pinned archive, or makes an excerpt of it."""


@dataclass(frozen=True)
class _Found:
    member: Member
    path: Path


def write_bundle(recipe: Recipe, target: Path, *, access: Access, archive_of: ArchiveOf) -> Manifest:
    """Fetch what is missing and write all sources of a recipe to `target`. Raises FetchError."""
    with tempfile.TemporaryDirectory(dir=access.cache.root, prefix=".bundle-") as folder:
        found = {item.member.path: item for item in _sources(recipe, Path(folder), access, archive_of)}
        members = tuple(item.member for _, item in sorted(found.items()))
        manifest = Manifest(format=FORMAT, recipe=recipe.name, recipe_digest=recipe.digest, members=members)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                _write_tar(file, manifest, [item.path for _, item in sorted(found.items())])
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise from_os_error(
                FetchError, error, doing="writing the bundle", path=target, variable="--bundle"
            ) from error
    size = target.stat().st_size
    access.console.stage("bundle", f"{target}: {len(members)} sources of {recipe.name}, {human_bytes(size)}")
    return manifest


def _sources(recipe: Recipe, folder: Path, access: Access, archive_of: ArchiveOf) -> Iterator[_Found]:
    sources = [recipe.source, *(item.source for item in recipe.needed_dependencies().values())]
    for source in sources:
        if isinstance(source, GitSource):
            yield from _packs(source, folder, access)
            continue
        path, part = archive_of(source), isinstance(source, MembersSource)
        sha256 = file_sha256(path) if part else source.sha256
        kind: Literal["archive", "excerpt"] = "excerpt" if part else "archive"
        yield _Found(Member(kind=kind, name=path.name, sha256=sha256, size=path.stat().st_size), path)


def _packs(source: GitSource, folder: Path, access: Access) -> Iterator[_Found]:
    for number, (work, _) in enumerate(walk(access, source)):
        job = work.job
        path = folder / f"{number}-{repository_key(job.url)}-{job.commit}.pack"
        with path.open("wb") as output:
            work.pack(output)
        name = f"{repository_key(job.url)}-{job.commit[:12]}.pack"
        sha256, size = file_sha256(path), path.stat().st_size
        member = Member(kind="pack", name=name, sha256=sha256, size=size, repository=job.url, commit=job.commit)
        yield _Found(member, path)


def _write_tar(file: IO[bytes], manifest: Manifest, paths: list[Path]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        data = json.dumps(manifest.model_dump(mode="json"), indent=2).encode()
        tar.addfile(plain_entry("manifest.json", len(data)), io.BytesIO(data))
        for member, path in zip(manifest.members, paths, strict=True):
            with path.open("rb") as content:
                tar.addfile(plain_entry(member.path, member.size), content)


def plain_entry(name: str, size: int) -> tarfile.TarInfo:
    """Return a file's header without time, owner or mode of this machine: equal contents make equal archives."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def read_bundle(path: Path, access: Access) -> Manifest:
    """Put all sources of a bundle into the cache, each checked; fetching then needs no network. Raises FetchError."""
    try:
        root = access.cache.root
        with tarfile.open(path, "r:") as tar, tempfile.TemporaryDirectory(dir=root, prefix=".bundle-") as folder:
            manifest = _manifest(tar, path)
            for member in manifest.members:
                content = _extract(tar, member, Path(folder), path)
                _adopt(member, content, access)
    except FileNotFoundError as error:
        raise FetchError(f"there is no bundle {path}", fix="write one: nox -s fetch -- --bundle FILE") from error
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:  # the last two: of damaged headers
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise from_os_error(FetchError, error, doing="reading the bundle", path=path) from error
    access.console.stage("bundle", f"{path}: {len(manifest.members)} sources of {manifest.recipe} are in the cache")
    return manifest


def _manifest(tar: tarfile.TarFile, path: Path) -> Manifest:
    first = tar.next()
    reader = tar.extractfile(first) if first and first.name == "manifest.json" and first.size < 10**6 else None
    if reader is None:
        raise _broken(path, "it does not begin with manifest.json")
    try:
        data: dict[str, Any] = json.loads(reader.read())
        return Manifest.model_validate(data)
    except (ValueError, ValidationError) as error:
        raise _broken(path, f"manifest.json: {str(error).splitlines()[0]}") from error


def _extract(tar: tarfile.TarFile, member: Member, folder: Path, path: Path) -> Path:
    try:
        entry = tar.getmember(member.path)
    except KeyError as error:
        raise _broken(path, f"{member.path} is missing") from error
    reader = tar.extractfile(entry) if entry.isreg() and entry.size == member.size else None
    if reader is None:
        raise _broken(path, f"{member.path} is not a file of {member.size} bytes")
    target = folder / member.name
    with target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
    if file_sha256(target) != member.sha256:
        raise _broken(path, f"{member.path} does not have the sha256 of the manifest")
    return target


def _adopt(member: Member, content: Path, access: Access) -> None:
    if member.kind == "archive":
        final = access.cache.place(f"downloads/{member.sha256}", re.sub(r"^\.+", "", member.name))
        content.replace(final)
        return
    if member.kind == "excerpt":
        content.replace(access.cache.place("excerpts", member.name))
        return
    with Work(replace(access, mirrors=(), offline=True), Checkout(member.repository, member.commit)) as work:
        work.adopt(content)
    content.unlink()


def _broken(path: Path, why: str) -> FetchError:
    return FetchError(
        f"{path} is not a whole bundle",
        why=why,
        fix="copy it again, or write a new one: nox -s fetch -- --bundle FILE",
        docs=DOCS,
    )
