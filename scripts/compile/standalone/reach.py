"""Find what each unit of a build can read, so that what it cannot read changes neither its command nor its key.

Upstream's CMake gives all units of a library the same `-DENABLE_…` flags, one for each kernel family that the list of
archs brings in, and generates headers that differ with the list. So an added arch would be another command and another
key for units that never heard of it. Here, a unit can read its own file and all files that have the name of one that is
included by a file that it can read, or by any header outside of the sources: more than it does read, never less.

A unit of a dependency lies outside of the sources, as its headers do, in a folder that has a key of its own. Of the
sources it can read what any file of the dependencies may include.

`reach.py BUILD.NINJA SOURCES TARGET DEPENDENCY…` is run where compilers are run, under the paths that they see:
standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys

TYPE_CHECKING = False  # typing takes 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UNITS = (".cu", ".cpp", ".cc", ".cxx", ".c")
QUOTES = "\\\"'<>"
_GIVEN = re.compile(r"(?<!\S)-D(ENABLE_\w*)")
_FOLDER = re.compile(r"(?<!\S)(?:-I|-isystem|-iquote) ?(/\S+)")
_FORCED = re.compile(r"(?<!\S)-include ?(\S+)")
_VALUE = re.compile(r"(?<!\S)-D\w+=(\S+)")
_PATH = re.compile(r"(?<!\S)/\S+")
_NAME = re.compile(rb"(?<![A-Za-z0-9_])ENABLE_\w*")
_INCLUDE = re.compile(
    rb"(?:(?:#|%:)[ \t]*(?:include(?:_next)?|import|embed)\b|__has_(?:include(?:_next)?|embed)[ \t]*\()[ \t]*([^\n]*)"
)
_FILE = re.compile(rb'[<"]([^<>"\n]+)[>"]')
_DEFINED = re.compile(rb'define[^\n<"]*[<"]([^<>"\n]+)[>"]')
_PASTED = re.compile(rb"##\s*ENABLE_|ENABLE_\w*\s*##")
_COMMENT = re.compile(rb"/\*.*?\*/", re.DOTALL)
_BEHIND = re.compile(rb"(?:#|%:)[ \t]*/\*|(?:include|include_next|import|embed|\()[ \t]*/\*")
_JOINED = re.compile(rb"\\[ \t]*\r?\n")
# For the 90 MB of headers outside: one pattern for each word, since `re` looks for a fixed beginning ten times faster.
_LINE = rb"(?:[^\n\\]|\\[ \t]*\r?\n|\\)*"  # goes on behind a backslash
_ROUGHLY = [re.compile(word + rb"(?=(" + _LINE + rb"))") for word in (b"include", b"import", b"embed")]
_ROUGHLY_DEFINED = re.compile(rb"define(?=(" + _LINE + rb"))")
_BETWEEN = re.compile(rb'[<"]([^<>"\n]+)(?=[>"])')
_SPLIT = re.compile(rb"\\[ \t]*\r?\n[^ \t\r\n]")  # a word may go on in the next line


class Text:
    """What a file's text says: the names of files it includes, the macros it names, whether that is all."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        text = _JOINED.sub(b"", raw)
        self.macros = _macros(text)
        self.included: set[bytes] = set()
        self.opaque = b".incbin" in text
        """Whether it reads a file whose name cannot be told."""
        self.pasted = bool(_PASTED.search(text))
        hidden = _BEHIND.search(text)  # a comment before or after the word, or one that hides the comment's end
        for version in (text, _COMMENT.sub(b" ", text)) if hidden else (text,):
            for rest in _INCLUDE.findall(version):
                named = _FILE.match(rest)
                if named:
                    self.included.add(_base(named[1]))
                else:
                    self.opaque = True
        self.included.update(map(_base, _DEFINED.findall(text)))  # a header outside may include what a macro names


class Tree:
    """The files of the sources, read as they are asked for, and what headers outside of them say."""

    def __init__(self, ninja: str, sources: str, dependencies: list[str]) -> None:
        self.given = {name.encode() for name in _GIVEN.findall(ninja)}
        self._named: dict[bytes, list[str]] = {}
        for path in _files(sources):
            self._named.setdefault(os.fsencode(os.path.basename(path)), []).append(path)  # noqa: PTH119
        self._texts: dict[str, Text] = {}
        self._digests: dict[str, str] = {}
        self.outside_macros: set[bytes] = set()
        self.for_all = [path for path in _FORCED.findall(ninja) if path.startswith(sources + "/")]
        included = {_base(name.strip(QUOTES).encode()) for name in _VALUE.findall(ninja)}
        for folder in _outside(ninja, sources):
            for path in _files(folder):
                macros, names = _says(_read(path))
                self.outside_macros |= self.given & macros
                included |= names
        self.for_all += self._paths(included)
        self.dependency_macros: set[bytes] = set()
        self.for_dependencies: set[str] = set()
        self.opaque_dependencies = False
        for path in (path for folder in dependencies for path in _files(folder)):
            self._read_dependency(_read(path))

    def _read_dependency(self, raw: bytes) -> None:
        """Note what a file of a dependency may include, and the macros that it names."""
        macros, names = _says(raw)
        self.dependency_macros |= self.given if _PASTED.search(raw) else self.given & macros
        self.for_dependencies.update(self._paths(names))
        self.opaque_dependencies = self.opaque_dependencies or b".incbin" in raw

    def _paths(self, names: Iterable[bytes]) -> list[str]:
        return [path for name in names for path in self._named.get(name, ())]

    def text(self, path: str) -> Text:
        """Return what a file of the sources says."""
        if path not in self._texts:
            self._texts[path] = Text(_read(path))
        return self._texts[path]

    def digest(self, path: str) -> str:
        """Return a digest of what a file of the sources has."""
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(self.text(path).raw).hexdigest()
        return self._digests[path]

    def reach(self, first: list[str]) -> dict[str, Text]:
        """Return the files of the sources that a unit can read which can read the `first` ones."""
        found: dict[str, Text] = {}
        todo = [*first, *self.for_all]
        while todo:
            path = todo.pop()
            if path not in found:
                found[path] = self.text(path)
                todo += self._paths(found[path].included)
        return found


def reach(ninja: str, sources: str, dependencies: list[str]) -> dict[str, dict[str, object]]:
    """Return for each unit a digest of what it can read below `sources`, and the macros it can see nothing of.

    `ninja` is the text of build.ninja, `dependencies` are the folders with units outside of the sources. Units that
    read what their text does not tell are left out, and so are those of other folders.
    """
    units = sorted({path for path in _PATH.findall(ninja) if path.endswith(UNITS)})
    theirs = {unit: folder for folder in dependencies for unit in units if unit.startswith(folder + "/")}
    tree = Tree(ninja, sources, sorted(set(theirs.values())))
    found = {
        unit: _facts(tree, sources, [unit], tree.outside_macros) for unit in units if unit.startswith(sources + "/")
    }
    if theirs and not tree.opaque_dependencies:
        macros = tree.outside_macros | tree.dependency_macros
        found.update(dict.fromkeys(theirs, _facts(tree, sources, sorted(tree.for_dependencies), macros)))
    return {unit: facts for unit, facts in found.items() if facts}


def _facts(tree: Tree, sources: str, first: list[str], macros: set[bytes]) -> dict[str, object]:
    """Return what is told of a unit that can read the `first` files and names `macros`; {} where nothing can be."""
    texts = tree.reach(first)
    if any(text.opaque for text in texts.values()):
        return {}
    seen = macros.union(*(text.macros for text in texts.values()))
    pasted = any(text.pasted for text in texts.values())
    facts = sorted((os.path.relpath(path, sources), tree.digest(path)) for path in texts)
    return {
        "digest": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "unseen": [] if pasted else sorted(name.decode() for name in tree.given - seen),
    }


def _says(raw: bytes) -> tuple[frozenset[bytes], set[bytes]]:
    """Return the macros that a header outside of the sources names and the names of files it may include, or more.

    It is cheaper than `Text`, which is asked where names may be hidden: in words that go on in the next line, and by
    comments on the line of an include.
    """
    lines = [line for pattern in _ROUGHLY for line in pattern.findall(raw)]
    named = [line for line in (*lines, *_ROUGHLY_DEFINED.findall(raw)) if b'"' in line or b"<" in line]
    names = {_base(name) for line in named for name in _BETWEEN.findall(_JOINED.sub(b"", line))}
    if (b"\\" in raw and _SPLIT.search(raw)) or any(b"/*" in line for line in lines):
        text = Text(raw)
        return text.macros, names | text.included
    return _macros(raw), names


def _macros(text: bytes) -> frozenset[bytes]:
    return frozenset(_NAME.findall(text)) if b"ENABLE_" in text else frozenset()


def _base(name: bytes) -> bytes:
    return name[name.rfind(b"/") + 1 :]


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
    """Return a file's bytes; b"" of what is no file."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""


def main(ninja: str, sources: str, target: str, *dependencies: str) -> None:
    """Write what `reach` says to `target`."""
    with open(ninja, errors="surrogateescape") as file:  # noqa: PTH123
        found = reach(file.read(), sources, list(dependencies))
    partial = target + ".partial"
    with open(partial, "w") as file:  # noqa: PTH123
        json.dump(found, file)
    os.replace(partial, target)  # noqa: PTH105


if __name__ == "__main__":
    main(*sys.argv[1:])
