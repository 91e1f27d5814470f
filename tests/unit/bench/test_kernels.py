"""A kernel that nothing launches may be missing; any other difference of a kernel is one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.bench.device_code import Comparison, Outcome, compare
from scripts.bench.kernels import UNUSED
from scripts.formats.fatbin_types import Kind
from tests.fatbins import container, entry, ptx, shared_object

EMPTY = "_ZN3cub22CUB_300001_SM_900_12006detail11EmptyKernelIvEEvv"  # of moe_align_sum_kernels.cu.o, CUDA 13.0


def assembled(path: Path, kernels: dict[str, str], constants: int = 1) -> bytes:
    """Return an ELF file with a section per kernel, as cubins have them, by the system's assembler."""
    lines = [
        f'.section .text.{name},"ax"\n.globl {name}\n{name}:\n{body}\n'
        f'.section .nv.constant0.{name},"a"\n.long {constants}'
        for name, body in kernels.items()
    ]
    path.with_suffix(".s").write_text("\n".join([*lines, ""]))
    subprocess.run(["gcc", "-c", path.with_suffix(".s"), "-o", path], check=True)
    return path.read_bytes()


def compared(folder: Path, stock: dict[str, str], lean: dict[str, str], constants: int = 1) -> Comparison:
    sides = [assembled(folder / "stock", stock), assembled(folder / "lean", lean, constants)]
    objects = [
        shared_object(folder / f"{number}.o", {"a.cu": container(entry(Kind.ELF, "90", data))})
        for number, data in enumerate(sides)
    ]
    return compare("a.cu", *objects)


def test_a_kernel_that_nothing_launches_may_be_missing(tmp_path: Path) -> None:
    found = compared(tmp_path, {EMPTY: "ret", "f": "nop\nret"}, {"f": "nop\nret"})
    assert found.outcome is Outcome.KERNELS
    assert found.why == f"the same kernels, without {EMPTY}, which nothing launches"


@pytest.mark.parametrize(
    ("stock", "lean", "constants"),
    [
        ({EMPTY: "ret", "f": "nop\nret"}, {"f": "ret"}, 1),
        ({EMPTY: "ret", "f": "ret"}, {"f": "ret"}, 2),
        ({EMPTY: "ret", "f": "ret", "g": "ret"}, {"f": "ret"}, 1),
        ({"f": "ret"}, {"f": "ret", EMPTY: "ret"}, 1),
        ({EMPTY: "ret", "f": "ret"}, {"g": "ret"}, 1),
        ({EMPTY: "ret", "f": "call h"}, {"f": "call i"}, 1),
        ({EMPTY: "ret"}, {}, 1),
    ],
    ids=["instructions", "constants", "another kernel missing", "one more", "name", "what it calls", "none left"],
)
def test_whatever_else_differs_is_a_difference(
    tmp_path: Path, stock: dict[str, str], lean: dict[str, str], constants: int
) -> None:
    assert compared(tmp_path, stock, lean, constants).outcome is Outcome.DIFFERENT


def test_variables_that_no_kernel_uses_may_be_missing_and_values_may_not_differ(tmp_path: Path) -> None:
    def made(name: str, more: str) -> Path:
        (tmp_path / f"{name}.s").write_text(f'.section .text.f,"ax"\n.globl f\nf: ret\n{more}\n')
        subprocess.run(["gcc", "-c", tmp_path / f"{name}.s", "-o", tmp_path / name], check=True)
        code = container(entry(Kind.ELF, "90", (tmp_path / name).read_bytes()))
        return shared_object(tmp_path / f"{name}.o", {"a.cu": code})

    unused = '.section .nv.global,"aw",@nobits\nplaceholder: .zero 8'
    found = compare("a.cu", made("stock", unused), made("lean", ""))
    assert (found.outcome, found.why) == (Outcome.KERNELS, "the same kernels, without variables that no kernel uses")
    values = [made(value, f'.section .nv.global.init,"aw"\ntable: .long {value}\n{unused}') for value in "12"]
    assert compare("a.cu", *values).outcome is Outcome.DIFFERENT


def test_ptx_is_never_taken_for_the_same_kernels(tmp_path: Path) -> None:
    objects = [
        shared_object(tmp_path / name, {"a.cu": container(entry(Kind.PTX, "90", ptx("90", name)))}) for name in "ab"
    ]
    assert compare("a.cu", *objects).outcome is Outcome.DIFFERENT


def test_only_cubs_own_empty_kernel_is_one_that_nothing_launches() -> None:
    assert UNUSED.fullmatch("_ZN3cub11EmptyKernelIvEEvv")
    assert UNUSED.fullmatch(EMPTY)
    assert UNUSED.fullmatch("_ZN3cub21unit_862717d9a0592e3b6detail11EmptyKernelIvEEvv")  # with unit_names.h
    assert not UNUSED.fullmatch("_ZN4vllm11EmptyKernelIvEEvv")
    assert not UNUSED.fullmatch("_ZN3cub22CUB_300001_SM_900_12006detail12EmptyKernel2IvEEvv")
