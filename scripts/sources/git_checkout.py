"""One git repository at one commit: what is wanted of it, what is missing, and the files themselves, checked."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.core.console import human_bytes
from scripts.core.errors import FetchError
from scripts.downloads.access import Access
from scripts.downloads.mirrors import VARIABLE, Address, address, other_spelling, repository_key, rewrite
from scripts.sources.git_process import (
    DOCS,
    INCOMPLETE,
    NO_REPOSITORY,
    REFUSED,
    GitError,
    Repository,
    git_program,
    incomplete_error,
    network_error,
    reason,
)

_LICENSES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|COPYRIGHT)[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class Checkout:
    """One repository at one commit, to be written below `prefix` of the tree."""

    url: str
    commit: str
    tag: str = ""
    folders: tuple[str, ...] = ()
    prefix: str = ""


@dataclass(frozen=True)
class TreeEntry:
    """A line of `git ls-tree`: a file (`blob`), a link (mode 120000) or a submodule (`commit`)."""

    mode: str
    kind: str
    oid: str
    path: str


class Work:
    """One repository's cache, locked while it is worked on."""

    def __init__(self, access: Access, job: Checkout) -> None:
        self.access, self.job = access, job
        self.key = repository_key(job.url)
        path = access.cache.place("git", f"{self.key}.git")
        self.repository = Repository(path, access)
        place = rewrite(job.url, access.mirrors)
        self.remote: Address = address(place)
        self._mirrored = place != job.url
        self._lock = access.cache.lock(f"git-{self.key}", access.console)
        self._entries: list[TreeEntry] | None = None

    def __enter__(self) -> Work:
        self._lock.__enter__()
        git_program()
        # We hold the repository: a lock of git's own is what a killed git left behind.
        for stale in self.repository.path.rglob("*.lock"):
            stale.unlink(missing_ok=True)
        self.repository.create()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.__exit__(None, None, None)

    def fetch(self) -> int:
        """Make sure that the commit and the wanted blobs are there and sound; return the bytes received."""
        try:
            return self._fetch()
        except GitError as failure:
            if not self._mirrored or not NO_REPOSITORY.search(failure.text):
                raise self._explained(failure) from failure
            first = failure
        named = self.remote
        self.remote = replace(named, url=other_spelling(named.url))
        try:
            return self._fetch()
        except GitError as failure:
            if NO_REPOSITORY.search(failure.text):  # under neither name: the one that was asked for
                self.remote, failure = named, first
            raise self._explained(failure) from failure

    def _fetch(self) -> int:
        received = 0
        if not self._has(self.job.commit):
            self._need_network(f"commit {self.job.commit}")
            self._check_tag()
            received += self._fetch_commit()
        if missing := self._missing():
            self._need_network(f"{len(missing)} files of commit {self.job.commit}")
            received += self._fetch_blobs(missing)
        if received:
            self.repository.fsck(self.job.commit)
            self.repository.local("update-ref", f"refs/wheelsmith/{self.job.commit}", self.job.commit)
            name = f"{self.remote.url} at {self.job.commit[:12]}"
            self.access.console.note(f"{name}: {human_bytes(received)} received, checked with git fsck")
        return received

    def _fetch_commit(self) -> int:
        commit = self.job.commit
        try:
            received = self.repository.fetch(self.remote, "--depth=1", "--filter=blob:none", "origin", commit)
        except GitError as failure:
            if not self.job.tag or not REFUSED.search(failure.text):
                raise
            tag = f"refs/tags/{self.job.tag}"  # was compared with the commit just now, and is again below
            received = self.repository.fetch(self.remote, "--depth=1", "origin", tag)
        if not self._has(commit):
            raise GitError(f"not our ref {commit}", network=False)
        return received

    def _fetch_blobs(self, missing: Sequence[str]) -> int:
        wanted = "".join(f"{oid}\n" for oid in missing).encode()
        try:
            return self.repository.fetch(self.remote, "--filter=blob:none", "--stdin", "origin", stdin=wanted)
        except GitError as failure:
            if not REFUSED.search(failure.text):
                raise
        # The server hands out no single objects: take the commit's files whole.
        return self.repository.fetch(self.remote, "--depth=1", "--no-filter", "origin", self.job.commit)

    def tag_commit(self, tag: str) -> str | None:
        """Ask the server which commit a tag names; None when it has no such tag. Raises FetchError."""
        self._need_network(f"tag {tag!r}")
        try:
            return self.repository.remote_tag(self.remote, tag)
        except GitError as failure:
            raise self._explained(failure) from failure

    def _check_tag(self) -> None:
        if not self.job.tag:
            return
        found = self.repository.remote_tag(self.remote, self.job.tag)
        if found is None:
            self.access.console.warn(f"{self.remote.url} has no tag {self.job.tag!r}; the pinned commit decides")
        elif found != self.job.commit:
            raise FetchError(
                f"tag {self.job.tag!r} of {self.remote.url} is not the pinned commit",
                why=f"it names {found}, the recipe pins {self.job.commit}: the tag was moved, or the pin is wrong",
                fix=[
                    "compare both commits before you trust either; then correct `commit` or `tag` in the recipe",
                    "or remove `tag` from the recipe: wheelsmith then fetches the pinned commit as it is",
                ],
                docs=f"{DOCS}#tags",
            )

    def _need_network(self, what: str) -> None:
        if self.access.offline:
            raise FetchError(
                f"{what} of {self.job.url} is not in the cache",
                why="--offline was given",
                fix=["run once without --offline", "bring it on a disk: nox -s fetch -- --from-bundle FILE"],
                docs=f"{DOCS}#offline",
            )

    def _has(self, commit: str) -> bool:
        try:
            self.repository.local("cat-file", "-e", f"{commit}^{{commit}}")
        except GitError:
            return False
        return True

    def entries(self) -> list[TreeEntry]:
        """Return what the commit holds below the wanted folders, licence files of the top included."""
        if self._entries is None:
            listed = self.repository.local("ls-tree", "-r", "-z", "--full-tree", self.job.commit).decode()
            entries = (_entry(line) for line in listed.split("\0")[:-1])
            self._entries = [entry for entry in entries if self._wanted(entry.path)]
            self._check_folders()
        return self._entries

    def _check_folders(self) -> None:
        for folder in self.job.folders:
            if not any(is_below(entry.path, folder) for entry in self._entries or ()):
                raise FetchError(
                    f"{self.job.url} has no {folder!r} at commit {self.job.commit}",
                    fix="correct `subdirectories` in the recipe",
                )

    def _wanted(self, path: str) -> bool:
        folders = self.job.folders
        return not folders or bool(_LICENSES.fullmatch(path)) or any(is_below(path, folder) for folder in folders)

    def _missing(self) -> list[str]:
        blobs = {entry.oid for entry in self.entries() if entry.kind == "blob"}
        if any(entry.kind == "commit" for entry in self.entries()):
            blobs.add(self._gitmodules())
        asked = "".join(f"{oid}\n" for oid in sorted(blobs - {""})).encode()
        answer = self.repository.local("cat-file", "--batch-check", stdin=asked).decode()
        return [line.split()[0] for line in answer.splitlines() if line.endswith(" missing")]

    def _gitmodules(self) -> str:
        line = self.repository.local("ls-tree", "--full-tree", self.job.commit, ".gitmodules").decode()
        return line.split()[2] if line else ""

    def submodule_urls(self) -> dict[str, str]:
        """Return the URL of each submodule by its path, as the commit's .gitmodules has it."""
        if not self._gitmodules():
            return {}
        text = self.repository.local("config", "--blob", f"{self.job.commit}:.gitmodules", "--list", "-z").decode()
        values = dict(item.split("\n", 1) for item in text.split("\0") if "\n" in item)
        paths = {name.removesuffix(".path"): path for name, path in values.items() if name.endswith(".path")}
        return {path: values[f"{name}.url"] for name, path in paths.items() if f"{name}.url" in values}

    def write(self, tree: Path) -> None:
        """Write the wanted files below `tree`, each checked against its object id."""
        blobs = [entry for entry in self.entries() if entry.kind == "blob"]
        asked = "".join(f"{entry.oid}\n" for entry in blobs).encode()
        with tempfile.TemporaryFile(dir=tree.parent) as output:
            try:
                self.repository.local_file("cat-file", "--batch", stdin=asked, output=output)
            except GitError as failure:
                raise self._explained(failure) from failure
            output.seek(0)
            for entry in blobs:
                _write_blob(output, entry, tree, self.job)

    def pack(self, output: IO[bytes]) -> None:
        """Write a pack of what a fetch needs: the commit, all its trees, the wanted files. Raises FetchError."""
        commit = self.job.commit
        trees = self.repository.local("ls-tree", "-r", "-t", "--full-tree", commit).decode().splitlines()
        wanted = {line.split()[2] for line in trees if line.split()[1] == "tree"}
        wanted |= {entry.oid for entry in self.entries() if entry.kind == "blob"} | {self._gitmodules()} - {""}
        wanted |= {commit, self.repository.local("rev-parse", f"{commit}^{{tree}}").decode().strip()}
        asked = "".join(f"{oid}\n" for oid in sorted(wanted)).encode()
        self.repository.local_file("pack-objects", "--stdout", "--quiet", stdin=asked, output=output)

    def adopt(self, pack: Path) -> None:
        """Take the objects of a pack made by `pack`; they are what their ids say, or this raises FetchError."""
        try:
            self.repository.adopt(pack, self.job.commit)
        except GitError as failure:
            raise self._explained(failure) from failure

    def _explained(self, failure: GitError) -> FetchError:
        if failure.network:
            return network_error(self.remote.url, failure)
        commit, url = self.job.commit, self.remote.url
        if INCOMPLETE.search(failure.text):
            return incomplete_error(url, commit, failure)
        if REFUSED.search(failure.text):
            return FetchError(
                f"{url} does not give out commit {commit}",
                why="it is not there (never pushed, or removed by a forced push), or the server refuses commits by id",
                fix=[
                    "check the pin; no other commit or branch will be taken in its place",
                    "on your own mirror: git config uploadpack.allowAnySHA1InWant true, and mirror all refs",
                ],
                detail=failure.text,
                docs=f"{DOCS}#missing-commit",
            )
        return FetchError(
            f"git could not fetch {url}",
            why=reason(failure.text),
            fix=[
                f"check the URL, your credentials (~/.netrc, credential helper, ssh agent) and {VARIABLE}",
                f"if the cached repository is damaged, delete {self.repository.path}",
            ],
            detail=failure.text,
            docs=f"{DOCS}#git",
        )


def _entry(line: str) -> TreeEntry:
    mode, kind, oid, path = re.split(r"[ \t]", line, maxsplit=3)
    return TreeEntry(mode, kind, oid, path)


def _write_blob(output: IO[bytes], entry: TreeEntry, tree: Path, job: Checkout) -> None:
    header = output.readline().split()
    data = output.read(int(header[2])) if header[1:2] == [b"blob"] else b""
    output.read(1)
    algorithm = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    algorithm.update(data)
    if algorithm.hexdigest() != entry.oid:
        raise FetchError(
            f"{job.url}: {entry.path} is not what commit {job.commit} has",
            why="the object in the cache is missing or damaged",
            fix="delete the git/ folder of the cache and run again",
        )
    path = _inside(tree, job.prefix + entry.path, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.mode == "120000":
        goal = os.fsdecode(data)
        if goal.startswith("/") or not (path.parent / goal).resolve().is_relative_to(tree.resolve()):
            raise _hostile(job, entry.path, f"it links outside ({goal})")
        path.symlink_to(goal)
        return
    path.write_bytes(data)
    path.chmod(0o755 if entry.mode == "100755" else 0o644)


def _inside(tree: Path, name: str, job: Checkout) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or any(part == ".." or part.lower() == ".git" for part in parts):
        raise _hostile(job, name, "its path leads outside, or into .git")
    path = tree.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(tree.resolve()):
        raise _hostile(job, name, "its path leads outside through a link")
    return path


def _hostile(job: Checkout, path: str, why: str) -> FetchError:
    return FetchError(
        f"{job.url} was not taken: {path!r} is not allowed",
        why=why,
        fix="check what commit " + job.commit + " is; an honest source has no such file",
    )


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it; everything is below `.`."""
    folder = folder.rstrip("/")
    return folder in {".", path} or path.startswith(folder + "/")
