from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core.errors import AuditError
from scripts.formats.elf import Elf, open_elf
from scripts.formats.fatbin import device_code, read_device_code
from scripts.formats.fatbin_types import Compression, Kind
from scripts.formats.payload import kernel_names
from tests.fatbins import container, cubin, entry, patched, ptx, ptx_entry, sass, shared_object

UNITS = {
    "attention.cu": container(sass("80", "k1", "k2"), sass("90a", "k1", "k2", "k3"), ptx_entry("80", "k1", "k2")),
    "marlin.cu": container(sass("80", "marlin"), ptx_entry("90", "marlin", isa=(9, 0))),
    "host_only.cu": container(sass("75"), ptx_entry("75")),
    "family.cu": container(
        sass("100f", "f"),
        entry(Kind.LTO_IR, "120", b"lto"),
        entry(Kind.PTX, "120", b"z" * 40, version=(8, 8), compression=Compression.LZ4, size=900, header_size=96),
    ),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_object(tmp_path_factory.mktemp("so") / "libunits.so", UNITS)


def parse(data: bytes) -> int:
    code = device_code(Elf(data, "fuzzed.so"))
    return sum(1 for _ in code.entries)


def test_every_container_is_listed_with_its_source_file_and_wrapper(library: Path) -> None:
    code = read_device_code(library)
    assert [c.unit for c in code.containers] == list(UNITS)
    assert [c.wrapper for c in code.containers] == [1, 1, 1, 1]
    assert [c.size + 16 for c in code.containers] == [len(data) for data in UNITS.values()]
    assert {c.section for c in code.containers} == {".nv_fatbin"}


def test_entries_tell_kind_arch_suffix_and_ptx_version(library: Path) -> None:
    first, second, _, family = read_device_code(library).containers
    assert [e.target for e in first.entries] == ["sm_80", "sm_90a", "compute_80"]
    assert second.entries[1].version == (9, 0)
    assert second.entries[1].cc == (9, 0)
    assert [e.target for e in family.entries] == ["sm_100f", "lto_120", "compute_120"]
    assert family.entries[0].cc == (10, 0)
    assert family.archs(Kind.ELF) == ["100f"]


def test_sizes_and_compression_come_from_the_header_without_decompressing(library: Path) -> None:
    compressed = read_device_code(library).containers[3].entries[2]
    assert (compressed.compression, compressed.stored_size, compressed.size) == (Compression.LZ4, 40, 900)
    assert (compressed.header_size, compressed.payload_size, compressed.kernels) == (96, 40, None)


def test_kernels_are_counted_and_a_unit_without_kernels_is_known_to_be_empty(library: Path) -> None:
    code = read_device_code(library)
    assert [c.kernels for c in code.containers] == [3, 1, 0, 1]
    assert [c.empty for c in code.containers] == [False, False, True, False]


def test_counts_per_arch_are_in_ascending_order(library: Path) -> None:
    code = read_device_code(library)
    assert list(code.count(Kind.ELF).items()) == [("75", 1), ("80", 2), ("90a", 1), ("100f", 1)]
    assert code.count(Kind.PTX) == {"75": 1, "80": 1, "90": 1, "120": 1}


def test_kernel_names_are_read_from_stored_cubins_and_refused_for_others(library: Path) -> None:
    with open_elf(library) as elf:
        entries = device_code(elf).containers[0].entries
        assert kernel_names(elf, entries[1]) == ["k1", "k2", "k3"]
        with pytest.raises(AuditError, match=r"compute_80 at .* cannot be listed"):
            kernel_names(elf, entries[2])


def test_pointers_that_only_a_relocation_knows_are_followed(library: Path) -> None:
    data = library.read_bytes()
    expected = device_code(Elf(data, "x")).containers
    for wrapper in device_code(Elf(data, "x")).wrappers:
        data = patched(data, wrapper.offset + 8, "<Q", 0)
    assert device_code(Elf(data, "x")).containers == expected


def test_units_are_nameless_when_the_symbols_are_stripped(tmp_path: Path) -> None:
    path = shared_object(tmp_path / "stripped.so", UNITS, link=["-s"])
    assert {c.unit for c in read_device_code(path).containers} == {""}
    assert len(read_device_code(path).containers) == 4


def test_a_library_without_gpu_code_has_no_containers(tmp_path: Path) -> None:
    assert read_device_code(shared_object(tmp_path / "plain.so", {})).containers == ()


def test_an_entry_of_an_unknown_kind_is_listed_as_other(tmp_path: Path) -> None:
    path = shared_object(tmp_path / "other.so", {"a.cu": container(entry(77, "90", b"x" * 8))})
    assert [e.target for e in read_device_code(path).entries] == ["other_90"]


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("starts with 0x", b"\x01" * 64),
        ("has version 2", patched(container(), 4, "<H", 2)),
        ("header of 24 bytes", patched(container(), 6, "<H", 24)),
        ("reaches beyond the end", patched(container(), 8, "<Q", 1 << 60)),
        ("is cut off by the end of .nv_fatbin", container() + b"\x50"),
        ("is cut off by the end of its container", patched(container() + b"\0" * 32, 8, "<Q", 32)),
        ("version 0x0102", patched(container(sass("80")), 18, "<H", 0x102)),
        ("its container does not hold", patched(container(sass("80")), 20, "<I", 8)),
        ("its container does not hold", patched(container(sass("80")), 24, "<Q", 1 << 63)),
        ("compressed bytes", patched(container(sass("80")), 32, "<I", 1 << 30)),
        ("arch 0", patched(container(sass("80")), 16 + 0x1C, "<I", 0)),
        ("is not a cubin", container(entry(Kind.ELF, "80", b"MZ" * 40))),
        ("no readable section table", container(entry(Kind.ELF, "80", patched(cubin("k"), 58, "<H", 40)))),
        ("sections, which it does not hold", container(entry(Kind.ELF, "80", patched(cubin("k"), 60, "<H", 60000)))),
    ],
)
def test_damaged_containers_are_refused_with_what_is_wrong(tmp_path: Path, what: str, data: bytes) -> None:
    path = shared_object(tmp_path / "bad.so", {"a.cu": data})
    with pytest.raises(AuditError) as caught:
        read_device_code(path)
    assert what in caught.value.why
    assert "bad.so" in caught.value.what


def test_wrappers_with_another_magic_are_refused(library: Path) -> None:
    data = library.read_bytes()
    wrapper = device_code(Elf(data, "x")).wrappers[2]
    with pytest.raises(AuditError) as caught:
        parse(patched(data, wrapper.offset, "<I", 0x12345678))
    assert "wrapper 2 in .nvFatBinSegment starts with 0x12345678" in caught.value.why


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("cannot mmap an empty file", b""),
        ("lies beyond the end", b"\x7fELF"),
        ("does not start with the ELF magic", b"PK\x03\x04" * 40),
        ("not a 64-bit little-endian", b"\x7fELF\x01\x01" + b"\0" * 80),
    ],
)
def test_files_that_are_not_elf_are_refused(tmp_path: Path, why: str, content: bytes) -> None:
    path = tmp_path / "libodd.so"
    path.write_bytes(content)
    with pytest.raises(AuditError) as caught:
        read_device_code(path)
    assert why in caught.value.why


def test_a_missing_file_is_an_audit_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be read"):
        read_device_code(tmp_path / "none.so")


@pytest.mark.parametrize(
    ("offset", "layout", "value", "why"),
    [
        (54, "<H", 9, "program headers of 9 bytes"),
        (56, "<H", 60000, "60000 program headers"),
        (58, "<H", 9, "section headers of 9 bytes"),
        (60, "<H", 0xFFF0, "the section header table"),
        (62, "<H", 500, "number 500"),
        (40, "<Q", 1 << 62, "the first section header"),
        (32, "<Q", 1 << 62, "the program header table"),
    ],
)
def test_hostile_elf_headers_are_refused(library: Path, offset: int, layout: str, value: int, why: str) -> None:
    with pytest.raises(AuditError) as caught:
        parse(patched(library.read_bytes(), offset, layout, value))
    assert why in caught.value.why


def test_a_file_with_more_sections_than_the_limit_is_refused_at_once(library: Path) -> None:
    data = library.read_bytes()
    table = int.from_bytes(data[40:48], "little")
    with pytest.raises(AuditError) as caught:
        parse(patched(patched(data, 60, "<H", 0), table + 32, "<Q", 1 << 40))
    assert "1,099,511,627,776 sections" in caught.value.why


def test_without_section_headers_the_containers_are_found_in_the_segments(library: Path) -> None:
    with_headers = parse(library.read_bytes())
    assert parse(patched(library.read_bytes(), 40, "<Q", 0)) == with_headers > 0


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12), cut=st.floats(0, 1))
def test_flipped_and_truncated_files_give_a_result_or_an_audit_error(
    library: Path, flips: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(library.read_bytes())
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    if cut < 0.5:
        del data[int(cut * 2 * len(data)) :]
    with suppress(AuditError):  # anything else, a hang included, fails the test
        parse(bytes(data))


@settings(max_examples=300, deadline=2000)
@given(tail=st.binary(max_size=400), archs=st.lists(st.sampled_from(["80", "90a", "120f"]), max_size=4))
def test_arbitrary_bytes_in_the_gpu_section_never_crash_the_reader(tail: bytes, archs: list[str]) -> None:
    data = container(*(sass(arch, "k") for arch in archs)) + tail
    names = b"\0.nv_fatbin\0.shstrtab\0"
    elf = _minimal_elf(data, names)
    with suppress(AuditError):
        assert parse(elf) >= len(archs)


def _minimal_elf(data: bytes, names: bytes) -> bytes:
    from scripts.formats.elf import EHDR, SHDR

    at = EHDR.size + len(data) + len(names)
    header = EHDR.pack(b"\x7fELF\x02\x01\x01" + b"\0" * 9, 3, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, 3, 2)
    rows = [
        SHDR.pack(*(0,) * 10),
        SHDR.pack(1, 1, 2, 0x1000, EHDR.size, len(data), 0, 0, 8, 0),
        SHDR.pack(12, 3, 0, 0, EHDR.size + len(data), len(names), 0, 0, 1, 0),
    ]
    return header + data + names + b"".join(rows)


def test_a_megabyte_of_zeros_between_containers_is_skipped_quickly() -> None:
    data = _minimal_elf(container(sass("80")) + b"\0" * (1 << 20) + container(ptx_entry("80")), b"\0.nv_fatbin\0.s\0")
    assert parse(data) == 2


def test_a_flood_of_empty_containers_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.formats.fatbin.MAX_CONTAINERS", 50)
    with pytest.raises(AuditError) as caught:
        parse(_minimal_elf(container() * 60, b"\0.nv_fatbin\0.s\0"))
    assert "more than 50 containers" in caught.value.why


def test_a_flood_of_entries_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.formats.fatbin.MAX_ENTRIES", 50)
    flood = container(*(entry(Kind.PTX, "80", b"") for _ in range(60)))
    with pytest.raises(AuditError) as caught:
        parse(_minimal_elf(flood, b"\0.nv_fatbin\0.s\0"))
    assert "more than 50 entries" in caught.value.why


def test_an_mmap_reads_like_bytes(library: Path) -> None:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert device_code(Elf(data, "x")) == device_code(Elf(library.read_bytes(), "x"))


def test_ptx_text_of_the_fixture_says_the_version_of_its_header() -> None:
    assert ptx("80", isa=(8, 8)).startswith(b".version 8.8\n")
