"""Lock: pins out of upstream's own files; small trees here, the real sdists with -m large."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.commands import lock
from scripts.core.cache import Cache, default_cache_dir
from scripts.core.console import Console
from scripts.core.errors import FetchError, UsageError
from scripts.core.paths import RECIPES
from scripts.downloads.access import Access
from scripts.downloads.listing import find_sdist
from scripts.downloads.mirrors import parse_mirrors
from scripts.downloads.unpack import unpack_sdist
from scripts.recipe.fields import FROM_TREE
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, SdistSource
from scripts.recipe.written import recipe_text
from scripts.sources.fetch import fetch_archive, source_tree
from scripts.upstream.agreement import disagreements
from scripts.upstream.pins import (
    UNRESOLVED,
    Resolver,
    recipe_data,
    remarks,
    source_table,
    torch_cuda,
    torch_toolkit,
)
from scripts.upstream.tree import read_upstream
from tests import trees
from tests.accesses import make_access
from tests.integration.git_servers import Upstream
from tests.trees import vllm_tree

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def access(tmp_path: Path) -> Access:
    (tmp_path / "srv/vllm-project").mkdir(parents=True)
    (tmp_path / "srv/triton-lang").mkdir()
    (tmp_path / "srv/nvidia").mkdir()
    cache = Cache.open(tmp_path / "cache")
    mirrors = parse_mirrors((tmp_path / "srv").as_uri())
    return make_access(cache, mirrors=mirrors)


@pytest.fixture
def servers(tmp_path: Path, access: Access) -> dict[str, Upstream]:
    """Repositories behind a file:// mirror: the small vLLM and what it fetches."""
    root = tmp_path / "srv"
    tree = vllm_tree(tmp_path / "tree", cmake=trees.CMAKE.replace("nvidia/cutlass.git", "nvidia/cutlass"))
    vllm = Upstream.create(root, "vllm-project/vllm")
    vllm.commit({p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()})
    vllm.tag("v0.99.0", vllm.head)
    triton = Upstream.create(root, "triton-lang/triton")
    triton.commit({"python/triton_kernels/triton_kernels/__init__.py": b""})
    triton.tag("v3.5.0", triton.head)
    cutlass = Upstream.create(root, "nvidia/cutlass")
    cutlass.tag("v4.2.1", cutlass.commit({"include/a.h": b"a"}))
    for upstream in (vllm, triton, cutlass):
        upstream.path.rename(upstream.path.with_suffix(""))
    return {"vllm": vllm, "triton": triton, "cutlass": cutlass}


def test_a_git_source_is_resolved_by_its_servers(access: Access, servers: dict[str, Upstream]) -> None:
    resolver = Resolver(access, [])
    table = source_table("0.99.0", "git", resolver)
    assert table["commit"] == servers["vllm"].head
    upstream = read_upstream(source_tree(GitSource.model_validate(table), access))
    data = recipe_data("0.99.0", table, upstream, resolver, cuda="12.8")
    assert data["dependencies"]["triton_kernels"]["source"]["commit"] == servers["triton"].head
    assert data["dependencies"]["cutlass"]["source"]["commit"] == servers["cutlass"].head
    assert "flashmla" not in data["dependencies"]  # needs CUDA 12.9
    recipe = Recipe.model_validate({**tomllib.loads(recipe_text(data)), "name": "vllm-0.99.0-cu128"})
    assert disagreements(recipe, source_tree(GitSource.model_validate(table), access)) == []


def test_submodules_are_read_from_the_pinned_commit(access: Access, tmp_path: Path) -> None:
    flash = Upstream.create(tmp_path / "srv", "vllm-project/FlashMLA")
    modules = b'[submodule "c"]\n\tpath = csrc/cutlass\n\turl = ../x\n'
    head = flash.commit({".gitmodules": modules, "csrc/a.cu": b"a", "csrc/cutlass": "c" * 40})
    found = Resolver(access, []).submodules("https://github.com/vllm-project/FlashMLA.git", head, ["csrc/cutlass"])
    assert found == {"csrc/cutlass": "c" * 40}


def test_pins_of_other_recipes_need_no_server(access: Access) -> None:
    production = load_recipe("vllm-0.15.1-cu128")
    resolver = Resolver(access, [production])
    assert resolver.commit_of("https://github.com/nvidia/cutlass", "v4.2.1").startswith("f3fde58372d3")
    flashmla = "c2afa9cb93e674d5a9120a170a6da57b89267208"
    modules = resolver.submodules("https://github.com/vllm-project/FlashMLA", flashmla, ["csrc/cutlass"])
    assert modules == {"csrc/cutlass": "147f5673d0c1c3dcf66f78d677fd647e4a020219"}


def test_a_tag_that_no_server_can_resolve_is_an_error_or_shown_as_unresolved(access: Access) -> None:
    with pytest.raises(FetchError):
        Resolver(access, []).commit_of("https://github.com/nvidia/cutlass", "v9")
    lenient = Resolver(access, [], strict=False)
    assert lenient.commit_of("https://github.com/nvidia/cutlass", "v9") == UNRESOLVED
    modules = lenient.submodules("https://github.com/nvidia/cutlass", "a" * 40, ["sub"])
    assert modules == {"sub": FROM_TREE}  # pinned by the commit, though no server says which it is
    assert len(lenient.unresolved) == 1
    assert Resolver(access, []).submodules("https://github.com/nvidia/cutlass", "a" * 40, ["sub"]) == modules


def test_a_tag_that_the_server_does_not_have_is_an_error(access: Access, servers: dict[str, Upstream]) -> None:
    with pytest.raises(FetchError, match="has no tag 'v1'"):
        Resolver(access, []).commit_of("https://github.com/triton-lang/triton", "v1")
    assert Resolver(access, [], strict=False).commit_of("https://github.com/triton-lang/triton", "v1") == UNRESOLVED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cmake": trees.CMAKE.replace("cutlass", "newthing")}, "newthing .* wheelsmith does not know"),
        ({"setup": trees.SETUP.replace("_moe_C", "_new_C")}, "the extension '_new_C'"),
        (
            {"triton": trees.TRITON.replace("triton_kernels SOURCE_DIR", "x SOURCE_DIR")},
            "cannot be given as a directory",
        ),
    ],
)
def test_what_wheelsmith_does_not_know_is_an_error(
    access: Access, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    upstream = read_upstream(vllm_tree(tmp_path / "tree", **changes))
    resolver = Resolver(access, [load_recipe("vllm-0.15.1-cu128")])
    with pytest.raises(FetchError, match=message):
        recipe_data("0.99.0", {}, upstream, resolver, cuda="12.8")


def test_cuda_13_takes_its_compiler_from_the_package_index(access: Access, tmp_path: Path) -> None:
    upstream = read_upstream(vllm_tree(tmp_path / "tree"))
    resolver = Resolver(access, [load_recipe("vllm-0.15.1-cu128")])
    table = recipe_data("0.99.0", {}, upstream, resolver, cuda="13.0")["toolchain"]
    assert table["kind"] == "pypi"
    assert table["cuda_packages"] == ["cuda-toolkit[nvcc,nvvm,crt,cccl]==13.0.2"]
    assert "redist" not in table


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("torch==2.9.1 \\\n    --hash=x\nnvidia-cuda-runtime-cu12==12.8.90 ; platform_machine == 'x86_64'\n", "12.8"),
        ("cuda-toolkit==13.0.2 \\\n", "13.0"),
        ("cuda-toolkit[cublas,cudart]==13.0.2 \\\n", "13.0"),
    ],
)
def test_the_cuda_of_torch_follows_from_what_it_depends_on(text: str, cuda: str) -> None:
    assert torch_cuda(text) == cuda


def test_the_compiler_is_of_the_release_that_torch_pins(access: Access, tmp_path: Path) -> None:
    release = torch_toolkit("cuda-toolkit[cudart]==13.0.3.0 ; sys_platform == 'linux' \\\n")
    assert release == "13.0.3"
    assert torch_toolkit("nvidia-cuda-runtime-cu12==12.8.90 \\\n") == ""
    upstream = read_upstream(vllm_tree(tmp_path / "tree"))
    resolver = Resolver(access, [load_recipe("vllm-0.15.1-cu128")])
    table = recipe_data("0.99.0", {}, upstream, resolver, cuda="13.0", toolkit=release)["toolchain"]
    assert table["cuda_packages"] == ["cuda-toolkit[nvcc,nvvm,crt,cccl]==13.0.3"]


def test_a_lock_says_what_no_index_has_and_what_is_left_out(access: Access, tmp_path: Path) -> None:
    project = trees.PYPROJECT.replace('"ninja"', '"ninja", "setuptools-rust>=1.9"')
    gcc = 'if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND V VERSION_LESS "11.3")\nmessage(FATAL_ERROR x)\nendif()\n'
    tree = vllm_tree(tmp_path / "tree", pyproject=project, cmake=f"{trees.CMAKE}set(CMAKE_CXX_STANDARD 20)\n{gcc}")
    upstream = read_upstream(tree)
    data = recipe_data("0.99.0", {}, upstream, Resolver(access, [load_recipe("vllm-0.15.1-cu128")]), cuda="12.8")
    said = remarks(upstream, data)
    assert "cutlass 4.2.1 (all components); triton_kernels 3.5.0 (triton_kernels)" in said[0]
    assert "Rust front end (vllm-rs) is left out" in said[1]
    assert said[2] == "upstream configures with GCC 11.3 or newer, in C++20"
    assert data["toolchain"]["host"] == {"cxx": 20, "gcc": {"all": "11.3"}}
    assert 'gcc = {all = "11.3"}' in recipe_text(data)


def test_a_cpu_build_of_torch_is_an_error() -> None:
    with pytest.raises(FetchError, match="no CUDA runtime"):
        torch_cuda("torch==2.9.1\n")


def test_only_vllm_can_be_locked() -> None:
    with pytest.raises(UsageError, match="lock knows vllm only"):
        lock.main(["torch", "2.9.1"], Console(quiet=True))


def test_the_command_prints_a_recipe_and_writes_it_once(
    access: Access, servers: dict[str, Upstream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def compiled(_source: list[Path], target: Path, _environment: object) -> None:
        target.write_text("nvidia-cuda-runtime-cu12==12.8.90 \\\n")

    recipes = tmp_path / "recipes"
    (recipes / "locks").mkdir(parents=True)
    monkeypatch.setattr(lock, "compile_lock", compiled)
    monkeypatch.setattr(lock, "RECIPES", recipes)
    monkeypatch.setattr(lock, "recipe_names", list)
    monkeypatch.setattr(lock, "load_recipe", lambda name: load_recipe(name, folder=recipes))
    mirror = (tmp_path / "srv").as_uri()
    command = ["vllm", "0.99.0", "--source", "git", "--mirror", mirror, "--cache", str(access.cache.root)]
    assert lock.main(command, Console(quiet=True)) == 0
    assert servers["vllm"].head in capsys.readouterr().out
    assert lock.main([*command, "--write", "--cuda", "12.8"], Console(quiet=True)) == 0
    written = load_recipe("vllm-0.99.0-cu128", folder=recipes)
    assert written.torch.version == "2.9.1"
    assert (recipes / written.toolchain.lock).is_file()
    with pytest.raises(UsageError, match="exists already"):
        lock.main([*command, "--write"], Console(quiet=True))


SDISTS = {
    "0.14.1": ("c7c6d0a729d29e70ac10baacbc7186930da24f8ae34f60451330527ff0be84ac", "2.9.1", "v4.2.1", "46d64a8e", 5),
    "0.16.0": ("1f684bb31fbef59d862e2fe666e23a41f1d39d93f86215ce1ce1db89a8f5665b", "2.9.1", "v4.2.1", "c2afa9cb", 5),
    "0.19.1": ("9fb88ce6b50991eba41d183584f65f51d7f6015d86a42cdabf79c1c8bd5d66fa", "2.10.0", "v4.2.1", "692917b1", 5),
    "0.20.1": ("778df065237704d51e8b4cc95bcc6f6a0c2317f13feb38295de3ce76146bf140", "2.11.0", "v4.4.2", "a6ec2ba7", 6),
}


def sdist_tree(version: str) -> Path:
    """Return a real sdist, unpacked in the user's cache (so that only the first run downloads it)."""
    cache = Cache.open(default_cache_dir())
    source = SdistSource(kind="sdist", name="vllm", version=version, sha256=SDISTS[version][0])
    archive = fetch_archive(source, make_access(cache))
    return cache.once(
        "sources", archive.sha256[:20], lambda target: unpack_sdist(archive.path, target), console=Console()
    )


@pytest.mark.large
@pytest.mark.parametrize("version", list(SDISTS))
def test_the_real_sdists_are_read_right(version: str) -> None:
    _, torch, cutlass, flashmla, count = SDISTS[version]
    facts = read_upstream(sdist_tree(version))
    pins = {fetch.name: fetch.pin for fetch in facts.fetches}
    assert facts.torch == torch
    assert (pins["cutlass"], pins["flashmla"][:8], len(pins)) == (cutlass, flashmla, count)
    assert all(fetch.variable for fetch in facts.fetches)
    optional = {extension.name for extension in facts.extensions if extension.optional}
    assert {"triton_kernels", "_flashmla_C", "_flashmla_extension_C"} <= optional
    assert not {"_C", "_moe_C", "_vllm_fa2_C"} & optional
    assert "12.0" in facts.archs["12.8"]


@pytest.mark.large
@pytest.mark.parametrize("name", ["quickstart", "vllm-0.20.1-cu130"])
def test_the_recipes_agree_with_their_real_source(name: str) -> None:
    assert disagreements(load_recipe(name), sdist_tree("0.20.1")) == []


@pytest.mark.large
def test_the_production_recipe_lies_between_its_neighbours() -> None:
    recipe = load_recipe("vllm-0.15.1-cu128")
    (older,) = disagreements(recipe, sdist_tree("0.14.1"))
    assert older.startswith("dependency flashmla is at c2afa9cb")  # as 0.16.0 has it
    assert disagreements(recipe, sdist_tree("0.16.0")) == []  # the recipe knows that FlashMLA is from CUDA 12.9 on


@pytest.mark.large
def test_the_index_lists_the_digest_of_an_sdist_and_none_for_0_15_1(access: Access) -> None:
    assert find_sdist("vllm", "0.16.0", access) == SDISTS["0.16.0"][0]
    assert find_sdist("vllm", "0.15.1", access) is None


def test_the_list_of_triton_kernels_belongs_to_the_tag() -> None:
    source = load_recipe("vllm-0.15.1-cu128").dependencies["triton_kernels"].source
    assert source.kind == "git"
    assert source.files_sha256 == f"triton_kernels-{source.tag}.sha256"
    assert len((RECIPES / source.files_sha256).read_text().splitlines()) == 40
