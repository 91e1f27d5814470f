"""CMake files as far as wheelsmith reads them: their commands in order, without running any."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """A command of a CMake file, with its arguments unquoted."""

    name: str
    arguments: list[str]
    file: str
    line: int


def cmake_calls(text: str, file: str) -> Iterator[Call]:
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
                yield Call(name, arguments, file, begin)
        elif not word.isspace() and not word.startswith("#"):
            if depth:
                arguments.append(word[1:-1] if word.startswith('"') else word)
            else:
                name = word
        line += word.count("\n")


_ROCM = re.compile(r"(NOT )?(?:VLLM_TARGET_DEVICE STREQUAL rocm|VLLM_GPU_LANG STREQUAL HIP)")


def without_rocm(calls: Sequence[Call]) -> Iterator[Call]:
    """Yield the calls but for those that only a build for ROCm runs: they set other repositories and tags."""
    branches: list[tuple[bool, bool]] = []  # for each `if` around: whether this branch, and its `else`, are ROCm's
    for call in calls:
        command = call.name.lower()
        if command == "if":
            branches.append(_of_rocm(call))
        elif command == "elseif" and branches:
            branches[-1] = _of_rocm(call)
        elif command == "else" and branches:
            branches[-1] = (branches[-1][1], False)
        elif command == "endif" and branches:
            branches.pop()
        if not any(ours for ours, _ in branches):
            yield call


def _of_rocm(call: Call) -> tuple[bool, bool]:
    """Return whether an `if` asks for ROCm, and whether it asks for anything but ROCm."""
    asked = _ROCM.fullmatch(" ".join(word for word in call.arguments if word not in {"(", ")"}))
    return (not asked[1], bool(asked[1])) if asked else (False, False)
