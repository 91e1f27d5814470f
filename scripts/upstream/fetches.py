"""What a vLLM source would fetch while CMake configures it, with the pins and the variables that replace it.

A fetch that is not recognised is an error: it would run unpinned, or fail, in the middle of a build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from scripts.core.errors import FetchError
from scripts.upstream.cmake import Call, without_rocm

DOCS = "docs/sources.md#lock"
CPU_ONLY = frozenset({"onednn", "arm_compute"})  # fetched by cmake/cpu_extension.cmake for CPU builds alone
_OTHER_FETCHES = re.compile(r"ExternalProject_Add|CPMAddPackage|git_clone|download\w*", re.IGNORECASE)
_OWN_CUTLASS = re.compile(r"\$\{([\w-]+)_SOURCE_DIR\}/((?:[\w.-]+/)*cutlass)/include(?![\w-])")


@dataclass(frozen=True)
class Fetch:
    """A FetchContent_Declare that would clone a repository."""

    name: str
    repository: str
    pin: str
    """Tag or commit as upstream writes it."""
    variable: str = ""
    """Variable with which upstream takes a directory instead, "" when there is none."""
    submodules: tuple[str, ...] = ()
    file: str = ""
    cutlass: tuple[str, ...] = ()
    """Folders of its own copy of CUTLASS, as upstream's CMake includes them: `csrc/cutlass`."""


@dataclass
class _Reader:
    variables: dict[str, str] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    """Variables that take their value from the environment variable of the same name."""

    def set(self, name: str, value: str) -> None:
        self.variables[name] = value
        if value == f"$ENV{{{name}}}":
            self.given.add(name)

    def given_folder(self, name: str, value: str) -> tuple[str, str] | None:
        """Return (fetch, variable) for `set(deepgemm_SOURCE_DIR "${DEEPGEMM_SRC_DIR}")`, a folder that users give."""
        fetch = re.fullmatch(r"(\w+)_SOURCE_DIR", name)
        variable = re.fullmatch(r"\$\{(\w+)\}", value)
        return (fetch[1], variable[1]) if fetch and variable and variable[1] in self.given else None

    def cutlass_in(self, call: Call) -> Iterator[tuple[str, str]]:
        """Yield (fetch, folder) for each `${flashmla_SOURCE_DIR}/csrc/cutlass/include` among a command's arguments."""
        for word in call.arguments:
            for match in _OWN_CUTLASS.finditer(self.expand(word)):
                yield match[1], match[2]

    def expand(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: self.variables.get(match[1], match[0]), text)


def read_fetches(calls: Sequence[Call]) -> Iterator[Fetch]:
    """Yield what CMake would fetch for CUDA, in the order of the files. Raises FetchError for an unknown way."""
    reader = _Reader()
    overrides: dict[str, str] = {}
    found: list[Fetch] = []
    included: dict[str, list[str]] = {}
    for call in without_rocm(calls):
        command = call.name.lower()
        for name, folder in reader.cutlass_in(call):
            included.setdefault(name, []).append(folder)
        if command == "set" and len(call.arguments) >= 2:
            reader.set(*call.arguments[:2])
            if given := reader.given_folder(*call.arguments[:2]):
                overrides[given[0]] = given[1]
        elif command == "fetchcontent_declare" or (command == "fetchcontent_populate" and len(call.arguments) > 1):
            fetch = _declared(call, reader, overrides)
            found += [fetch] if fetch else []
        elif _fetches_otherwise(call):
            raise _unknown(call, f"{call.name}({' '.join(call.arguments[:3])} …)")
    for fetch in found:
        folders = tuple(dict.fromkeys(included.get(fetch.name, ())))
        yield replace(fetch, variable=overrides.get(fetch.name, ""), cutlass=folders)


def _declared(call: Call, reader: _Reader, overrides: dict[str, str]) -> Fetch | None:
    """Return the fetch that a FetchContent_Declare describes; one that only names a folder is noted as an override."""
    name, *rest = call.arguments
    if name.lower() in CPU_ONLY:
        return None
    values = {key: rest[i + 1] for i, key in enumerate(rest[:-1]) if re.fullmatch(r"[A-Z][A-Z_]+", key)}
    if "GIT_REPOSITORY" not in values:
        variable = re.fullmatch(r"\$(?:ENV)?\{(\w+)\}", values.get("SOURCE_DIR", ""))
        if variable is None:
            raise _unknown(call, f"FetchContent_Declare({name}) without GIT_REPOSITORY")
        overrides[name] = variable[1]
        return None
    pin = reader.expand(values.get("GIT_TAG", ""))
    if not re.fullmatch(r"[0-9a-f]{40}|v?\d+(\.\d+)+\S*", pin):
        raise _unknown(call, f"FetchContent_Declare({name}) at {pin or 'no GIT_TAG'!r}, which is no tag or commit")
    repository = reader.expand(values["GIT_REPOSITORY"])
    return Fetch(name, repository, pin, submodules=_list_after(rest, "GIT_SUBMODULES"), file=call.file)


def _list_after(words: Sequence[str], key: str) -> tuple[str, ...]:
    if key not in words:
        return ()
    listed = []
    for word in words[words.index(key) + 1 :]:
        if re.fullmatch(r"[A-Z][A-Z_]+", word):
            break
        listed.append(word)
    return tuple(listed)


def _fetches_otherwise(call: Call) -> bool:
    words = [word.lower() for word in call.arguments]
    command = call.name.lower()
    if command == "file":
        return words[:1] == ["download"]
    if command == "execute_process":
        return any(word in {"git", "curl", "wget"} or "git_executable" in word for word in words)
    return bool(_OTHER_FETCHES.fullmatch(call.name))


def _unknown(call: Call, what: str) -> FetchError:
    return FetchError(
        f"{call.file}:{call.line}: a fetch that wheelsmith does not recognise: {what}",
        why="it would run unpinned at configure time, and no recipe would say so",
        fix="teach scripts/upstream/tree.py and scripts/commands/lock.py about it, with a pin and an override",
        docs=DOCS,
    )
