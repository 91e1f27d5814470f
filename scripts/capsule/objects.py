"""Objects that were compiled elsewhere: out of one machine's compiler cache, as one file, into another's.

The file is a tar of `manifest.json` (names with sha256 and size) and ccache's files as they are. A build takes an
object when its key is the same: compiler, headers, options, sources (compile/outside.py). Only the names that ccache
gives its results are taken, each checked against the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StringConstraints, ValidationError

from scripts.core.cache import Cache
from scripts.core.errors import FetchError, UsageError, from_os_error
from scripts.core.files import file_sha256, write_atomic
from scripts.core.models import Model, Sha256
from scripts.sources.bundle import plain_entry

NAME = r"([0-9a-f]/){1,4}[0-9a-z]{20,80}[MR]?"  # by depth of its folders; older ccache ends in M or R
MAX_OBJECT = 1 << 30
DOCS = "docs/capsule.md#objects"


Part = Annotated[str, StringConstraints(pattern=r"^(Python|the C\+\+ compiler)$")]
Release = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$")]
"""Shown on a terminal: nothing but plain characters."""


class Result(Model):
    """A file of ccache."""

    name: Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
    sha256: Sha256
    size: int = Field(ge=0, le=MAX_OBJECT)


class Manifest(Model):
    """What a file of objects holds."""

    format: Literal[1]
    results: tuple[Result, ...]
    made_with: dict[Part, Release] = {}
    """What the keys of objects depend on beside a recipe's pins, with their releases; for people."""


class Taken(NamedTuple):
    """What came of taking objects in."""

    new: int
    total: int
    made_with: Mapping[str, str]


def _folder(cache: Cache) -> Path:
    return cache.place("compiler-cache", "objects")


def give_objects(cache: Cache, target: Path, made_with: Mapping[str, str]) -> Manifest:
    """Write all objects of the compiler cache to `target`. Raises UsageError when there are none, FetchError.

    `made_with`: releases of what the objects' keys depend on.
    """
    folder = _folder(cache)
    files = sorted(path for path in folder.rglob("*") if re.fullmatch(NAME, str(path.relative_to(folder))))
    if not files:
        raise UsageError(
            f"there are no objects in {folder}", why="nothing was compiled through this cache", fix="build first"
        )
    results = tuple(
        Result(name=str(path.relative_to(folder)), sha256=file_sha256(path), size=path.stat().st_size) for path in files
    )
    manifest = Manifest.model_validate({"format": 1, "results": results, "made_with": made_with})
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                data = json.dumps(manifest.model_dump(mode="json")).encode()
                tar.addfile(plain_entry("manifest.json", len(data)), io.BytesIO(data))
                for path, item in zip(files, results, strict=True):
                    tar.addfile(plain_entry(item.name, item.size), io.BytesIO(path.read_bytes()))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise from_os_error(FetchError, error, doing="writing the objects", path=target) from error
    return manifest


def take_objects(cache: Cache, source: Path) -> Taken:
    """Put the objects of a file into the compiler cache. Raises FetchError.

    Objects that are there already stay. One that is damaged stops it; what was taken before stays, since it is whole.
    """
    folder, new = _folder(cache), 0
    try:
        with tarfile.open(source, "r:") as tar:
            manifest = _manifest(tar, source)
            for item in manifest.results:
                entry = tar.next()
                reader = tar.extractfile(entry) if entry and entry.isreg() and entry.name == item.name else None
                data = reader.read() if reader and entry and entry.size == item.size else b""
                if reader is None or hashlib.sha256(data).hexdigest() != item.sha256:
                    raise _broken(source, f"{item.name} is missing or damaged")
                place = folder / item.name
                if not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(place, data)
                    new += 1
    except FileNotFoundError as error:
        raise FetchError(f"there is no file {source}", fix="copy it from the machine that compiled") from error
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:  # the last two: of damaged headers
        raise _broken(source, f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise from_os_error(FetchError, error, doing="taking the objects", path=source) from error
    return Taken(new, len(manifest.results), manifest.made_with)


def _manifest(tar: tarfile.TarFile, source: Path) -> Manifest:
    first = tar.next()
    reader = tar.extractfile(first) if first and first.name == "manifest.json" and first.size < 10**8 else None
    if reader is None:
        raise _broken(source, "it does not begin with manifest.json")
    try:
        return Manifest.model_validate_json(reader.read())
    except ValidationError as error:
        raise _broken(source, f"manifest.json: {str(error).splitlines()[0]}") from error


def _broken(source: Path, why: str) -> FetchError:
    return FetchError(
        f"{source} is not a whole file of objects",
        why=why,
        fix="copy it again, or write a new one there: sh wheelsmith-capsule.sh objects FILE",
        docs=DOCS,
    )
