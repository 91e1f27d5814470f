"""The compiler cache's key outside the sources: it changes with what compilers read and with nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.compile.fixed_paths import ROOT as FIXED
from scripts.compile.fixed_paths import tree_paths
from scripts.compile.outside import host_contents, installed_includes, outside_digest
from scripts.compile.tree import BuildTree
from scripts.sources.patch import SourceTree
from scripts.toolchain.installed_torch import InstalledTorch
from scripts.toolchain.provide import HostCompiler, Toolchain

INCLUDES = "  INCLUDES = -I{tree}/source/csrc -isystem {site}/torch/include -isystem={site}/pybind11/include -I{cuda}\n"


def install(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Put a distribution with its RECORD into site-packages, over the one that was there."""
    for old in site.glob(f"{name}-*.dist-info/*"):
        old.unlink()
        old.parent.rmdir()
    rows = []
    for path, text in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
        sha256 = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"{path},sha256={sha256},{len(text)}\n")
    record = site / f"{name}-{version}.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("".join(rows))


@pytest.fixture
def tree(tmp_path: Path) -> BuildTree:
    """A configured tree whose units read torch and pybind11, with numpy installed too and a toolkit elsewhere."""
    cuda = tmp_path / "cuda"
    toolchain = Toolchain("t", tmp_path / "venv", cuda, HostCompiler(Path("g++"), "g++ 13"), {}, "CUDA_HOME")
    site = toolchain.site_packages
    install(site, "torch", "2.9.1", {"torch/include/a.h": "a", "torch/lib/libtorch.so": "so"})
    install(site, "pybind11", "3.0", {"pybind11/include/p.h": "p"})
    install(site, "numpy", "2.3.5", {"numpy/_core/include/n.h": "n"})
    for name in ("bin/nvcc", "bin/ptxas", "bin/nsight", "nvvm/bin/cicc", "include/cuda/std/atomic", "lib64/libx.a"):
        file = cuda / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    path = tmp_path / "tree"
    made = BuildTree("b", path, SourceTree(tmp_path / "source", "s", ()), toolchain, (), ("_moe_C",), {}, ())
    made.binary.mkdir(parents=True)
    (made.binary / "build.ninja").write_text(INCLUDES.format(tree=path, site=site, cuda=cuda / "include"))
    return made


def renew_numpy(tree: BuildTree) -> None:
    install(tree.toolchain.site_packages, "numpy", "2.4.0", {"numpy/_core/include/n.h": "other"})


def renew_torch_in_name_only(tree: BuildTree) -> None:
    install(tree.toolchain.site_packages, "torch", "2.9.1.post1", {"torch/include/a.h": "a", "torch/lib/l.so": "other"})


def renew_a_program_that_does_not_compile(tree: BuildTree) -> None:
    (tree.toolchain.cuda_home / "bin/nsight").write_text("other")


def renew_a_library(tree: BuildTree) -> None:
    (tree.toolchain.cuda_home / "lib64/libx.a").write_text("other")


def link_the_toolkit_to_installed_files(tree: BuildTree) -> None:
    """As `shape_cuda_home` does: the same contents, their sha256 out of a RECORD."""
    nvcc = tree.toolchain.cuda_home / "bin/nvcc"
    install(tree.toolchain.site_packages, "nvidia_cuda_nvcc", "13.0", {"nvidia/cu13/bin/nvcc": nvcc.read_text()})
    nvcc.unlink()
    os.link(tree.toolchain.site_packages / "nvidia/cu13/bin/nvcc", nvcc)


@pytest.mark.parametrize(
    "change",
    [
        renew_numpy,
        renew_torch_in_name_only,
        renew_a_program_that_does_not_compile,
        renew_a_library,
        link_the_toolkit_to_installed_files,
    ],
)
def test_what_no_compiler_reads_costs_no_recompile(tree: BuildTree, change: Callable[[BuildTree], None]) -> None:
    before = outside_digest(tree)
    change(tree)
    assert outside_digest(tree) == before


def change_a_header_of_torch(tree: BuildTree) -> None:
    install(tree.toolchain.site_packages, "torch", "2.9.1", {"torch/include/a.h": "other", "torch/lib/l.so": "so"})


def add_a_header_to_torch(tree: BuildTree) -> None:
    files = {"torch/include/a.h": "a", "torch/include/sub/b.h": "b"}
    install(tree.toolchain.site_packages, "torch", "2.9.1", files)


def change_another_packages_header(tree: BuildTree) -> None:
    install(tree.toolchain.site_packages, "pybind11", "3.0", {"pybind11/include/p.h": "other"})


def change_in_toolkit(path: str) -> Callable[[BuildTree], None]:
    def change(tree: BuildTree) -> None:
        (tree.toolchain.cuda_home / path).write_text("other")

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_a_header_of_torch,
        add_a_header_to_torch,
        change_another_packages_header,
        change_in_toolkit("bin/nvcc"),
        change_in_toolkit("bin/ptxas"),
        change_in_toolkit("nvvm/bin/cicc"),
        change_in_toolkit("include/cuda/std/atomic"),
    ],
)
def test_what_compilers_read_is_in_the_key(tree: BuildTree, change: Callable[[BuildTree], None]) -> None:
    before = outside_digest(tree)
    change(tree)
    assert outside_digest(tree) != before


def test_include_paths_are_found_under_fixed_paths_too(tree: BuildTree, tmp_path: Path) -> None:
    names = tree_paths(tree.path, tree.toolchain, {})
    fixed = replace(tree, paths=names)
    shown = INCLUDES.format(tree="/tmp/wheelsmith/build", site=fixed.inside(tree.toolchain.site_packages), cuda="/c")
    (fixed.binary / "build.ninja").write_text(shown)
    assert set(installed_includes(fixed)) == {"torch/include", "pybind11/include"}
    assert installed_includes(fixed)["torch/include"] == tree.toolchain.site_packages / "torch/include"


def test_the_headers_of_an_installed_torch_are_read_whatever_its_record_says(tree: BuildTree, tmp_path: Path) -> None:
    root = tmp_path / "ngc"
    install(root, "torch", "2.7.0a0", {"torch/include/a.h": "a"})
    (tree.toolchain.environment.parent / "torch").symlink_to(root)
    torch = InstalledTorch(
        *(Path("python"), "2.7.0a0", "2.7.0a0", "", root, (root,), "13.0", ("sm_90",), True, {}),
        *((3, 11), tmp_path / "python-include", "/usr", "linux-x86_64"),
    )
    toolchain = replace(tree.toolchain, torch=torch)
    both = replace(tree, toolchain=toolchain, paths=tree_paths(tree.path, toolchain, {}))
    assert both.inside(tree.toolchain.environment.parent / "torch/torch/include") == FIXED / "torch/torch/include"
    (both.binary / "build.ninja").write_text(f"  INCLUDES = -isystem {FIXED}/torch/torch/include\n")
    assert set(installed_includes(both)) == {"torch/include"}
    before = outside_digest(both)
    (root / "torch/include/a.h").write_text("b")
    assert outside_digest(both) != before


def test_the_host_compilers_programs_and_headers_decide_not_its_version(tmp_path: Path) -> None:
    """Two machines with the same g++ and another glibc share no objects."""
    plain, other = tmp_path / "g++", tmp_path / "other-g++"
    plain.write_text('#!/bin/sh\nexec g++ "$@"\n')
    other.write_text('#!/bin/sh\ncase "$*" in *-E*) set -- -D__GLIBC_OTHER__ "$@";; esac\nexec g++ "$@"\n')
    for path in (plain, other):
        path.chmod(0o755)
    same = tmp_path / "elsewhere" / "g++"
    same.parent.mkdir()
    same.write_bytes(plain.read_bytes())
    same.chmod(0o755)
    assert host_contents(plain) == host_contents(same) != host_contents(other)
