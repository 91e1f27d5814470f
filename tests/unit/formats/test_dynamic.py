from __future__ import annotations

import ctypes.util
import mmap
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.audit.host import inspect
from scripts.core.errors import AuditError
from scripts.formats.dynamic import Exports, gnu_hash, read_dynamic, undefined_symbols
from scripts.formats.elf import Elf, is_elf, open_elf
from scripts.formats.fatbin import device_code
from tests.fatbins import patched, shared_object

SOURCE = """
#include <string.h>
int alpha(void) { return 1; }
int beta(int x) { return x; }
extern int gamma_(void);
extern int perhaps(void) __attribute__((weak));
void *use(void *a, void *b, unsigned n) { gamma_(); if (perhaps) perhaps(); return memcpy(a, b, n); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_object(tmp_path_factory.mktemp("dyn") / "lib.so", {}, source=SOURCE, link=["-Wl,-soname,lib.so.1"])


def test_undefined_symbols_are_those_others_must_provide(library: Path) -> None:
    with open_elf(library) as elf:
        assert sorted(undefined_symbols(elf)) == ["gamma_", "memcpy"]


def test_exports_answers_as_the_symbol_table_does(library: Path) -> None:
    with open_elf(library) as elf:
        exports = Exports(elf)
        assert "alpha" in exports
        assert "beta" in exports
        assert "gamma_" not in exports
        assert "delta" not in exports


def test_exports_finds_every_symbol_of_the_systems_libc_that_pyelftools_lists() -> None:
    path = next(Path("/").glob("lib*/x86_64-linux-gnu/libc.so.6"), None) or Path("/lib64/libc.so.6")
    with path.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".dynsym")
        assert table is not None
        names = [s.name for s in table.iter_symbols() if s["st_shndx"] != "SHN_UNDEF" and s.name]
    with open_elf(path) as elf:
        exports = Exports(elf)
        assert all(name in exports for name in random.Random(1).sample(names, 300))
        assert not any(name + "_not_there" in exports for name in names[:300])


def test_a_library_without_hash_table_defines_nothing(library: Path) -> None:
    data = library.read_bytes()
    elf = Elf(data, "x")
    table = elf.section(".gnu.hash")
    assert table is not None
    renamed = patched(data, elf.section_headers_at + table.index * 64, "<I", 0)
    assert "alpha" not in Exports(Elf(renamed, "x"))


def test_the_gnu_hash_is_the_one_of_the_specification() -> None:
    assert [gnu_hash(name) for name in ("", "printf", "exit")] == [0x1505, 0x156B2BB8, 0x7C967E3F]


def test_versions_sonames_and_stack_come_from_the_dynamic_section(library: Path) -> None:
    with open_elf(library) as elf:
        dynamic = read_dynamic(elf)
    assert dynamic.soname == "lib.so.1"
    assert dynamic.needed == ("libc.so.6",)
    assert "GLIBC_2.14" in dynamic.versions
    assert not dynamic.executable_stack


def test_object_files_and_text_are_told_apart(library: Path, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_text("INPUT(libx.so.1)")
    assert is_elf(library)
    assert not is_elf(tmp_path / "x.so")


@settings(max_examples=300, deadline=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_damaged_libraries_give_an_answer_or_an_audit_error(library: Path, flips: list[tuple[float, int]]) -> None:
    data = bytearray(library.read_bytes())
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    with suppress(AuditError):
        elf = Elf(bytes(data), "fuzzed.so")
        read_dynamic(elf)
        undefined_symbols(elf)
        assert isinstance("alpha" in Exports(elf), bool)


def mapped(data: bytes) -> mmap.mmap:
    """Return data as real files are read: unlike bytes, a map refuses numbers beyond 63 bits."""
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return memory


@pytest.mark.parametrize(
    "table", ["headers", "sections", ".dynamic", ".gnu.hash", ".gnu.version_r", ".dynsym", ".rela.dyn"]
)
@pytest.mark.parametrize("value", [0, 1, 0xFFFF, 0x7FFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 8, (1 << 64) - 1])
def test_extreme_numbers_in_any_field_give_an_answer_or_an_audit_error(library: Path, table: str, value: int) -> None:
    data = library.read_bytes()
    elf = Elf(data, "x")
    found = elf.section(table)
    ranges = {"headers": (0, 64 + 56 * len(elf.segments)), "sections": (elf.section_headers_at, 64 * len(elf.sections))}
    start, size = (found.offset, found.size) if found else ranges[table]
    for at in range(start, start + size, 8):
        with suppress(AuditError), mapped(patched(data, at, "<Q", value)) as memory:
            damaged = Elf(memory, "fuzzed.so")
            inspect(damaged, "fuzzed.so", own=[], site=None)
            device_code(damaged)
            assert isinstance("alpha" in Exports(damaged), bool)


def test_the_system_has_the_library_the_tests_compare_with() -> None:
    assert ctypes.util.find_library("c") == "libc.so.6"
