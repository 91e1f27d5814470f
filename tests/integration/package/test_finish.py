"""Wheels that are finished: stripped with real binutils, with their units recorded, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts.audit.collect import audit_wheel, read_wheel
from scripts.core.errors import AuditError, PackageError
from scripts.cuda.archs import parse_arch_list
from scripts.cuda.drivers import parse_target
from scripts.formats.unit_names import device_facts
from scripts.formats.wheel import open_wheel, read_record
from scripts.package.finish import find_strip, finish_wheel, strip_file
from scripts.slim.wheel import slim_wheel
from tests.fatbins import container, ptx_entry, sass, shared_object
from tests.wheels import make_wheel

NAME = "vllm/_C.abi3.so"
ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("objects")
    code = {
        "cache.cu": container(sass("80", "c"), sass("90", "c")),
        "marlin.cu": container(sass("90", "m"), ptx_entry("80", "m")),
    }
    shared = shared_object(folder / "_C.abi3.so", code).read_bytes()
    return {"vllm/z.py": b"z\n", "vllm/a.sh": b"a\n", NAME: shared}


@pytest.fixture
def raw(members: dict[str, bytes], tmp_path: Path) -> Path:
    return make_wheel(tmp_path, members)


def finish(raw: Path, target: Path, epoch: int = 1_700_000_000) -> Path:
    return finish_wheel(raw, target, compiler=Path("g++"), epoch=epoch, environment=ENVIRONMENT)


def test_symbols_are_gone_and_their_units_are_recorded(raw: Path, tmp_path: Path) -> None:
    wheel = finish(raw, tmp_path / "out")
    with open_wheel(wheel) as archive:
        assert b"tmpxft" not in (archive.read(NAME) or b"")
        assert {name for name in read_record(archive) if "units" in name} == {"vllm-0.15.1.dist-info/units.json"}
    facts = device_facts(read_wheel(wheel).codes)[NAME]
    assert facts.units == ["cache.cu", "marlin.cu"]
    assert list(facts.bytes_per_arch) == ["sm_80", "sm_90", "compute_80"]
    assert all(facts.bytes_per_arch.values())
    assert device_facts(read_wheel(raw).codes)[NAME] == facts


def test_the_audit_of_a_finished_wheel_names_units_and_finds_nothing_wrong(raw: Path, tmp_path: Path) -> None:
    report = audit_wheel(finish(raw, tmp_path / "out"), [parse_target("A100@13.0")])
    assert [unit.unit for unit in report.targets[0].components[NAME].jit_units] == ["marlin.cu"]
    assert report.components[NAME].host.stripped
    assert not [item for item in report.findings if item.level.value == "error"]


def test_a_slim_wheel_keeps_the_names(raw: Path, tmp_path: Path) -> None:
    slim = slim_wheel(finish(raw, tmp_path / "out"), parse_arch_list("9.0"), tmp_path / "slim")
    facts = device_facts(read_wheel(slim).codes)[NAME]
    assert (facts.units, list(facts.bytes_per_arch)) == (["cache.cu", "marlin.cu"], ["sm_90"])


def test_a_stripped_object_still_works(raw: Path, tmp_path: Path) -> None:
    wheel = finish(raw, tmp_path / "out")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = f"import ctypes; print(ctypes.CDLL('{tmp_path / 'installed' / NAME}').host_answer())"
    assert subprocess.run(["python3", "-c", code], capture_output=True, check=True, text=True).stdout == "42\n"


def test_order_date_and_mode_are_decided_here(raw: Path, members: dict[str, bytes], tmp_path: Path) -> None:
    other = tmp_path / "other" / raw.name
    other.parent.mkdir()
    with zipfile.ZipFile(raw) as archive, zipfile.ZipFile(other, "w") as target:
        for info in reversed(archive.infolist()):
            changed = zipfile.ZipInfo(info.filename, (2011, 1, 1, 0, 0, 0))
            changed.external_attr = (0o100770 if info.external_attr >> 16 & 0o111 else 0o100600) << 16
            target.writestr(changed, archive.read(info))
        target.writestr("vllm-0.15.1.dist-info/units.json", b"an earlier one")
    first, second = finish(raw, tmp_path / "one"), finish(other, tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o100644, 0o100755}
    assert names[:3] == sorted(members)
    assert names[-1] == "vllm-0.15.1.dist-info/RECORD"
    assert finish(raw, tmp_path / "three", epoch=1_600_000_000).read_bytes() != first.read_bytes()


def test_a_strip_that_fails_is_said_and_leaves_no_wheel(members: dict[str, bytes], tmp_path: Path) -> None:
    raw = make_wheel(tmp_path, {NAME: members[NAME][:4000]})
    with pytest.raises((PackageError, AuditError)):
        finish(raw, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.whl"))
    (tmp_path / "x.so").write_bytes(b"no ELF")
    with pytest.raises(PackageError, match=r"strip failed for x\.so"):
        strip_file("strip", tmp_path / "x.so", tmp_path / "y.so", ENVIRONMENT)


def test_strip_is_the_compilers_own(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho /opt/cross/strip\n")
    compiler.chmod(0o755)
    assert find_strip(compiler, ENVIRONMENT) == "/opt/cross/strip"
    assert find_strip(tmp_path / "absent", ENVIRONMENT) == "strip"


@pytest.mark.parametrize(
    "data", [b"{", b'{"units": 3}', b'{"units": {"x": [1]}}', b'{"schema_version": 2, "units": {}}']
)
def test_damaged_names_are_an_error_of_the_wheel(data: bytes, members: dict[str, bytes], tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {**members, "vllm-0.15.1.dist-info/units.json": data})
    with pytest.raises(AuditError, match=r"units\.json cannot be read"):
        device_facts(read_wheel(wheel).codes)


def test_names_of_another_number_of_containers_are_not_used(members: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    stripped = tmp_path / "s.so"
    (tmp_path / "c.so").write_bytes(members[NAME])
    strip_file("strip", tmp_path / "c.so", stripped, ENVIRONMENT)
    units = b'{"units": {"vllm/_C.abi3.so": ["only-one.cu"]}}'
    wheel = make_wheel(tmp_path, {NAME: stripped.read_bytes(), "vllm-0.15.1.dist-info/units.json": units})
    assert device_facts(read_wheel(wheel).codes)[NAME].units == ["", "kernel m"]  # as its PTX names it
