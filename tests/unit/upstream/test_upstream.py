"""Facts read from a vLLM source tree, and where a recipe differs from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.core.console import Console
from scripts.core.errors import DoctorError, FetchError
from scripts.recipe.model import Recipe
from scripts.upstream.agreement import check_agreement, disagreements
from scripts.upstream.extensions import Extension
from scripts.upstream.fetches import Fetch
from scripts.upstream.known import KNOWN
from scripts.upstream.tree import read_upstream
from tests import trees
from tests.trees import vllm_tree


def test_torch_fetches_extensions_requirements_and_archs_are_read(tmp_path: Path) -> None:
    facts = read_upstream(vllm_tree(tmp_path))
    flashmla = "c2afa9cb93e674d5a9120a170a6da57b89267208"
    assert facts.torch == "2.9.1"
    assert facts.fetches == (
        Fetch("cutlass", "https://github.com/nvidia/cutlass.git", "v4.2.1", "VLLM_CUTLASS_SRC_DIR",
              file="CMakeLists.txt"),
        Fetch("flashmla", "https://github.com/vllm-project/FlashMLA", flashmla, "FLASH_MLA_SRC_DIR",
              ("csrc/cutlass", "csrc/other"), "cmake/external_projects/flashmla.cmake"),
        Fetch("triton_kernels", "https://github.com/triton-lang/triton.git", "v3.5.0", "TRITON_KERNELS_SRC_DIR",
              file="cmake/external_projects/triton_kernels.cmake"),
    )  # fmt: skip
    assert facts.extensions == (
        Extension("_moe_C", optional=False),
        Extension("triton_kernels", optional=True),
        Extension("_flashmla_C", optional=True, cuda="12.9"),
        Extension("_C", optional=False),
    )
    assert facts.build_requirements == ("cmake>=3.26.1", "ninja", "setuptools>=77.0.3,<81.0.0", "setuptools-scm>=8.0")
    assert facts.archs["12.8"] == ("7.0", "8.0", "8.6", "8.9", "9.0", "12.0")
    assert facts.archs[""] == ("7.0", "8.0", "9.0")


@pytest.mark.parametrize(
    "extra",
    [
        "ExternalProject_Add(thing URL https://example.org/x.tar.gz)",
        "file(DOWNLOAD https://example.org/x.h x.h)",
        "execute_process(COMMAND git clone https://example.org/x)",
        "execute_process(COMMAND ${GIT_EXECUTABLE} clone https://example.org/x)",
        "CPMAddPackage(NAME thing)",
        "FetchContent_Declare(thing URL https://example.org/x.tar.gz)",
        "FetchContent_Declare(thing GIT_REPOSITORY https://example.org/x GIT_TAG main)",
        "FetchContent_Declare(thing GIT_REPOSITORY https://example.org/x)",
        "FetchContent_Populate(thing GIT_REPOSITORY https://example.org/x)",
        "FetchContent_Populate(thing SUBBUILD_DIR a GIT_REPOSITORY https://example.org/x GIT_TAG main)",
    ],
)
def test_a_fetch_that_is_not_recognised_is_an_error(tmp_path: Path, extra: str) -> None:
    tree = vllm_tree(tmp_path, cmake=f"{trees.CMAKE}\n{extra}\n")
    with pytest.raises(FetchError, match=r"CMakeLists.txt:2\d: a fetch that wheelsmith does not recognise"):
        read_upstream(tree)


def test_a_fetch_in_a_comment_is_none(tmp_path: Path) -> None:
    extra = "# file(DOWNLOAD x)\n#[[ ExternalProject_Add(\n x) ]]\n"
    assert len(read_upstream(vllm_tree(tmp_path, cmake=trees.CMAKE + extra)).fetches) == 3


def test_files_that_do_not_agree_on_torch_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="do not agree") as caught:
        read_upstream(vllm_tree(tmp_path, cuda="torch==2.10.0\n"))
    assert "requirements/cuda.txt: 2.10.0" in caught.value.why
    with pytest.raises(FetchError, match="do not agree"):
        read_upstream(vllm_tree(tmp_path, cuda="numpy\n"))


def test_a_tree_that_is_not_vllm_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="cannot be read"):
        read_upstream(tmp_path)
    with pytest.raises(FetchError, match="CUDA_SUPPORTED_ARCHS"):
        read_upstream(vllm_tree(tmp_path, cmake='set(TORCH_SUPPORTED_VERSION_CUDA "2.9.1")\n'))


def git(repository: str, commit: str, **more: Any) -> dict[str, Any]:
    return {"kind": "git", "repository": f"https://github.com/{repository}", "commit": commit, **more}


def recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "small",
        "description": "a recipe that agrees with the small tree",
        "archs": ["8.0", "9.0", "12.0"],
        "components": ["_moe_C", "_C", "triton_kernels"],
        "package": {"name": "vllm", "version": "0.15.1"},
        "source": git("vllm-project/vllm", "1" * 40),
        "dependencies": {
            "cutlass": {
                "version": "4.2.1",
                "variable": "VLLM_CUTLASS_SRC_DIR",
                "source": git("NVIDIA/cutlass", "2" * 40, tag="v4.2.1"),
            },
            "triton_kernels": {
                "version": "3.5.0",
                "variable": "TRITON_KERNELS_SRC_DIR",
                "source": git("triton-lang/triton", "3" * 40, tag="v3.5.0"),
                "components": ["triton_kernels"],
            },
        },
        "torch": {"version": "2.9.1", "cuda": "12.8"},
        "toolchain": {
            "kind": "auto",
            "cuda": "12.8",
            "lock": "locks/x.txt",
            "build_requirements": ["cmake>=3.26.1,<4", "ninja", "setuptools==80.9.0", "setuptools_scm>=8"],
        },
    }
    return Recipe.model_validate({**data, **changes})


def test_a_recipe_that_says_what_its_source_says_has_no_disagreements(tmp_path: Path) -> None:
    assert disagreements(recipe(), vllm_tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"torch": {"version": "2.9.0", "cuda": "12.8"}}, "torch is 2.9.0 in the recipe, upstream pins 2.9.1"),
        ({"components": ["_C", "_vllm_fa2_C"]}, "component _vllm_fa2_C is not among upstream's extensions"),
        ({"components": ["_C", "_flashmla_C"]}, "component _flashmla_C needs CUDA 12.9, the recipe has 12.8"),
        ({"components": ["_C", "_flashmla_C"]}, "dependency flashmla is missing"),
        ({"dependencies": {}}, "dependency cutlass is missing: upstream fetches it at v4.2.1"),
        ({"archs": ["8.7"]}, "arch 8.7 is not among those upstream builds for with CUDA 12.8"),
        (
            {"dependencies": {"cutlass": {"version": "4", "variable": "X", "source": git("x/y", "2" * 40)}}},
            "dependency cutlass is at no tag in the recipe, upstream pins v4.2.1",
        ),
        (
            {"dependencies": {"cutlass": {"version": "4", "variable": "X", "source": git("x/y", "2" * 40)}}},
            "dependency cutlass is given as X, upstream reads VLLM_CUTLASS_SRC_DIR",
        ),
        (
            {"dependencies": {"other": {"version": "4", "variable": "X", "source": git("x/y", "2" * 40)}}},
            "dependency other is in the recipe, but upstream does not fetch it",
        ),
        (
            {"dependencies": {"flashmla": {"version": "4", "variable": "X", "source": git("x/y", "2" * 40)}}},
            f"dependency flashmla is at {'2' * 40} in the recipe",
        ),
    ],
)
def test_each_difference_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert any(sentence in item for item in disagreements(recipe(**changes), vllm_tree(tmp_path)))


@pytest.mark.parametrize(
    ("requirements", "sentence"),
    [
        (["cmake", "ninja", "setuptools==80.9.0", "setuptools_scm>=8"], "cmake allows what upstream's cmake>=3.26.1"),
        (["cmake>=3.26.1", "ninja", "setuptools==81.0.0", "setuptools_scm>=8"], "setuptools==81.0.0 allows"),
        (["cmake>=3.26.1", "setuptools==80.9.0", "setuptools_scm>=8"], "build requirement ninja is missing"),
    ],
)
def test_looser_or_missing_build_requirements_are_named(tmp_path: Path, requirements: list[str], sentence: str) -> None:
    item = recipe(toolchain={**recipe().toolchain.model_dump(), "build_requirements": requirements})
    assert any(sentence in found for found in disagreements(item, vllm_tree(tmp_path)))


def test_a_wheel_dependency_is_compared_by_its_version(tmp_path: Path) -> None:
    wheel = {"kind": "wheel", "name": "flashinfer-python", "version": "1", "sha256": "0" * 64, "path": "cutlass"}
    dependency = {"version": "4.2.0", "variable": "VLLM_CUTLASS_SRC_DIR", "source": wheel}
    found = disagreements(recipe(dependencies={"cutlass": dependency}), vllm_tree(tmp_path))
    assert "dependency cutlass is at v4.2.0 in the recipe, upstream pins v4.2.1" in found


def test_a_fetch_that_no_recipe_knows_is_named(tmp_path: Path) -> None:
    extra = f"FetchContent_Declare(newthing GIT_REPOSITORY https://example.org/n GIT_TAG {'a' * 40})"
    found = disagreements(recipe(), vllm_tree(tmp_path, cmake=f"{trees.CMAKE}\n{extra}\n"))
    assert any("newthing" in item and "no recipe can pin" in item for item in found)


def test_a_recipe_whose_torch_is_not_the_sources_stops_before_anything_is_compiled(tmp_path: Path) -> None:
    tree = vllm_tree(tmp_path)
    check_agreement(recipe(), tree, Console(quiet=True))
    torch = recipe().torch.model_copy(update={"version": "2.0.0"})
    with pytest.raises(DoctorError, match="and its source disagree") as caught:
        check_agreement(recipe().model_copy(update={"torch": torch}), tree, Console(quiet=True))
    assert "2.0.0" in caught.value.why


def test_a_lesser_build_requirement_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toolchain = recipe().toolchain.model_copy(update={"build_requirements": ()})
    check_agreement(recipe().model_copy(update={"toolchain": toolchain}), vllm_tree(tmp_path), Console())
    assert "warning" in capsys.readouterr().err


DEEPGEMM = """
if(DEFINED ENV{DEEPGEMM_SRC_DIR})
  set(DEEPGEMM_SRC_DIR $ENV{DEEPGEMM_SRC_DIR})
endif()
if(DEEPGEMM_SRC_DIR)
  set(deepgemm_SOURCE_DIR "${DEEPGEMM_SRC_DIR}")
else()
  set(_TAG "0820030756945b2daec208e8e8255268360f337d")
  set(_deepgemm_src "${FETCHCONTENT_BASE_DIR}/deepgemm-src")
  if(EXISTS "${_deepgemm_src}/x")
    set(deepgemm_SOURCE_DIR "${_deepgemm_src}")
  else()
    FetchContent_Populate(
      deepgemm
      SOURCE_DIR "${_deepgemm_src}"
      GIT_REPOSITORY "https://github.com/vllm-project/DeepGEMM.git"
      GIT_TAG "${_TAG}"
      GIT_SUBMODULES "third-party/cutlass" "third-party/deep_jit"
      GIT_PROGRESS TRUE)
  endif()
endif()
"""


def test_a_populate_that_names_its_repository_is_a_fetch_like_any_other(tmp_path: Path) -> None:
    """DeepGEMM from 0.24 on, QuTLASS in 0.33: given as a directory by a variable of the environment."""
    upstream = read_upstream(vllm_tree(tmp_path, cmake=trees.CMAKE + DEEPGEMM))
    [fetch] = [item for item in upstream.fetches if item.name == "deepgemm"]
    modules = ("third-party/cutlass", "third-party/deep_jit")
    commit = "0820030756945b2daec208e8e8255268360f337d"
    assert (fetch.variable, fetch.pin, fetch.submodules) == ("DEEPGEMM_SRC_DIR", commit, modules)


def test_a_folder_that_no_user_gives_replaces_nothing(tmp_path: Path) -> None:
    upstream = read_upstream(vllm_tree(tmp_path, cmake=trees.CMAKE + DEEPGEMM.replace(" $ENV{DEEPGEMM_SRC_DIR}", " x")))
    assert [item.variable for item in upstream.fetches if item.name == "deepgemm"] == [""]


@pytest.mark.parametrize("swapped", [False, True])
def test_what_a_build_for_rocm_sets_is_not_ours(tmp_path: Path, *, swapped: bool) -> None:
    cuda = 'set(GIT "https://github.com/triton-lang/triton.git")\nset(TAG "v3.5.1")\n'
    rocm = 'set(GIT "https://github.com/ROCm/triton.git")\nset(TAG "669b31acc1dd1b3fd93286afd5db67f65d9f7557")\n'
    question = '(NOT VLLM_TARGET_DEVICE STREQUAL "rocm")' if swapped else '(VLLM_TARGET_DEVICE STREQUAL "rocm")'
    first, second = (cuda, rocm) if swapped else (rocm, cuda)
    declared = "FetchContent_Declare(triton_kernels GIT_REPOSITORY ${GIT} GIT_TAG ${TAG})\n"
    text = f"if {question}\n{first}else()\n{second}endif()\n{declared}"
    [fetch] = [f for f in read_upstream(vllm_tree(tmp_path, triton=text)).fetches if f.name == "triton_kernels"]
    assert (fetch.repository, fetch.pin) == ("https://github.com/triton-lang/triton.git", "v3.5.1")


def test_the_copies_of_cutlass_that_upstream_includes_are_submodules_to_fetch(tmp_path: Path) -> None:
    root = "${flashmla_SOURCE_DIR}/csrc"
    extra = f"\nset(A {root}/3rdparty/cutlass/include {root}/cutlass/included)\n"
    text = trees.FLASHMLA.replace('GIT_SUBMODULES "csrc/cutlass" "csrc/other"', "") + extra
    [fetch] = [f for f in read_upstream(vllm_tree(tmp_path, flashmla=text)).fetches if f.name == "flashmla"]
    assert fetch.cutlass == ("csrc/3rdparty/cutlass",)
    known = KNOWN["flashmla"]
    assert known.submodules_of(fetch) == ("csrc/3rdparty/cutlass",)
    assert known.folders_of(fetch) == ("csrc/3rdparty/cutlass/include", "csrc/3rdparty/cutlass/tools/util/include")


SETUP = """
if not _is_xpu():
    ext_modules.append(CMakeExtension(name="vllm.spinloop"))
if USE_PRECOMPILED_EXTENSIONS or (CUDA_HOME and get_nvcc_cuda_version() >= Version("12.9")):
    ext_modules.append(CMakeExtension(name="vllm._deepselect_C", optional=True))
if _build_custom_ops():
    if _is_hip():
        ext_modules.append(CMakeExtension(name="vllm._C"))
    if _is_cuda() or _is_hip():
        ext_modules.append(CMakeExtension(name="vllm._moe_C_stable_libtorch"))
if not (_is_cuda() or _is_hip()):
    ext_modules.append(CMakeExtension(name="vllm._other"))
if not (_is_hip() and _is_cuda()):
    ext_modules.append(CMakeExtension(name="vllm.fs_io_C"))
if _is_cuda() and unheard_of():
    ext_modules.append(CMakeExtension(name="vllm.new"))
if not unheard_of(_is_hip()):
    ext_modules.append(CMakeExtension(name="vllm.newer"))
else:
    ext_modules.append(CMakeExtension(name="vllm.newest"))
"""


def test_extensions_are_those_of_a_machine_with_cuda(tmp_path: Path) -> None:
    found = read_upstream(vllm_tree(tmp_path, setup=SETUP)).extensions
    cuda = ["_deepselect_C", "_moe_C_stable_libtorch", "fs_io_C", "new", "newer", "newest"]
    assert [item.name for item in found] == ["spinloop", *cuda]
    assert found[1] == Extension("_deepselect_C", optional=True, cuda="12.9")


HOST = """
set(CMAKE_CXX_STANDARD 20)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS "11.3")
  message(FATAL_ERROR "GCC >= 11.3")
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS "99")
  message(WARNING "only a warning")
endif()
"""
NARROW = """
wants_components(VLLM_WANTS_FORMAT _deep_gemm_C _deepselect_C)
if (VLLM_GPU_LANG STREQUAL "CUDA" AND VLLM_WANTS_FORMAT
    AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS "13")
  message(FATAL_ERROR "GCC >= 13")
endif()
"""


def test_the_standard_and_the_oldest_gcc_are_read(tmp_path: Path) -> None:
    facts = read_upstream(vllm_tree(tmp_path / "a", cmake=trees.CMAKE + HOST))
    assert (facts.host.cxx, facts.host.gcc, facts.rust) == (20, {"all": "11.3"}, False)
    upstreams_own = NARROW.replace("AND VLLM_WANTS_FORMAT", "")
    assert read_upstream(vllm_tree(tmp_path / "b", cmake=trees.CMAKE + HOST + upstreams_own)).host.gcc == {"all": "13"}
    patched = read_upstream(vllm_tree(tmp_path / "c", cmake=trees.CMAKE + HOST + NARROW)).host
    assert patched.gcc == {"all": "11.3", "_deep_gemm_C": "13", "_deepselect_C": "13"}


def test_python_and_a_rust_front_end_are_read_from_pyproject(tmp_path: Path) -> None:
    text = trees.PYPROJECT.replace('"ninja"', '"ninja", "setuptools-rust>=1.9.0"')
    facts = read_upstream(vllm_tree(tmp_path, pyproject=text + '[project]\nrequires-python = ">=3.11,<3.15"\n'))
    assert (facts.host.python, facts.rust) == (">=3.11,<3.15", True)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ({}, ""),
        ({"python": "", "cxx": 20, "gcc": {"all": "11.3"}}, ""),
        ({"python": "", "cxx": 17, "gcc": {"all": "11.3"}}, "C++17, upstream wants"),
        ({"python": "", "cxx": 20, "gcc": {"all": "9"}}, "names no GCC 11.3"),
    ],
)
def test_a_recipe_that_says_otherwise_of_the_machine_disagrees(tmp_path: Path, host: dict[str, Any], said: str) -> None:
    tree = vllm_tree(tmp_path, cmake=trees.CMAKE + HOST)
    data = recipe().model_dump(mode="json")
    found = disagreements(recipe(toolchain={**data["toolchain"], "host": host}), tree)
    assert [said in text for text in found] == ([True] if said else [])
