"""The choice of a toolkit: installed, archives, or a message that names everything that was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.core.cache import Cache
from scripts.core.errors import ToolchainError
from scripts.downloads.download import open_client
from scripts.downloads.indexes import Indexes
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Recipe
from scripts.toolchain.choice import CudaToolkit, needs_packages, provide_cuda
from tests.accesses import make_access
from tests.integration.toolchain.test_cuda_redist import Site, cache, redist, site
from tests.unit.toolchain.test_cuda_system import toolkit

__all__ = ["cache", "site"]


def recipe(kind: str, site: Site | None = None, **more: Any) -> Recipe:
    base = load_recipe("vllm-0.15.1-cu128")
    archives = redist(site) if site else None
    toolchain = base.toolchain.model_copy(update={"kind": kind, "redist": archives, **more})
    return base.model_copy(update={"toolchain": toolchain})


def provide(item: Recipe, cache: Cache, prefix: Path, **environment: str) -> CudaToolkit:
    access = make_access(cache, environment=environment, indexes=Indexes())
    with open_client(access) as client:
        return provide_cuda(item, client, access, prefix=prefix)


def test_auto_takes_an_installed_toolkit_and_downloads_nothing(site: Site, cache: Cache, tmp_path: Path) -> None:
    home = toolkit(tmp_path / "cuda-12.8", "12.8")
    site.files.clear()
    assert provide(recipe("auto", site), cache, tmp_path) == CudaToolkit(home, str(home))


def test_auto_falls_back_to_the_archives(site: Site, cache: Cache, tmp_path: Path) -> None:
    toolkit(tmp_path / "cuda", "12.9")
    found = provide(recipe("auto", site), cache, tmp_path)
    assert found.origin == "redist 12.8.1"
    assert (found.home / "bin/nvcc").is_file()
    assert "its nvcc is of CUDA 12.9" in found.rejected[1].why


def test_redist_leaves_an_installed_toolkit_alone(site: Site, cache: Cache, tmp_path: Path) -> None:
    toolkit(tmp_path / "cuda-12.8", "12.8")
    assert provide(recipe("redist", site), cache, tmp_path).origin == "redist 12.8.1"


def test_system_never_downloads(site: Site, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"no CUDA 12\.8 is installed"):
        provide(recipe("system", site), cache, tmp_path)


def test_when_nothing_is_to_be_had_one_message_says_all(site: Site, cache: Cache, tmp_path: Path) -> None:
    site.manifest.clear()
    with pytest.raises(ToolchainError, match="and NVIDIA's archives could not be fetched") as caught:
        provide(recipe("auto", site), cache, tmp_path, CUDA_HOME="/nowhere")
    assert "CUDA_HOME=/nowhere: there is no such folder" in caught.value.why
    assert any("devel-ubuntu22.04" in fix for fix in caught.value.fix)


def test_a_recipe_without_archives_says_so(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="does not say which archives"):
        provide(recipe("auto"), cache, tmp_path)


def test_the_package_index_has_no_cuda_12_compiler() -> None:
    with pytest.raises(ToolchainError, match=r"cannot provide CUDA 12\.8") as caught:
        needs_packages(recipe("pypi"))
    assert "no nvcc" in caught.value.why
    assert needs_packages(load_recipe("quickstart"))
    assert not needs_packages(recipe("auto"))
