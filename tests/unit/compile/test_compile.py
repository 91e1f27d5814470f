"""The explanations of what CMake and ninja said, on small logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.compile.build import _compile_error, _configure_error
from scripts.compile.tree import BuildTree
from scripts.compile.units import UnitFailure
from scripts.core.process import Finished
from scripts.sources.patch import SourceTree
from scripts.toolchain.provide import HostCompiler, Toolchain


@pytest.fixture
def tree(tmp_path: Path) -> BuildTree:
    toolchain = Toolchain("t", tmp_path / "venv", tmp_path / "cuda", HostCompiler(Path("g++"), "g++ 13"), {}, "")
    path = tmp_path / "builds" / "b"
    path.mkdir(parents=True)
    return BuildTree("b", path, SourceTree(tmp_path / "source", "s", ()), toolchain, (), ("_moe_C",), {}, ())


def test_only_the_first_error_of_this_cmake_run_is_shown(tree: BuildTree) -> None:
    old = b"CMake Error at old:1:\n  old\n\n\n"
    new = b"-- fine\nCMake Error at CMakeLists.txt:7 (find_package):\n  no torch\n\n\nCMake Error: second\n"
    tree.log.write_bytes(old + new)
    error = _configure_error(tree, len(old))
    assert error.detail == "CMake Error at CMakeLists.txt:7 (find_package):\n  no torch"
    tree.log.write_bytes(b"no such program")
    assert _configure_error(tree, 0).detail == "no such program"


@pytest.mark.parametrize(
    ("said", "what", "why"),
    [
        ("ninja: error: unknown target '_moe_C', could not build", "ninja failed", "shown above"),
        ("/usr/bin/ld: cannot find -lx\ncollect2: error: ld returned 1 exit status", "linking failed", "shown above"),
        ("x.cpp: undefined reference to `f()'", "linking failed", "shown above"),
        ("ninja: fatal: write: No space left on device", "ninja failed", "no space left"),
    ],
)
def test_a_failure_without_a_failed_unit_is_of_ninja_or_of_the_linker(
    said: str, what: str, why: str, tree: BuildTree
) -> None:
    tree.log.write_text(f"$ cd {tree.path} && ninja -C build\n{said}\n")
    error = _compile_error(tree, Finished(1, 1.0, tree.log, 0), [])
    assert (error.what, error.detail.endswith(said)) == (what, True)
    assert why in error.why


@pytest.mark.parametrize(
    ("output", "killed", "why", "fix"),
    [
        ("a.cu:1: error: bad", False, "compiler's output", "nothing compiled is lost"),
        ("", True, "too little memory", "more memory"),
        ("cc1plus: No space left on device", True, "no space left", "free space at"),
    ],
)
def test_a_failed_unit_is_shown_with_its_command_and_cause(
    *, output: str, killed: bool, why: str, fix: str, tree: BuildTree
) -> None:
    failure = UnitFailure("a.cu.o", "cd /x && nvcc a.cu", output, killed)
    error = _compile_error(tree, Finished(1, 1.0, tree.log, 0), [failure])
    assert error.what == "1 unit(s) failed: a.cu.o"
    assert "repeat it with:\ncd /x && nvcc a.cu" in error.detail
    assert why in error.why
    assert fix in error.fix[0]
