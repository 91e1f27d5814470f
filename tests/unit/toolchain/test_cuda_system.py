"""The search for an installed toolkit, with stand-in toolkits in a temporary directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.core.errors import ToolchainError
from scripts.toolchain.installed import find_system_toolkit, need_system_toolkit


def toolkit(home: Path, release: str, *, headers: str = "include", works: bool = True) -> Path:
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin/nvcc"
    says = f"echo 'Cuda compilation tools, release {release}, V{release}.93'" if works else "exit 1"
    nvcc.write_text(f"#!/bin/sh\n{says}\n")
    nvcc.chmod(0o755)
    if headers:
        (home / headers).mkdir(parents=True)
        (home / headers / "cuda_runtime.h").touch()
    return home


def test_cuda_home_comes_first(tmp_path: Path) -> None:
    home = toolkit(tmp_path / "opt", "12.8")
    toolkit(tmp_path / "cuda-12.8", "12.8")
    found = find_system_toolkit("12.8", {"CUDA_HOME": str(home)}, prefix=tmp_path)
    assert (found.home, found.place, found.rejected) == (home, f"CUDA_HOME={home}", ())


def test_the_versioned_folder_comes_before_the_plain_one_and_path(tmp_path: Path) -> None:
    toolkit(tmp_path / "cuda", "12.8")
    other = toolkit(tmp_path / "other", "12.8")
    versioned = toolkit(tmp_path / "cuda-12.8", "12.8", headers="targets/x86_64-linux/include")
    found = find_system_toolkit("12.8", {"PATH": str(other / "bin")}, prefix=tmp_path)
    assert found.home == versioned


def test_nvcc_on_path_is_followed_to_its_toolkit(tmp_path: Path) -> None:
    home = toolkit(tmp_path / "elsewhere", "12.8")
    links = tmp_path / "links"
    links.mkdir()
    (links / "nvcc").symlink_to(home / "bin/nvcc")
    assert find_system_toolkit("12.8", {"PATH": f":{links}"}, prefix=tmp_path).home == home


def test_another_minor_version_is_rejected_with_both_versions(tmp_path: Path) -> None:
    toolkit(tmp_path / "cuda", "12.9")
    found = find_system_toolkit("12.8", {}, prefix=tmp_path)
    assert found.home is None
    assert [item.why for item in found.rejected] == ["there is no such folder", "its nvcc is of CUDA 12.9, not 12.8"]


def test_all_that_was_rejected_is_in_the_message(tmp_path: Path) -> None:
    broken = toolkit(tmp_path / "broken", "12.8", works=False)
    bare = toolkit(tmp_path / "cuda-12.8", "12.8", headers="")
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "again").symlink_to(bare)
    environment = {"CUDA_HOME": str(broken), "CUDA_PATH": str(tmp_path / "again")}
    with pytest.raises(ToolchainError, match=r"no CUDA 12\.8 is installed") as caught:
        need_system_toolkit("12.8", environment, prefix=tmp_path)
    assert "CUDA_HOME" in caught.value.why
    assert "does not run" in caught.value.why
    assert "only the runtime is installed" in caught.value.why
    assert "it has no bin/nvcc" in caught.value.why
    assert caught.value.why.count("only the runtime") == 1
    assert any("redist" in fix for fix in caught.value.fix)
    assert any("nvidia/cuda:12.8.1-devel" in fix for fix in caught.value.fix)


def test_a_toolkit_that_fits_is_returned(tmp_path: Path) -> None:
    home = toolkit(tmp_path / "cuda", "12.8")
    assert need_system_toolkit("12.8", {}, prefix=tmp_path).home == home
