"""Find macros of a build that few of its units can see, so that a flag for another arch changes no other unit.

Upstream's CMake gives all units of a library the same `-DENABLE_…` flags, one for each kernel family that the list of
archs brings in. So an added arch would be another command for units that never heard of it. A macro is left out of a
unit's command (launcher.py) when nothing that the unit can include names it.

`macros.py BUILD.NINJA SOURCES TARGET` is run where compilers are run, under the paths that they see: standard library
only.
"""

from __future__ import annotations

import json
import os
import re
import sys

TYPE_CHECKING = False  # typing takes 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = (".cu", ".cpp", ".cc", ".cxx", ".c")  # read by others only where they are included by name
HEADERS = (".h", ".hh", ".hpp", ".hxx", ".cuh", ".inl", ".inc", ".ipp", ".tpp", ".tcc", ".def")
_GIVEN = re.compile(r"(?<!\S)-D(ENABLE_\w*)")
_FOLDER = re.compile(r"(?<!\S)(?:-I|-isystem|-iquote) ?(/\S+)")
_NAME = re.compile(rb"(?<![A-Za-z0-9_])ENABLE_\w*")
_INCLUDE = re.compile(rb"#[ \t]*include(?:_next)?\b[ \t]*([^\n]*)")
_FILE = re.compile(rb'[<"]([^<>"\n]+)[>"]')
_PASTED = re.compile(rb"##\s*ENABLE_|ENABLE_\w*\s*##")


def rare_macros(ninja: str, sources: str) -> dict[str, list[str]]:
    """Return the macros that only units name which no file includes, and for each the paths of these units.

    `ninja` is the text of build.ninja, `sources` the folder of the units. Returns {} when an include or such a name is
    put together from pieces: then what a unit reads cannot be told from its text.
    """
    given = {name.encode() for name in _GIVEN.findall(ninja)}
    users: dict[str, list[str]] = {name.decode(): [] for name in given}
    included: set[bytes] = set()
    known_to_all: set[bytes] = set()
    others: dict[bytes, list[str]] = {}
    for path in _files(sources) if given else ():
        if not path.endswith(UNITS + HEADERS):
            others.setdefault(os.fsencode(os.path.basename(path)), []).append(path)  # noqa: PTH119
            continue
        text = _read(path)
        lines = _INCLUDE.findall(text)
        files = [_FILE.match(line) for line in lines]
        if _PASTED.search(text) or not all(files):
            return {}
        included.update(os.path.basename(found[1]) for found in files if found)  # noqa: PTH119
        for name in given.intersection(_NAME.findall(text)):
            users[name.decode()].append(path)
    strange = [path for name in included.intersection(others) for path in others[name]]
    for path in [*strange, *(path for folder in _outside(ninja, sources) for path in _files(folder) if given)]:
        known_to_all |= given.intersection(_NAME.findall(_read(path)))
    return {
        name: paths
        for name, paths in users.items()
        if name.encode() not in known_to_all and not any(_is_included(path, included) for path in paths)
    }


def _is_included(path: str, included: set[bytes]) -> bool:
    return path.endswith(HEADERS) or os.fsencode(os.path.basename(path)) in included  # noqa: PTH119


def _outside(ninja: str, sources: str) -> list[str]:
    """Return the folders in which units find headers, without those below others and below the sources."""
    folders = sorted({os.path.normpath(name) for name in _FOLDER.findall(ninja)})
    kept: list[str] = []
    for folder in folders:
        if not any((folder + "/").startswith(other + "/") for other in (*kept, sources)):
            kept.append(folder)
    return kept


def _files(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            yield os.path.join(place, name)  # noqa: PTH118


def _read(path: str) -> bytes:
    """Return a file's bytes, its broken lines joined; b"" of what is no file."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return b""
    return text.replace(b"\\\r\n", b"").replace(b"\\\n", b"")


def main(ninja: str, sources: str, target: str) -> None:
    """Write what rare_macros says to `target`, with the folder of the units."""
    with open(ninja, errors="surrogateescape") as file:  # noqa: PTH123
        found = rare_macros(file.read(), sources)
    partial = target + ".partial"
    with open(partial, "w") as file:  # noqa: PTH123
        json.dump({"sources": sources, "macros": found}, file)
    os.replace(partial, target)  # noqa: PTH105


if __name__ == "__main__":
    main(*sys.argv[1:])
