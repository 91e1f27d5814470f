"""What a vLLM source tree itself says: its torch, fetches, extensions, build requirements and archs.

Read from CMakeLists.txt, cmake/**/*.cmake, setup.py, pyproject.toml and requirements/, never from memory. A fetch that
is not recognised is an error: it would run unpinned, or fail, in the middle of a build.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from scripts.core.errors import FetchError
from scripts.core.paths import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = "docs/sources.md#lock"
CPU_ONLY = frozenset({"onednn", "arm_compute"})  # fetched by cmake/cpu_extension.cmake for CPU builds alone
_OTHER_FETCHES = re.compile(r"ExternalProject_Add|CPMAddPackage|git_clone|download\w*", re.IGNORECASE)


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


@dataclass(frozen=True)
class Extension:
    """An extension of setup.py that CUDA builds have."""

    name: str
    """Name of the CMake target: `_moe_C`."""
    optional: bool
    """Whether it may vanish without an error when it does not build."""
    cuda: str = ""
    """First CUDA that builds it, "" for any."""


@dataclass(frozen=True)
class Upstream:
    """Facts of one source tree."""

    torch: str
    fetches: tuple[Fetch, ...]
    extensions: tuple[Extension, ...]
    build_requirements: tuple[str, ...]
    archs: dict[str, tuple[str, ...]]
    """Archs upstream builds for, by the first CUDA they hold for; "" for older ones."""


def known_upstream(version: str, folder: Path = RECIPES / "upstream") -> Upstream:
    """Return what was once read from the real source of a vLLM version: recipes/upstream/vllm-VERSION.json.

    So recipes are held to their source by a test that fetches nothing. Raises OSError for a version that was not read.
    """
    data = json.loads((folder / f"vllm-{version}.json").read_text(encoding="utf-8"))
    return Upstream(
        torch=data["torch"],
        fetches=tuple(Fetch(**{**row, "submodules": tuple(row["submodules"])}) for row in data["fetches"]),
        extensions=tuple(Extension(**row) for row in data["extensions"]),
        build_requirements=tuple(data["build_requirements"]),
        archs={cuda: tuple(archs) for cuda, archs in data["archs"].items()},
    )


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: list[str]
    file: str
    line: int


@dataclass
class _Reader:
    variables: dict[str, str] = field(default_factory=dict)

    def expand(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: self.variables.get(match[1], match[0]), text)


def read_upstream(tree: Path) -> Upstream:
    """Read the facts of a vLLM source tree. Raises FetchError where it is not as expected."""
    files = [tree / "CMakeLists.txt", *sorted((tree / "cmake").rglob("*.cmake"))]
    calls = [call for path in files for call in cmake_calls(_text(path), path.relative_to(tree).as_posix())]
    return Upstream(
        torch=_torch(tree, calls),
        fetches=tuple(_fetches(calls)),
        extensions=tuple(_extensions(_text(tree / "setup.py"))),
        build_requirements=tuple(r for r in _build_requires(tree) if _name(r) != "torch"),
        archs=_archs(calls),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FetchError(
            f"{path} cannot be read", why=error.strerror or str(error), fix="give the root of a vLLM source tree"
        ) from error


def cmake_calls(text: str, file: str) -> Iterator[_Call]:
    """Yield the commands of a CMake file in order, with their arguments unquoted; comments are left out."""
    token = re.compile(r'#\[\[.*?\]\]|#[^\n]*|"(?:[^"\\]|\\.)*"|[()]|[^\s()"#]+|\s+', re.DOTALL)
    name, depth, line, begin = "", 0, 1, 1
    arguments: list[str] = []
    for match in token.finditer(text):
        word = match[0]
        if word == "(":
            depth += 1
            if depth == 1:
                arguments, begin = [], line
        elif word == ")":
            depth -= 1
            if depth == 0:
                yield _Call(name, arguments, file, begin)
        elif not word.isspace() and not word.startswith("#"):
            if depth:
                arguments.append(word[1:-1] if word.startswith('"') else word)
            else:
                name = word
        line += word.count("\n")


def _fetches(calls: Sequence[_Call]) -> Iterator[Fetch]:
    reader = _Reader()
    overrides: dict[str, str] = {}
    found: list[Fetch] = []
    for call in calls:
        command = call.name.lower()
        if command == "set" and len(call.arguments) >= 2:
            reader.variables[call.arguments[0]] = call.arguments[1]
        elif command == "fetchcontent_declare":
            fetch = _declared(call, reader, overrides)
            found += [fetch] if fetch else []
        elif _fetches_otherwise(call):
            raise _unknown(call, f"{call.name}({' '.join(call.arguments[:3])} …)")
    for fetch in found:
        yield Fetch(**{**fetch.__dict__, "variable": overrides.get(fetch.name, "")})


def _declared(call: _Call, reader: _Reader, overrides: dict[str, str]) -> Fetch | None:
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


def _fetches_otherwise(call: _Call) -> bool:
    words = [word.lower() for word in call.arguments]
    command = call.name.lower()
    if command == "file":
        return words[:1] == ["download"]
    if command == "execute_process":
        return any(word in {"git", "curl", "wget"} or "git_executable" in word for word in words)
    return bool(_OTHER_FETCHES.fullmatch(call.name)) or (
        command == "fetchcontent_populate" and len(words) > 1 and words[0] not in CPU_ONLY
    )


def _unknown(call: _Call, what: str) -> FetchError:
    return FetchError(
        f"{call.file}:{call.line}: a fetch that wheelsmith does not recognise: {what}",
        why="it would run unpinned at configure time, and no recipe would say so",
        fix="teach scripts/upstream/tree.py and scripts/commands/lock.py about it, with a pin and an override",
        docs=DOCS,
    )


def _archs(calls: Sequence[_Call]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    cuda = ""
    for call in calls:
        command = call.name.lower()
        if command in {"if", "elseif"} and "VERSION_GREATER_EQUAL" in call.arguments:
            cuda = call.arguments[call.arguments.index("VERSION_GREATER_EQUAL") + 1]
        elif command == "else":
            cuda = ""
        elif command == "set" and call.arguments[:1] == ["CUDA_SUPPORTED_ARCHS"]:
            found[cuda] = tuple(call.arguments[1].split(";"))
    if not found:
        raise FetchError("CMakeLists.txt sets no CUDA_SUPPORTED_ARCHS", why="it has changed", docs=DOCS)
    return found


def _torch(tree: Path, calls: Sequence[_Call]) -> str:
    """Return the torch pin; CMakeLists.txt, pyproject.toml and requirements/cuda.txt must agree on it."""
    pins = {
        call.file: call.arguments[1]
        for call in calls
        if call.name.lower() == "set" and call.arguments[:1] == ["TORCH_SUPPORTED_VERSION_CUDA"]
    }
    listed = {"pyproject.toml": _build_requires(tree)}
    listed["requirements/cuda.txt"] = _text(tree / "requirements/cuda.txt").splitlines()
    for file, requirements in listed.items():
        for line in requirements:
            if match := re.match(r"torch\s*==\s*([\w.]+)", line):
                pins[file] = match[1]
    if len(set(pins.values())) != 1 or len(pins) != 3:
        shown = ", ".join(f"{file}: {pin}" for file, pin in pins.items())
        raise FetchError("upstream's files do not agree on one torch", why=shown or "none pins torch", docs=DOCS)
    return next(iter(pins.values()))


def _build_requires(tree: Path) -> list[str]:
    data = tomllib.loads(_text(tree / "pyproject.toml"))
    return [str(item) for item in data["build-system"]["requires"]]


def _name(requirement: str) -> str:
    try:
        return Requirement(requirement).name.lower()
    except InvalidRequirement:
        return requirement


def _extensions(text: str) -> Iterator[Extension]:
    seen = set()
    for call, conditions in _guarded_calls(ast.parse(text).body, ()):
        if not isinstance(call.func, ast.Name) or call.func.id != "CMakeExtension":
            continue
        shown = " and ".join(conditions)
        if re.search(r"_is_cpu\(\)", shown) or (shown and not re.search(r"_is_cuda\(\)|_build_custom_ops\(\)", shown)):
            continue
        options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        name = str(options["name"]).rsplit(".", 1)[-1]
        if name in seen:
            continue
        seen.add(name)
        cuda = re.findall(r"get_nvcc_cuda_version\(\) >= Version\('([\d.]+)'\)", shown)
        yield Extension(name, bool(options.get("optional", False)), cuda[-1] if cuda else "")


def _guarded_calls(body: Sequence[ast.stmt], conditions: tuple[str, ...]) -> Iterator[tuple[ast.Call, tuple[str, ...]]]:
    """Yield the calls of module-level statements with the conditions of the ifs around them."""
    for statement in body:
        if isinstance(statement, ast.If):
            test = ast.unparse(statement.test)
            yield from _guarded_calls(statement.body, (*conditions, test))
            yield from _guarded_calls(statement.orelse, (*conditions, f"not ({test})"))
        elif isinstance(statement, ast.Expr):
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    yield node, conditions
