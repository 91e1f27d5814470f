"""Stage patch: unified diffs applied all or nothing, without fuzz, and a tree that knows which ones it carries.

Hunks may have moved (other lines added above) but every context line must match exactly and in one place only near
where the diff says; the diffs are parsed with unidiff.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unidiff.constants import LINE_TYPE_NO_NEWLINE
from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchedFile, PatchSet

from scripts.core.errors import PatchError
from scripts.core.files import digest, file_sha256, write_json
from scripts.core.paths import ROOT
from scripts.downloads.access import Access
from scripts.downloads.unpack import unpack_sdist
from scripts.recipe.model import Recipe
from scripts.sources.types import Archive, GitTree

PATCHES = ROOT / "patches"
CARRIED = ".wheelsmith-patches.json"
FORMAT = 1  # raise when unpacking or applying changes what a tree looks like
_FIELDS = ("Subject", "Why", "Upstream", "Versions")


@dataclass(frozen=True)
class Patch:
    """A patch file: its header and its diff."""

    name: str
    """Path relative to patches/."""
    sha256: str
    subject: str
    why: str
    upstream: str
    versions: tuple[str, ...]
    """Upstream versions it was made for."""
    text: str
    files: tuple[tuple[str, bytes], ...] = ()
    """Whole files that it adds, from the folder its header names (`With:`): path in the tree, content."""


@dataclass(frozen=True)
class SourceTree:
    """An unpacked and patched source tree in the cache."""

    path: Path
    key: str
    """Digest of source and patches: another patch or source is another tree."""
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class HunkProblem:
    """A hunk that does not apply: where, and what stands there instead."""

    file: str
    line: int
    why: str
    reversed_applies: bool = False
    """Whether the hunk's result is there already."""


def load_patches(recipe: Recipe) -> list[Patch]:
    """Read the patches of a recipe, from beside the recipe or from patches/. Raises PatchError."""
    return [
        load_patch(name, folder=recipe.folder if (recipe.folder / name).is_file() else PATCHES)
        for name in recipe.patches
    ]


def load_patch(name: str, *, folder: Path = PATCHES) -> Patch:
    """Read a patch file and its header. Raises PatchError."""
    path = folder / name
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        known = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.patch"))
        raise PatchError(f"there is no patch {name!r}", fix=f"patches/ holds: {', '.join(known)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"patch {name!r} cannot be read", why=str(error)) from error
    header = _header(text.split("\n--- ", 1)[0])
    missing = [field for field in _FIELDS if not header.get(field)]
    if missing:
        raise PatchError(f"patch {name!r} lacks {', '.join(missing)} in its header", fix="see patches/README.md")
    versions = tuple(re.split(r"[,\s]+", header["Versions"]))
    files = _companions(folder, header["With"], name) if "With" in header else ()
    sha256 = file_sha256(path)
    if files:
        sha256 = hashlib.sha256(
            b"\0".join([sha256.encode(), *(part for f, c in files for part in (f.encode(), c))])
        ).hexdigest()
    return Patch(name, sha256, header["Subject"], header["Why"], header["Upstream"], versions, text, files)


def _companions(folder: Path, name: str, patch: str) -> tuple[tuple[str, bytes], ...]:
    """Read the folder that a patch brings along, for the same place in the source tree. Raises PatchError."""
    _check_name(name, patch)
    paths = sorted(path for path in (folder / name).rglob("*") if path.is_file())
    if not paths:
        raise PatchError(f"patch {patch!r} wants the folder {name!r}, which is not there", fix=f"look in {folder}")
    return tuple((str(path.relative_to(folder)), path.read_bytes()) for path in paths)


def _header(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        match = re.match(r"([A-Z]\w+): (.*)", line)
        if match:
            current = match[1]
            fields[current] = match[2].strip()
        elif line.startswith(" ") and current:
            fields[current] += " " + line.strip()
    return fields


def prepare_tree(source: Archive | GitTree, patches: Sequence[Patch], access: Access) -> SourceTree:
    """Return the source unpacked and patched, made once per (source, patches). Raises FetchError or PatchError."""
    identity = source.digest if isinstance(source, GitTree) else source.sha256
    key = digest([FORMAT, identity, [[patch.name, patch.sha256] for patch in patches]])

    def make(target: Path) -> None:
        if isinstance(source, GitTree):
            shutil.copytree(source.path, target, symlinks=True, dirs_exist_ok=True)
        else:
            unpack_sdist(source.path, target)
        apply_patches(target, patches)

    path = access.cache.once("sources", key, make, console=access.console, kind=PatchError)
    for patch in patches:
        access.console.note(f"{patch.name}: {patch.subject}")
    return SourceTree(path, key, tuple(patches))


def apply_patches(tree: Path, patches: Sequence[Patch]) -> None:
    """Apply a series to a tree: all of it or, on the first hunk that does not fit, nothing. Raises PatchError."""
    contents: dict[str, list[str] | None] = {}
    for patch in patches:
        problems = apply_to(tree, patch, contents)
        if problems:
            raise _conflict(patch, problems)
    for name, lines in contents.items():
        path = tree / name
        if lines is None:
            path.unlink(missing_ok=True)  # an earlier patch of the series may have added it
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    write_json(tree / CARRIED, [{"name": patch.name, "sha256": patch.sha256} for patch in patches])


def apply_to(tree: Path, patch: Patch, contents: dict[str, list[str] | None]) -> list[HunkProblem]:
    """Apply one patch to `contents` (file name to lines, None: deleted), reading missing files from `tree`.

    Returns the hunks that do not fit; `contents` is then not to be used.
    """
    problems: list[HunkProblem] = []
    for file in _parse(patch):
        name = file.path
        _check_name(name, patch.name)
        if name not in contents:
            contents[name] = _read_lines(tree / name)
        lines = contents[name]
        if file.is_added_file:
            added = [line for hunk in file for line in _sides(hunk)[1]]
            if lines is not None:
                problems.append(HunkProblem(name, 1, "the file exists already", lines == added))
            contents[name] = added
        elif lines is None:
            problems.append(HunkProblem(name, 1, "there is no such file"))
        else:
            result, wrong = _apply_hunks(file, lines)
            problems += wrong
            if file.is_removed_file and result and not wrong:
                problems.append(HunkProblem(name, 1, "the file has lines that the patch does not know"))
            contents[name] = None if file.is_removed_file else result
    for name, content in patch.files:
        if (tree / name).exists() or name in contents:
            problems.append(HunkProblem(name, 1, "the file exists already"))
        contents[name] = _lines(content)
    return problems


def _parse(patch: Patch) -> PatchSet:
    try:
        parsed = PatchSet(patch.text)
    except UnidiffParseError as error:
        raise PatchError(f"patch {patch.name!r} is not a unified diff", why=str(error)) from error
    if not parsed:
        raise PatchError(f"patch {patch.name!r} changes no file")
    return parsed


def _check_name(name: str, patch: str) -> None:
    if name.startswith("/") or ".." in Path(name).parts:
        raise PatchError(f"patch {patch!r} names {name!r}, which is outside the tree")


def _read_lines(path: Path) -> list[str] | None:
    return _lines(path.read_bytes()) if path.is_file() else None


def _lines(content: bytes) -> list[str]:
    # Not splitlines(): form feeds and Unicode's line separators do not end a line for diff.
    return re.findall(r"[^\n]*\n|[^\n]+", content.decode("utf-8", "surrogateescape"))


def _apply_hunks(file: PatchedFile, lines: list[str]) -> tuple[list[str], list[HunkProblem]]:
    result: list[str] = []
    problems: list[HunkProblem] = []
    position = 0  # first line of `lines` not yet copied
    for hunk in file:
        before, after = _sides(hunk)
        start = _find(lines, before, hunk.source_start - 1, position)
        if start is None:
            there = _find(lines, after, hunk.target_start - 1, position) is not None
            problems.append(HunkProblem(file.path, hunk.source_start, _difference(lines, before, hunk), there))
            continue
        result += [*lines[position:start], *after]
        position = start + len(before)
    return [*result, *lines[position:]], problems


def _sides(hunk: Hunk) -> tuple[list[str], list[str]]:
    """Return a hunk's lines before and after; the last one without its newline where the diff says so."""
    before: list[str] = []
    after: list[str] = []
    last: list[list[str]] = []
    for line in hunk:
        if line.line_type == LINE_TYPE_NO_NEWLINE:
            for side in last:
                side[-1] = side[-1].removesuffix("\n")
            continue
        last = ([before] if not line.is_added else []) + ([after] if not line.is_removed else [])
        for side in last:
            side.append(line.value)
    return before, after


def _find(lines: list[str], wanted: list[str], near: int, first: int) -> int | None:
    """Return the index (>= first) nearest to `near` where `wanted` stands exactly, or None."""
    found = [
        index
        for index in range(first, len(lines) - len(wanted) + 1)
        if wanted and lines[index] == wanted[0] and lines[index : index + len(wanted)] == wanted
    ]
    return min(found, key=lambda index: abs(index - near), default=None)


def _difference(lines: list[str], wanted: list[str], hunk: Hunk) -> str:
    if not wanted:
        return "the hunk has no context: make the patch with diff -u or git diff"
    start = hunk.source_start - 1
    for offset, line in enumerate(wanted):
        there = lines[start + offset] if start + offset < len(lines) else "(end of file)"
        if there != line:
            return f"line {start + offset + 1} is {there.strip()!r}, the patch expects {line.strip()!r}"
    return "an earlier hunk changed these lines"


def _conflict(patch: Patch, problems: list[HunkProblem]) -> PatchError:
    there = all(problem.reversed_applies for problem in problems)
    shown = "\n".join(f"  {problem.file}:{problem.line}: {problem.why}" for problem in problems[:8])
    return PatchError(
        f"patch {patch.name} does not apply: {len(problems)} hunk(s) do not fit; the tree was left untouched",
        why="its changes are in the source already" if there else f"made for {', '.join(patch.versions)}",
        fix="take the patch out of the recipe" if there else "make a patch for this source, or pin a version it fits",
        detail=shown,
    )
