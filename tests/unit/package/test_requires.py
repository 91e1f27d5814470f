"""METADATA of a wheel that was compiled against an installed torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from scripts.package.requires import wanted_torch, with_torch
from tests.support import make_recipe
from tests.wheels import make_wheel

METADATA = b"""Metadata-Version: 2.4
Name: vllm
Version: 0.20.1
Requires-Dist: numpy
Requires-Dist: torch==2.11.0
Requires-Dist: torchaudio==2.11.0
Requires-Dist: torchvision==0.26.0; platform_machine != "s390x"
Requires-Dist: not a requirement
Requires-Dist: torch-c-dlpack-ext==0.1

Requires-Dist: torch==2.11.0 is only text here.
"""


def test_torch_is_named_and_what_is_released_for_one_torch_is_left_open() -> None:
    head, _, body = with_torch(METADATA, "==2.7.0a0+nv25.02", another=True).decode().partition("\n\n")
    assert head.split("\n")[3:] == [
        "Requires-Dist: numpy",
        "Requires-Dist: torch==2.7.0a0+nv25.02",
        "Requires-Dist: torchaudio",
        'Requires-Dist: torchvision; platform_machine != "s390x"',
        "Requires-Dist: not a requirement",
        "Requires-Dist: torch-c-dlpack-ext==0.1",
    ]
    assert body == "Requires-Dist: torch==2.11.0 is only text here.\n"


def test_with_the_torch_that_upstream_pins_nothing_else_changes() -> None:
    assert with_torch(METADATA, "==2.11.0", another=False) == METADATA


def test_the_result_is_metadata_that_is_read_strictly() -> None:
    plain = METADATA.replace(b"Requires-Dist: not a requirement\n", b"")
    for wanted in ("==2.7.0a0+nv25.02", ">=2.10,<3", "===2.9.0-Own"):
        found = Metadata.from_email(with_torch(plain, wanted, another=True), validate=True)
        assert f"torch{wanted}" in {str(item).replace("<3,>=2.10", ">=2.10,<3") for item in found.requires_dist or []}


def library(folder: Path, name: str, symbol: str) -> bytes:
    """Compile a shared object that wants a symbol."""
    source, out = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(f"extern int wanted(void) asm({symbol!r});\nint use() {{ return wanted(); }}\n".replace("'", '"'))
    subprocess.run(["g++", "-shared", "-fPIC", "-o", out, source], check=True)
    return out.read_bytes()


@pytest.mark.parametrize(
    ("symbols", "target", "wanted"),
    [
        (["aoti_torch_empty", "puts"], "", ">=2.9,<3"),
        (["torch_list_size", "puts"], "", ">=2.10,<3"),
        (["torch_list_size"], "TORCH_TARGET_VERSION=0x020B000000000000ULL", ">=2.11,<3"),
        (["torch_list_size", "_ZN3c105ErrorC1Ev"], "TORCH_TARGET_VERSION=0x020B000000000000ULL", "==2.12.0"),
        (["puts"], "TORCH_TARGET_VERSION=0x020B000000000000ULL", "==2.12.0"),
    ],
)
def test_only_a_wheel_that_is_all_of_the_stable_abi_asks_for_a_range(
    symbols: list[str], target: str, wanted: str, tmp_path: Path
) -> None:
    members = {f"vllm/_{i}.abi3.so": library(tmp_path, str(i), symbol) for i, symbol in enumerate(symbols)}
    wheel = make_wheel(tmp_path, members)
    (tmp_path / "CMakeLists.txt").write_text(f"add_definitions(-D{target})\n" if target else "")
    recipe = make_recipe(torch={"version": "2.12.0", "cuda": "13.0"})
    assert wanted_torch(wheel, recipe, tmp_path) == wanted
