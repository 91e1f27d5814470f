from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.audit.coverage import choose
from scripts.core.errors import AuditError
from scripts.formats.elf import PHDR, PT_LOAD, RELA, SHDR, Elf, open_elf
from scripts.formats.fatbin import device_code, read_device_code
from scripts.formats.fatbin_types import Kind
from scripts.slim.rewrite import relr_addresses, slim_shared_object
from tests.fatbins import container, entry, patched, ptx_entry, sass, shared_object

CODE = bytes(range(256)) * 100
UNITS = {
    "one.cu": container(sass("80", "a", code=CODE), sass("90", "a", code=CODE[::-1]), ptx_entry("80", "a")),
    "two.cu": container(sass("75", "b", code=CODE), ptx_entry("75", "b")),
    "three.cu": container(sass("90a", "c", code=CODE)),
    "four.cu": container(sass("80", "d", code=CODE * 3), sass("120", "d", code=CODE)),
}
LINKS = {
    "plain": [],
    "property": ["-Wl,-z,ibt,-z,shstk"],  # makes a PT_GNU_PROPERTY, which Ubuntu's gcc always writes
    "stripped": ["-s"],
    "one-segment": ["-Wl,-z,noseparate-code"],
    "relr": ["-Wl,-z,pack-relative-relocs"],
    "big-pages": ["-Wl,-z,max-page-size=0x10000"],
    "now": ["-Wl,-z,relro,-z,now"],
}
LOADED = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
assert library.host_answer() == 42
for index in range(int(sys.argv[2])):
    wrapper = getattr(library, f"wrapper_{index}")
    wrapper.restype = ctypes.c_void_p
    pointer = ctypes.c_uint64.from_address(wrapper() + 8).value
    size = ctypes.c_uint64.from_address(pointer + 8).value
    print((ctypes.c_char * (size + 16)).from_address(pointer).raw.hex())
"""


def loaded(path: Path, count: int = 4) -> list[str]:
    """Load a library in a fresh process and return the containers its wrappers point at, after relocation."""
    command = [sys.executable, "-c", LOADED, str(path), str(count)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def expected(units: dict[str, bytes], arch: tuple[int, int], tmp_path: Path) -> list[str]:
    """Build the containers anew with only what the driver would choose."""
    path = shared_object(tmp_path / "expected.so", units)
    data = path.read_bytes()
    containers = []
    for item in device_code(Elf(data, "x")).containers:
        best = choose(item, arch).entry
        containers.append(container(*([data[best.offset : best.end]] if best else [])).hex())
    return containers


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("arch", [(8, 0), (9, 0), (12, 0), (7, 5)])
def test_a_slim_library_loads_and_its_wrappers_lead_to_exactly_the_chosen_code(
    tmp_path: Path, link: str, arch: tuple[int, int]
) -> None:
    source = shared_object(tmp_path / "fat.so", UNITS, link=LINKS[link])
    slim = tmp_path / "slim.so"
    result = slim_shared_object(source, slim, [arch])
    assert result.after == slim.stat().st_size < result.before == source.stat().st_size
    assert loaded(slim) == expected(UNITS, arch, tmp_path)


@pytest.mark.parametrize("link", LINKS)
def test_readelf_finds_nothing_to_complain_about(tmp_path: Path, link: str) -> None:
    slim = tmp_path / "slim.so"
    slim_shared_object(shared_object(tmp_path / "fat.so", UNITS, link=LINKS[link]), slim, [(9, 0)])
    done = subprocess.run(["readelf", "-aW", str(slim)], check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_symbols_keep_telling_the_units_and_the_sizes(tmp_path: Path) -> None:
    slim = tmp_path / "slim.so"
    slim_shared_object(shared_object(tmp_path / "fat.so", UNITS), slim, [(9, 0)])
    assert [item.unit for item in read_device_code(slim).containers] == list(UNITS)
    symbols = subprocess.run(["readelf", "-sW", str(slim)], check=True, capture_output=True, text=True).stdout
    sizes = [int(line.split()[2], 0) for line in symbols.splitlines() if line.endswith("fatbinData")]
    assert sizes == [item.size + 16 for item in read_device_code(slim).containers]


def test_several_archs_keep_what_any_of_them_would_take(tmp_path: Path) -> None:
    slim = tmp_path / "slim.so"
    slim_shared_object(shared_object(tmp_path / "fat.so", UNITS), slim, [(8, 6), (12, 0)])
    assert [[e.target for e in c.entries] for c in read_device_code(slim).containers] == [
        ["sm_80", "compute_80"],
        ["compute_75"],
        [],
        ["sm_80", "sm_120"],
    ]


def test_a_library_with_nothing_for_the_archs_keeps_header_only_containers(tmp_path: Path) -> None:
    units = {"three.cu": UNITS["three.cu"]}
    slim = tmp_path / "slim.so"
    result = slim_shared_object(shared_object(tmp_path / "fat.so", units), slim, [(8, 0)])
    assert result.empty
    assert loaded(slim, 1) == [container().hex()]


def test_when_no_page_falls_free_the_layout_stays(tmp_path: Path) -> None:
    units = {"small.cu": container(sass("80", "k"), sass("90", "k"))}
    source = shared_object(tmp_path / "fat.so", units)
    result = slim_shared_object(source, tmp_path / "slim.so", [(9, 0)])
    assert result.after == result.before
    assert loaded(tmp_path / "slim.so", 1) == [container(sass("90", "k")).hex()]


def test_slimming_twice_gives_the_same_bytes_and_a_slim_library_is_left_as_it_is(tmp_path: Path) -> None:
    source = shared_object(tmp_path / "fat.so", UNITS)
    for name in ("a", "b"):
        slim_shared_object(source, tmp_path / name, [(9, 0)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = slim_shared_object(tmp_path / "a", tmp_path / "c", [(9, 0)])
    assert again.entries_before == again.entries_after
    assert loaded(tmp_path / "c") == loaded(tmp_path / "a")


def test_a_library_without_gpu_code_is_copied(tmp_path: Path) -> None:
    source = shared_object(tmp_path / "host.so", {})
    slim_shared_object(source, tmp_path / "slim.so", [(9, 0)])
    assert (tmp_path / "slim.so").read_bytes() == source.read_bytes()


def test_device_linked_code_is_kept_whole(tmp_path: Path) -> None:
    source = shared_object(tmp_path / "rdc.so", UNITS, wrapper_version=2)
    result = slim_shared_object(source, tmp_path / "slim.so", [(9, 0)])
    assert result.entries_after == result.entries_before
    assert (tmp_path / "slim.so").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("link", ["plain", "property"])
def test_patchelf_still_works_on_a_slim_library(tmp_path: Path, link: str) -> None:
    slim = tmp_path / "slim.so"
    slim_shared_object(shared_object(tmp_path / "fat.so", UNITS, link=LINKS[link]), slim, [(9, 0)])
    before = loaded(slim)
    patchelf = shutil.which("patchelf", path=str(Path(sys.executable).parent)) or "patchelf"
    subprocess.run([patchelf, "--set-rpath", "$ORIGIN/" + "x" * 500, str(slim)], check=True)
    assert loaded(slim) == before


def test_strip_still_works_when_the_new_header_took_the_slot_of_the_property(tmp_path: Path) -> None:
    slim = tmp_path / "slim.so"
    slim_shared_object(shared_object(tmp_path / "fat.so", UNITS, link=LINKS["property"]), slim, [(9, 0)])
    before = loaded(slim)
    subprocess.run(["strip", str(slim)], check=True)
    assert loaded(slim) == before


def section(data: bytes, name: str) -> int:
    """Return the file offset of a section's header."""
    elf = Elf(data, "x")
    found = elf.section(name)
    assert found is not None
    return elf.section_headers_at + found.index * SHDR.size


def relocation(data: bytes, *, towards: int) -> int:
    """Return the file offset of the relocation whose addend is `towards`."""
    elf = Elf(data, "x")
    table = elf.section(".rela.dyn")
    assert table is not None
    rows = list(elf.rows(table, RELA))
    addends = [row[2] for row in rows]
    index: int = addends.index(towards)
    return table.offset + index * RELA.size


def _middle(data: bytes) -> bytes:
    address = device_code(Elf(data, "x")).containers[1].address
    return patched(data, relocation(data, towards=address) + 16, "<Q", address + 8)


def _no_relocation(data: bytes) -> bytes:
    address = device_code(Elf(data, "x")).containers[1].address
    return patched(data, relocation(data, towards=address) + 8, "<Q", 0)


def _symbol(data: bytes) -> bytes:
    elf = Elf(data, "x")
    table, code = elf.section(".symtab"), elf.section(".nv_fatbin")
    assert table is not None
    assert code is not None
    rows = [struct.unpack_from("<IBBHQQ", data, table.offset + at) for at in range(0, table.size, 24)]
    index = next(i for i, row in enumerate(rows) if row[3] == code.index and row[5])
    return patched(data, table.offset + index * 24 + 8, "<Q", code.address + 24)


def _segment(layout: str, field: int, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        elf = Elf(data, "x")
        code = elf.section(".nv_fatbin")
        assert code is not None
        index = next(
            i
            for i, s in enumerate(elf.segments)
            if s.type == PT_LOAD and s.offset <= code.offset < s.offset + s.file_size
        )
        return patched(data, elf.program_headers_at + index * PHDR.size + field, layout, value)

    return change


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("middle of a container", _middle),
        ("without a relocation", _no_relocation),
        ("symbol points into the middle", _symbol),
        ("not an x86-64 shared object", lambda data: patched(data, 18, "<H", 183)),
        ("not an x86-64 shared object", lambda data: patched(data, 16, "<H", 1)),
        ("relocations of a kind", lambda data: patched(data, section(data, ".comment") + 4, "<I", 9)),
        ("relocations of a kind", lambda data: patched(data, section(data, ".comment") + 4, "<I", 4)),
        ("overlaps .nv_fatbin", lambda data: patched(data, section(data, ".comment") + 24, "<Q", section_start(data))),
        ("not inside one segment", _segment("<Q", 40, 1 << 20)),
        ("not inside one segment", _segment("<I", 0, 4)),
        ("its segment is aligned", _segment("<Q", 48, 0x3000)),
    ],
)
def test_what_is_not_understood_is_refused_and_nothing_is_written(
    tmp_path: Path, why: str, change: Callable[[bytes], bytes]
) -> None:
    path = shared_object(tmp_path / "odd.so", UNITS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AuditError) as caught:
        slim_shared_object(path, tmp_path / "slim.so", [(9, 0)])
    assert why in caught.value.why
    assert not (tmp_path / "slim.so").exists()


def section_start(data: bytes) -> int:
    found = Elf(data, "x").section(".nv_fatbin")
    assert found is not None
    return found.offset + 8


def test_entries_of_unknown_kinds_are_refused(tmp_path: Path) -> None:
    path = shared_object(tmp_path / "odd.so", {"a.cu": container(sass("80", "k"), entry(16, "80", b"?" * 8))})
    with pytest.raises(AuditError) as caught:
        slim_shared_object(path, tmp_path / "slim.so", [(9, 0)])
    assert "entry of unknown kind" in caught.value.why


def test_relr_bitmaps_decode_to_the_addresses_they_stand_for() -> None:
    assert list(relr_addresses(iter([0x1000, 0b1011, 0x2000]))) == [0x1000, 0x1008, 0x1018, 0x2000]
    assert list(relr_addresses(iter([0x1000, 1, 0b11]))) == [0x1000, 0x1008 + 63 * 8]


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return shared_object(tmp_path_factory.mktemp("fat") / "fat.so", UNITS).read_bytes()


@settings(max_examples=200, deadline=4000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    reach=st.sampled_from([4096, 1 << 30]),
)
def test_flipped_files_are_slimmed_soundly_or_refused(
    fat: bytes, tmp_path: Path, flips: list[tuple[float, int]], reach: int
) -> None:
    data = bytearray(fat)
    for where, value in flips:
        data[int(where * min(reach, len(data) - 1))] = value
    (tmp_path / "x.so").write_bytes(data)
    (tmp_path / "slim.so").unlink(missing_ok=True)
    with suppress(AuditError):
        result = slim_shared_object(tmp_path / "x.so", tmp_path / "slim.so", [(9, 0)])
        assert result.after <= result.before
        read_device_code(tmp_path / "slim.so")


def test_kept_entries_of_a_real_layout_are_those_of_the_kind_chosen(tmp_path: Path) -> None:
    slim_shared_object(shared_object(tmp_path / "fat.so", UNITS), tmp_path / "slim.so", [(7, 5)])
    with open_elf(tmp_path / "slim.so") as elf:
        assert [e.kind for e in device_code(elf).entries] == [Kind.ELF]
