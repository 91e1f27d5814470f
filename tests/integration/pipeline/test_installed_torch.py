"""The main job against an installed torch, from end to end on the miniature: real uv, venv, CMake and auditwheel."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import pytest

from scripts.commands import doctor
from scripts.commands.wheel import main
from scripts.core.console import Console
from scripts.core.errors import DoctorError, ToolchainError
from tests.installed_torches import make_toolkit, make_torch
from tests.miniature import Miniature, make_miniature


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def machine(miniature: Miniature, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature's settings, and a toolkit of CUDA 13.0."""
    home = make_toolkit(tmp_path / "cuda")
    for name, value in {**miniature.environment(cache), "CUDA_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return sizes and times of all files below a folder, without what importing leaves."""
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts and not path.is_symlink())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()}


@pytest.mark.builds
@pytest.mark.large
@pytest.mark.parametrize(
    "fixed",
    [pytest.param(True, id="mount namespaces"), pytest.param(False, id="no mount namespaces", marks=pytest.mark.large)],
)
def test_the_wheel_names_the_torch_and_its_environment_stays_as_it_is(
    *, fixed: bool, miniature: Miniature, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fixed:
        monkeypatch.setattr("scripts.pipeline.wheel.refusal", lambda: "none here")
    python = make_torch(tmp_path / "ngc")
    before = listing(tmp_path / "ngc")
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    house = tmp_path / "wheelhouse"
    assert main(["--recipe", str(miniature.recipe), "--torch", "installed", "--wheelhouse", str(house)], Console()) == 0
    assert listing(tmp_path / "ngc") == before
    [wheel] = house.glob("*.whl")
    assert wheel.name.startswith("vllm-0.20.1+cu130.torch2.7.0a0.nv2502.mini-cp38-abi3-")
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    assert "Requires-Dist: torch==2.7.0a0+nv25.02\n" in archive.read(name).decode()
    report = json.loads(wheel.with_name(f"{wheel.name}.report.json").read_text())
    assert report["torch"]["version"] == "2.7.0a0+nv25.02"
    assert [item["code"] for item in report["audit"]["findings"]] == ["triton-kernels"]
    assert report["toolchain"]["packages"]["torch"] == "2.7.0a0+nv25.02"
    assert not any(str(tmp_path).encode() in archive.read(member) for member in archive.namelist())
    # A changed torch is another build; the same one is not built again.
    trees = set((cache / "builds").iterdir())
    assert main(["--recipe", str(miniature.recipe), "--torch", str(python), "--wheelhouse", str(house)], Console()) == 0
    assert set((cache / "builds").iterdir()) == trees


def test_a_torch_that_lacks_a_header_stops_before_anything_is_made(
    miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = make_torch(tmp_path / "ngc")
    [header] = (tmp_path / "ngc").rglob("CUDAContext.h")
    header.unlink()
    arguments = ["--recipe", str(miniature.recipe), "--torch", str(python)]
    with pytest.raises(DoctorError) as raised:
        main([*arguments, "--wheelhouse", str(tmp_path / "house")], Console())
    assert "lacks include/ATen/cuda/CUDAContext.h" in raised.value.why
    assert "[torch-header-gone]" in raised.value.why
    assert doctor.main(arguments, Console()) == DoctorError.exit_code
    said = capsys.readouterr().out
    assert "blocked  torch-header-gone: torch 2.7.0a0+nv25.02" in said
    assert "made for torch 2.11.0; this is torch 2.7.0a0+nv25.02" in said
    assert "torch==2.7.0a0+nv25.02" in said


def test_skipping_the_check_only_leads_to_the_one_before_the_compilers(miniature: Miniature, tmp_path: Path) -> None:
    python = make_torch(tmp_path / "ngc", abi=False)
    arguments = ["--recipe", str(miniature.recipe), "--torch", str(python), "--skip", "cxx11-abi-flag-mismatch"]
    with pytest.raises(ToolchainError, match="cannot be compiled against") as raised:
        main([*arguments, "--wheelhouse", str(tmp_path / "house")], Console())
    assert "from before C++11" in raised.value.why


def test_an_environment_that_would_import_another_torch_is_refused(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = make_torch(tmp_path / "ngc", version="2.7.0a0+other")
    monkeypatch.setattr("scripts.toolchain.layered._TORCH", re.compile("none"))  # a lock whose torch has another name
    with pytest.raises(ToolchainError, match=r"imports torch 2\.11\.0\+mini .*, not torch 2\.7\.0a0\+other"):
        main(["--recipe", str(miniature.recipe), "--torch", str(python)], Console())
