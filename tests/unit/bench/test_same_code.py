"""Names with process numbers are not code; everything else is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench.device_code import Outcome, compare
from scripts.bench.proof import report
from scripts.bench.same_code import without_processes
from scripts.core.console import Console
from scripts.formats.fatbin_types import Compression, Kind
from tests.fatbins import container, cubin, entry, ptx, sass, shared_object

UNIT = "flash_fwd_sparse_hdim128_fp16_sm80_cu"


def internal(process: int, unit: str = UNIT, mark: str = "_INTERNAL_") -> str:
    """Return a name as nvcc 12.5 makes it, with its mangled length before it."""
    name = f"{mark}3f64c698_{len(unit)}_{unit}_73d593f5_{process}"
    return f"{len(name)}{name}"


def declared(process: int) -> str:
    """Return a line that nvcc 12.5 wrote for FlashAttention's unit, its process apart."""
    return (
        f"_ZN{internal(process)}4cuda3std3__4{internal(process, mark='_GLOBAL__N__')}6ignoreE[1]; "
        f"_ZN{internal(process)}4cute1_E[1];"
    )


def test_the_real_names_are_the_same_without_their_processes() -> None:
    assert declared(25840).startswith("_ZN74_INTERNAL_3f64c698_37_flash_fwd_sparse_hdim128_fp16_sm80_cu_73d593f5_2584")
    assert "3__476_GLOBAL__N__" in declared(25840)
    assert "3__475_GLOBAL__N__" in declared(3269)
    assert without_processes(declared(25840).encode()) == without_processes(declared(3269).encode())
    assert without_processes(declared(3269).encode()).decode() == declared(0)


@given(
    st.tuples(st.integers(1, 4194304), st.integers(1, 4194304)),
    st.from_regex(r"[a-z0-9_]{1,40}_cu", fullmatch=True),
    st.from_regex(r"([A-Za-z_]*[A-Za-z_])?[0-9]?", fullmatch=True),
    st.from_regex(r"[0-9a-zA-Z_]{0,8}", fullmatch=True),
)
def test_names_of_any_process_become_one(processes: tuple[int, int], unit: str, before: str, after: str) -> None:
    one, other = ((before + internal(process, unit) + after).encode() for process in processes)
    assert without_processes(one) == without_processes(other) == (before + internal(0, unit) + after).encode()


@given(st.binary(max_size=200))
def test_any_other_bytes_stay_as_they_are(data: bytes) -> None:
    assert without_processes(data) == data
    cut = b"x_INTERNAL_3f64c698_9999_" + data
    assert without_processes(cut) == cut


def test_names_that_are_not_mangled_lose_their_process_too() -> None:
    name = "_INTERNAL_01234567_4_a_cu_89abcdef_"
    assert without_processes(f'"{name}123"'.encode()) == f'"{name}0"'.encode()


def linked(path: Path, symbol: str, answer: int = 1) -> bytes:
    """Return a small ELF file with a symbol table, by the system's assembler."""
    path.with_suffix(".s").write_text(f".data\n{symbol}:\n.long {answer}\n.text\n.globl f\nf: ret\n")
    subprocess.run(["gcc", "-c", path.with_suffix(".s"), "-o", path], check=True)
    return path.read_bytes()


def packed(kind: Kind, data: bytes, how: Compression) -> bytes:
    arch, size = "80", len(data)
    if how is Compression.LZ4:
        data = lz4.block.compress(data, store_size=False)
    if how is Compression.ZSTD:
        data = zstandard.ZstdCompressor().compress(data)
    return entry(kind, arch, data, compression=how, size=0 if how is Compression.NONE else size)


@pytest.mark.parametrize("how", [Compression.NONE, Compression.LZ4, Compression.ZSTD])
def test_other_process_numbers_are_the_same_code_and_a_changed_byte_is_not(tmp_path: Path, how: Compression) -> None:
    def made(name: str, process: int, *, answer: int = 1, body: str = "ret;") -> Path:
        symbol = f"_ZN{internal(process)}4cute1_E"
        code = linked(tmp_path / f"{name}.cubin", symbol, answer)
        text = ptx("80", "f", body=f"// {symbol}\n{body}")
        both = container(packed(Kind.PTX, text, how), packed(Kind.ELF, code, how))
        return shared_object(tmp_path / f"{name}.o", {"a.cu": both})

    stock = made("stock", 25840)
    found = compare("a", stock, made("renamed", 3269))
    assert (found.outcome, found.cubins, found.ptx) == (Outcome.NAMES, 1, 1)
    assert found.why.startswith("compute_80, sm_80: the same code; names")
    cubin_too = compare("a", stock, made("data", 3269, answer=2))
    assert cubin_too.outcome is Outcome.DIFFERENT
    assert cubin_too.why.startswith("sm_80 differs: ")
    text_too = compare("a", stock, made("text", 3269, body="exit;"))
    assert text_too.outcome is Outcome.DIFFERENT
    assert text_too.why.startswith("compute_80 differs: ")


def test_a_kernel_under_another_name_is_different_code(tmp_path: Path) -> None:
    sides = [
        shared_object(tmp_path / name, {"a.cu": container(entry(Kind.ELF, "80", cubin(f"{name}{internal(7)}")))})
        for name in ("k", "l")
    ]
    assert compare("a", *sides).outcome is Outcome.DIFFERENT


def test_two_cubins_of_one_arch_are_told_apart(tmp_path: Path) -> None:
    def made(name: str, process: int, code: bytes) -> Path:
        both = container(sass("80", f"k{internal(process)}"), sass("80", "f", code=code))
        return shared_object(tmp_path / name, {"a.cu": both})

    found = compare("a", made("one", 12345, b"\x90" * 64), made("two", 54321, b"\x91" * 64))
    assert found.outcome is Outcome.DIFFERENT
    assert compare("a", made("three", 1, b"\x90" * 64), made("four", 54321, b"\x90" * 64)).outcome is Outcome.NAMES


@pytest.mark.parametrize("how", [Compression.OLD, Compression.LZ4])
def test_what_cannot_be_unpacked_is_never_called_the_same(tmp_path: Path, how: Compression) -> None:
    sides = [
        shared_object(tmp_path / name, {"a.cu": container(entry(Kind.PTX, "80", data, compression=how, size=500))})
        for name, data in (("one", b"\xff" * 40), ("two", b"\xfe" * 40))
    ]
    found = compare("a", *sides)
    assert (found.outcome, found.why[:20]) == (Outcome.DIFFERENT, "compute_80 differs: ")


def test_other_names_are_said_and_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [
        shared_object(tmp_path / str(process), {"a.cu": container(sass("80", f"k{internal(process)}"))})
        for process in (1234, 5)
    ]
    assert report([compare("a.cu", *sides)], Console()) == 0
    said = "".join(capsys.readouterr())
    assert "same code, other names" in said
    assert "a.cu: sm_80: the same code; names" in said
    assert "1 of 1 comparisons found no difference of code" in said
