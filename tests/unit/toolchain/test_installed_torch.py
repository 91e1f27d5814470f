"""An installed torch: found, asked, known by its files, and what is wrong with it; real interpreters, a small torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.core.errors import ToolchainError
from scripts.cuda.archs import parse_arch_list
from scripts.recipe.files import load_recipe
from scripts.toolchain.adopt import adopt, check, other_torch, problems
from scripts.toolchain.installed_torch import InstalledTorch, find_torch
from scripts.toolchain.layered import tools_lock
from tests.installed_torches import NEEDED, make_toolkit, make_torch
from tests.miniature import HEADER
from tests.support import make_recipe

ARCHS = parse_arch_list("9.0;12.0")


def look(python: Path) -> InstalledTorch:
    return find_torch(str(python), os.environ)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return make_torch(tmp_path / "ngc")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which there is no CUDA toolkit but what a test names."""
    empty = tmp_path / "empty"
    empty.mkdir()
    return {**os.environ, "PATH": str(empty), "CUDA_HOME": "", "CUDA_PATH": ""}


def test_an_interpreter_is_asked_for_all_that_counts(python: Path) -> None:
    torch = look(python)
    assert (torch.version, torch.distribution, torch.cuda) == ("2.7.0a0+nv25.02", "2.7.0a0+nv25.02", "13.0")
    assert torch.archs == ("sm_90", "sm_100", "sm_120")
    assert torch.cxx11_abi
    assert torch.include.is_dir()
    assert torch.root in torch.path
    assert torch.record
    assert not torch.changed
    assert not list(problems(torch, make_recipe(), ARCHS))


def test_the_first_python_on_path_with_a_torch_is_the_installed_one(tmp_path: Path, python: Path) -> None:
    other = make_torch(tmp_path / "other", version="2.9.1+cu130", distribution="2.9.1")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "python3").write_text("#!/bin/sh\nexit 1\n")
    (plain / "python3").chmod(0o755)
    path = os.pathsep.join(map(str, (plain, python.parent, other.parent)))
    assert find_torch("installed", {"PATH": path}).version == "2.7.0a0+nv25.02"


def test_without_any_torch_on_path_it_is_said_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="no Python on PATH has a torch") as raised:
        find_torch("installed", {"PATH": str(tmp_path)})
    assert "--torch" in raised.value.fix[0]


def test_a_torch_that_does_not_import_says_why(python: Path) -> None:
    (look(python).root / "torch/__init__.py").write_text(
        "raise ImportError('libmpi.so.40: cannot open shared object file')"
    )
    with pytest.raises(ToolchainError, match="cannot import torch") as raised:
        look(python)
    assert "libmpi" in raised.value.why


def test_an_interpreter_that_is_not_there_is_one_screen(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot import torch") as raised:
        look(tmp_path / "python")
    assert "No such file" in raised.value.why


def test_a_torch_whose_headers_ask_for_a_newer_c_plus_plus_is_refused(python: Path) -> None:
    header = look(python).root / "torch/include/ATen/ATen.h"
    lines = "#if __cplusplus < {}\n#error C++{} or later compatible compiler is required to use ATen.\n"
    header.write_text(lines.format("201703L", 17))  # torch 2.13.0
    assert not [item for item in problems(look(python), make_recipe(), ARCHS) if item.id == "torch-needs-cxx20"]
    header.write_text(lines.format("202002L", 20))  # torch 2.14.0
    [problem] = [item for item in problems(look(python), make_recipe(), ARCHS) if item.id == "torch-needs-cxx20"]
    assert "needs C++20" in problem.what
    assert "as C++17" in problem.what
    newer = make_recipe(toolchain={**make_recipe().toolchain.model_dump(mode="json"), "host": {"cxx": 20}})
    assert not [item for item in problems(look(python), newer, ARCHS) if item.id == "torch-needs-cxx20"]


def test_the_key_is_of_the_files_not_of_the_moment(python: Path) -> None:
    key = look(python).key
    assert look(python).key == key
    (look(python).root / "torch/lib/libtorch_cuda.so").write_bytes(b"rebuilt in its place")
    assert look(python).changed == ("torch/lib/libtorch_cuda.so",)
    assert look(python).key != key


def test_a_source_checkout_is_known_by_sizes_and_times(tmp_path: Path) -> None:
    python = make_torch(tmp_path / "own", version="2.9.0a0+gitabc", distribution="")
    torch = look(python)
    assert (torch.distribution, torch.record, torch.name) == ("", "", "2.9.0a0+gitabc")
    key = torch.key
    os.utime(torch.include / "ATen/ATen.h", ns=(1, 1))
    assert look(python).key != key


def test_another_torch_s_record_is_not_taken_for_this_one_s(tmp_path: Path, python: Path) -> None:
    own = make_torch(tmp_path / "own", version="2.9.0a0+gitabc", distribution="")
    script = tmp_path / "python"
    root = look(own).root
    script.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {python} "$@"\n')
    script.chmod(0o755)
    torch = look(script)
    assert (torch.version, torch.root, torch.record) == ("2.9.0a0+gitabc", root, "")


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_part_of_torch_is_named(name: str, python: Path) -> None:
    torch = look(python)
    (torch.root / "torch" / name).unlink()
    with pytest.raises(ToolchainError, match="cannot be compiled against") as raised:
        check(look(python), make_recipe(), ARCHS, torch.root)
    assert f"lacks {name} in {torch.root}/torch" in raised.value.why
    assert "--force-reinstall torch==2.7.0a0+nv25.02" in raised.value.fix[0]


def test_any_header_that_record_lists_is_missed(python: Path) -> None:
    torch = look(python)
    (torch.root / HEADER).unlink()
    [problem] = problems(look(python), make_recipe(), ARCHS)
    assert problem.id == "torch-header-gone"
    assert "include/torch/headeronly/core/ScalarType.h" in problem.what


def test_the_old_abi_and_archs_without_kernels_are_problems(tmp_path: Path) -> None:
    torch = look(make_torch(tmp_path / "old", abi=False))
    found = {item.id: item.what for item in problems(torch, make_recipe(), parse_arch_list("8.0;9.0"))}
    assert set(found) == {"cxx11-abi-flag-mismatch", "torch-not-built-for-gpu"}
    assert "run on 8.0: it has sm_90 sm_100 sm_120" in found["torch-not-built-for-gpu"]


def test_the_type_is_wanted_where_the_source_names_it(python: Path, tmp_path: Path) -> None:
    torch = look(python)
    (torch.root / HEADER).write_text("no such type..")
    source = tmp_path / "source"
    (source / "csrc").mkdir(parents=True)
    (source / "csrc/a.cu").write_text("int a;")
    check(torch, make_recipe(), ARCHS, source)
    (source / "csrc/mx.cuh").write_text("at::ScalarType::Float8_e8m0fnu")
    with pytest.raises(ToolchainError, match="has no type Float8_e8m0fnu") as raised:
        check(torch, make_recipe(), ARCHS, source)
    assert "csrc/mx.cuh" in raised.value.why


def test_a_recipe_is_adopted_to_the_torch_and_a_toolkit_of_its_cuda(
    tmp_path: Path, python: Path, bare: dict[str, str]
) -> None:
    home = make_toolkit(tmp_path / "cuda")
    recipe, torch = adopt(make_recipe(), str(python), {**bare, "CUDA_HOME": str(home)}, prefix=tmp_path)
    assert torch
    assert (recipe.torch.version, recipe.torch.cuda) == ("2.7.0a0+nv25.02", "13.0")
    assert (recipe.toolchain.kind, recipe.toolchain.cuda) == ("system", "13.0")
    assert recipe.version(ARCHS) == "0.20.1+cu130.torch2.7.0a0.nv2502"
    assert "made for torch 2.11.0; this is torch 2.7.0a0+nv25.02" in other_torch(recipe)


def test_another_minor_of_the_toolkit_is_taken_and_named_in_the_label(
    tmp_path: Path, python: Path, bare: dict[str, str]
) -> None:
    home = make_toolkit(tmp_path / "cuda", "13.2")
    recipe, _ = adopt(make_recipe(), str(python), {**bare, "CUDA_HOME": str(home)}, prefix=tmp_path)
    assert recipe.toolchain.cuda == "13.2"
    assert recipe.version(ARCHS).startswith("0.20.1+cu132.torch2.7.0a0")


def test_a_toolkit_of_another_major_is_refused_with_all_that_was_looked_at(
    tmp_path: Path, python: Path, bare: dict[str, str]
) -> None:
    home = make_toolkit(tmp_path / "old", "12.8")
    with pytest.raises(
        ToolchainError, match=r"no CUDA 13 toolkit is installed, and torch 2\.7\.0a0\+nv25\.02"
    ) as raised:
        adopt(make_recipe(), str(python), {**bare, "CUDA_HOME": str(home)}, prefix=tmp_path)
    assert f"CUDA_HOME={home}: its nvcc is of CUDA 12.8, not 13.0" in raised.value.why


def test_without_a_toolkit_the_compiler_wheels_of_the_recipe_are_taken_if_they_fit(
    tmp_path: Path, python: Path, bare: dict[str, str]
) -> None:
    recipe, _ = adopt(load_recipe("quickstart"), str(python), bare, prefix=tmp_path)
    assert (recipe.toolchain.kind, recipe.toolchain.cuda) == ("pypi", "13.0")


def test_a_torch_without_cuda_is_refused(tmp_path: Path) -> None:
    python = make_torch(tmp_path / "cpu", version="2.11.0+cpu", cuda="")
    with pytest.raises(ToolchainError, match="build without CUDA"):
        adopt(make_recipe(), str(python), os.environ)


def test_a_recipe_may_name_the_torch_itself(tmp_path: Path, python: Path, bare: dict[str, str]) -> None:
    toolchain = {"kind": "installed", "cuda": "13.0", "lock": "x.txt", "build_requirements": ["ninja"]}
    home = make_toolkit(tmp_path / "cuda")
    mine = make_recipe(toolchain={**toolchain, "python": str(python)})
    recipe, torch = adopt(mine, "", {**bare, "CUDA_HOME": str(home)}, prefix=tmp_path)
    assert torch
    assert torch.python == python
    assert recipe.toolchain.python == ""  # the same torch elsewhere is the same recipe
    assert adopt(make_recipe(), "", bare) == (make_recipe(), None)


def test_our_tools_come_without_torch_and_without_the_toolkit_that_is_there() -> None:
    lock = load_recipe("quickstart").lock_file.read_text()
    for cuda in (False, True):
        names = {line.split("==")[0] for line in tools_lock(lock, cuda=cuda).splitlines() if line[:1].isalpha()}
        assert {"cmake", "ninja", "setuptools", "build", "numpy"} <= names
        assert not names & {"torch", "triton"}
        assert ("nvidia-cuda-nvcc" in names) is cuda
