"""Directory trees: one digest over all files, and comparison with a list of digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scripts.core.errors import FetchError
from scripts.core.files import file_sha256
from scripts.recipe.model import recipe_file
from scripts.recipe.sources import GitSource, MembersSource
from scripts.sources.git_process import DOCS


@dataclass(frozen=True)
class Listed:
    """A line of a list of digests."""

    sha256: str
    path: str


def read_list(source: GitSource | MembersSource, recipes: Path) -> tuple[Listed, ...]:
    """Read the list of digests beside the recipe: lines of `sha256  path`, as sha256sum writes them."""
    if source.files_sha256 is None:
        return ()
    path = recipe_file(source.files_sha256, recipes)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FetchError(f"{path} cannot be read", why=error.strerror or str(error), fix="restore the file") from error
    matches = [re.fullmatch(r"([0-9a-f]{64}) [ *](\S.*)", line) for line in lines if line and not line.startswith("#")]
    if not matches or None in matches:
        raise FetchError(f"{path} is not a list of digests", fix="each line: sha256, two blanks, path (sha256sum)")
    return tuple(Listed(match[1], match[2]) for match in matches if match)


def check_files(root: Path, listed: Sequence[Listed], source: GitSource) -> None:
    """Compare `root` with the list: every file listed is there and right, and no other file of their kinds is."""
    if not listed:
        return
    wrong = []
    for item in listed:
        path = root / item.path
        if not path.is_file():
            wrong.append(f"{item.path} is missing")
        elif file_sha256(path) != item.sha256:
            wrong.append(f"{item.path} differs")
    suffixes = {PurePosixPath(item.path).suffix for item in listed}
    names = {item.path for item in listed}
    found = (str(path.relative_to(root)) for path in tree_files(root) if path.suffix in suffixes)
    wrong += [f"{name} is not in the list" for name in found if name not in names]
    if wrong:
        raise FetchError(
            f"{source.repository} at {source.commit} is not the content that {source.files_sha256} lists",
            why=f"{len(wrong)} of {len(listed)} files: " + "; ".join(wrong[:5]),
            fix="check the pin and the list: one of them belongs to another version",
            docs=f"{DOCS}#digests",
        )


def tree_files(folder: Path) -> Iterator[Path]:
    """Yield all files and links below a folder, in order of their paths."""
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())


def tree_digest(folder: Path) -> str:
    """Return a sha256 over all files of a tree: `mode sha256 path` lines in order; links by their target."""
    sha = hashlib.sha256()
    for path in tree_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            mode, content = "link", hashlib.sha256(str(path.readlink()).encode()).hexdigest()
        else:
            mode, content = "exec" if path.stat().st_mode & 0o100 else "file", file_sha256(path)
        sha.update(f"{mode} {content} {name}\n".encode())
    return sha.hexdigest()
