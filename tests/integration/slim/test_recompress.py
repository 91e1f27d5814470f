"""GPU code compressed anew: the same code, in fewer bytes, for drivers that read it."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.audit.coverage import Library
from scripts.audit.targets import judge
from scripts.commands import slim as command
from scripts.core.console import Console
from scripts.cuda.drivers import parse_target
from scripts.formats.elf import Elf, open_elf
from scripts.formats.fatbin import device_code, read_device_code
from scripts.formats.fatbin_types import Compression, Flag, Kind
from scripts.formats.payload import unpacked
from scripts.slim.rewrite import slim_shared_object
from tests.fatbins import container, cubin, entry, ptx, ptx_entry, sass, shared_object
from tests.integration.slim.test_slim_elf import CODE, LINKS, UNITS, loaded
from tests.wheels import make_wheel


def packed(kind: Kind, arch: str, data: bytes, how: Compression, *, flags: int = 0x11) -> bytes:
    """Return an entry that stores `data` in one of the ways."""
    stored = data if how is Compression.NONE else zstandard.compress(data, 3)
    if how is Compression.LZ4:
        stored = bytes(lz4.block.compress(data, store_size=False))
    size = 0 if how is Compression.NONE else len(data)
    return entry(kind, arch, stored, compression=how, size=size, flags=flags)


def payloads(path: Path) -> list[tuple[Kind, str, int, bytes]]:
    """Return kind, arch, what its flags say beside the compression, and the code of each entry."""
    other = ~(Flag.LZ4 | Flag.ZSTD | Flag.OLD_LZ)
    with open_elf(path) as elf:
        return [
            (item.kind, item.label, item.flags & other, (unpacked(elf, item) or b"?").rstrip(b"\0"))
            for item in device_code(elf).entries
        ]


@pytest.mark.parametrize("link", LINKS)
def test_the_code_is_the_same_in_fewer_bytes_and_wrappers_lead_to_it(tmp_path: Path, link: str) -> None:
    source = shared_object(tmp_path / "fat.so", UNITS, link=LINKS[link])
    plain, small = tmp_path / "plain.so", tmp_path / "small.so"
    slim_shared_object(source, plain, [(9, 0), (12, 0)])
    result = slim_shared_object(source, small, [(9, 0), (12, 0)], recompress=True)
    assert payloads(small) == payloads(plain)
    assert result.recompressed == sum(item.compression is Compression.ZSTD for item in read_device_code(small).entries)
    assert result.recompressed == 3
    assert small.stat().st_size < plain.stat().st_size
    code = read_device_code(small)
    assert [len(text) // 2 for text in loaded(small)] == [item.size + 16 for item in code.containers]
    assert subprocess.run(["readelf", "-aW", str(small)], check=True, capture_output=True, text=True).stderr == ""


def test_what_would_not_get_smaller_or_must_show_what_it_is_stays_as_it_is(tmp_path: Path) -> None:
    entries = {
        "tiny": packed(Kind.ELF, "90", b"no ELF", Compression.LZ4),
        "zstd": packed(Kind.ELF, "90", cubin("k", code=CODE), Compression.ZSTD),
        "debug": packed(Kind.ELF, "90", cubin("k", code=CODE), Compression.NONE, flags=0x11 | Flag.DEBUG),
        "empty": sass("90", code=CODE),  # that no kernel is inside could not be seen any more
    }
    for name, data in entries.items():
        source = shared_object(tmp_path / f"{name}.so", {"a.cu": container(data)})
        result = slim_shared_object(source, tmp_path / "x.so", [(9, 0)], recompress=True)
        assert result.recompressed == 0, name
        assert loaded(tmp_path / "x.so", 1) == [container(data).hex()], name


def test_an_entry_that_does_not_hold_what_its_header_says_stays(tmp_path: Path) -> None:
    good = packed(Kind.ELF, "90", cubin("k", code=CODE), Compression.LZ4)
    broken = entry(Kind.ELF, "90", b"\xff" * 400, compression=Compression.LZ4, size=9000)
    source = shared_object(tmp_path / "fat.so", {"a.cu": container(good), "b.cu": container(broken)})
    result = slim_shared_object(source, tmp_path / "x.so", [(9, 0)], recompress=True)
    assert result.recompressed == 1
    assert loaded(tmp_path / "x.so", 2)[1] == container(broken).hex()


_ENTRIES = st.tuples(
    st.sampled_from([Kind.ELF, Kind.PTX]),
    st.sampled_from(["80", "90", "90a", "120"]),
    st.sampled_from([Compression.NONE, Compression.LZ4, Compression.ZSTD]),
    st.binary(max_size=300),
    st.integers(1, 60),
)


@settings(max_examples=40, deadline=None)
@given(units=st.lists(st.lists(_ENTRIES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_any_code_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, units: list[list[tuple[Kind, str, Compression, bytes, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = {
        f"{number}.cu": container(
            *(
                packed(
                    kind,
                    arch,
                    cubin("k", code=text * times + b"\x90" * 8)
                    if kind is Kind.ELF
                    else ptx(arch, "k", body=f"// {text.hex() * times}"),
                    how,
                )
                for kind, arch, how, text, times in entries
            )
        )
        for number, entries in enumerate(units)
    }
    source = shared_object(folder / "fat.so", made)
    slim_shared_object(source, folder / "plain.so", [(9, 0)])
    slim_shared_object(source, folder / "small.so", [(9, 0)], recompress=True)
    assert payloads(folder / "small.so") == payloads(folder / "plain.so")
    assert (folder / "small.so").stat().st_size <= (folder / "plain.so").stat().st_size


def test_the_audit_knows_which_drivers_read_it(tmp_path: Path) -> None:
    data = shared_object(tmp_path / "a.so", {"a.cu": container(sass("90", "k", code=CODE))}).read_bytes()
    (tmp_path / "fat.so").write_bytes(data)
    slim_shared_object(tmp_path / "fat.so", tmp_path / "x.so", [(9, 0)], recompress=True)
    library = Library("vllm/_C.abi3.so", device_code(Elf((tmp_path / "x.so").read_bytes(), "x")), 12)
    old, new = judge(parse_target("H100@12.3"), [library]), judge(parse_target("H100@12.4"), [library])
    assert old.reasons == [
        "it needs at least a CUDA 12.4 driver (550.54.14): older ones do not read its code, which is stored as zstd"
    ]
    assert new.ok
    assert (new.lowest_driver, new.lowest_driver_without_jit) == ("550.54.14", "550.54.14")
    plain = Library("vllm/_C.abi3.so", device_code(Elf(data, "x")), 12)
    assert judge(parse_target("H100@12.3"), [plain]).ok


def test_the_command_makes_a_wheel_of_its_own_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = {"a.cu": container(sass("90", "k", code=CODE), ptx_entry("90", "k", isa=(8, 8)))}
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": shared_object(tmp_path / "c.so", units).read_bytes()})
    report = tmp_path / "r.json"
    arguments = [str(wheel), "--arch", "9.0", "--recompress", "--out", str(tmp_path / "out"), "--json", str(report)]
    assert command.main(arguments, Console()) == 0
    out, err = capsys.readouterr()
    assert "vllm-0.15.1+cu129.sm90.zstd-" in out
    assert "1 of 2 entries stay, 1 compressed anew" in err
    assert json.loads(report.read_text())["components"]["vllm/_C.abi3.so"]["recompressed"] == 1


def test_a_wheel_for_these_archs_alone_may_be_compressed_anew(tmp_path: Path) -> None:
    units = {"a.cu": container(sass("90", "k", code=CODE))}
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": shared_object(tmp_path / "c.so", units).read_bytes()})
    arguments = [str(wheel), "--arch", "9.0", "--recompress", "--out", str(tmp_path / "out")]
    assert command.main(arguments, Console()) == 0
    [made] = (tmp_path / "out").glob("*.whl")
    assert ".zstd-" in made.name
    with zipfile.ZipFile(made) as new, zipfile.ZipFile(wheel) as old:
        assert new.getinfo("vllm/_C.abi3.so").file_size < old.getinfo("vllm/_C.abi3.so").file_size
