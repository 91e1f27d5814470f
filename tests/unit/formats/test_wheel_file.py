from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripts.audit.collect import audit_wheel
from scripts.core.errors import AuditError
from scripts.formats.wheel import open_wheel, read_record, wheel_name
from tests.fatbins import container, sass, shared_object
from tests.wheels import make_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    library = shared_object(folder / "x.so", {"a.cu": container(sass("80", "k"))}).read_bytes()
    return make_wheel(folder, {"vllm/_C.so": library, "vllm/a.py": b"pass\n" * 40})


def rewritten(path: Path, *extra: tuple[str, bytes], mode: str = "a") -> Path:
    copy = path.parent / "copies" / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        for name, data in extra:
            archive.writestr(name, data)
    return copy


@pytest.mark.parametrize("name", ["../evil.py", "/etc/passwd", "a/../../b", "a\\b"])
def test_names_that_leave_the_directory_are_refused(wheel: Path, name: str) -> None:
    with pytest.raises(AuditError) as caught, open_wheel(rewritten(wheel, (name, b""))):
        pass
    assert "a member is called" in caught.value.why


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(wheel: Path) -> None:
    with pytest.raises(AuditError) as caught, open_wheel(rewritten(wheel, ("vllm/a.py", b"other"))):
        pass
    assert "is in it twice" in caught.value.why


def test_two_dist_info_folders_are_refused(wheel: Path) -> None:
    with pytest.raises(AuditError) as caught, open_wheel(rewritten(wheel, ("other-1.dist-info/METADATA", b""))):
        pass
    assert "2 .dist-info directories" in caught.value.why


def test_a_member_compressed_in_an_unusual_way_is_refused(wheel: Path) -> None:
    copy = rewritten(wheel)
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr("big.bin", b"x" * 100, compress_type=zipfile.ZIP_LZMA)
    with pytest.raises(AuditError) as caught, open_wheel(copy):
        pass
    assert "compressed with method 14" in caught.value.why


def _with_size(path: Path, size: int) -> bytes:
    """Return the wheel with another unpacked size in the central directory for its first member."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = size.to_bytes(4, "little")
    return bytes(data)


def test_a_member_that_claims_an_impossible_ratio_is_refused(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / wheel.name).write_bytes(_with_size(wheel, 0xF0000000))
    with pytest.raises(AuditError) as caught, open_wheel(tmp_path / wheel.name):
        pass
    assert "claims to unpack" in caught.value.why


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_member_of_another_size_than_stated_is_an_error(wheel: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / wheel.name).write_bytes(_with_size(wheel, size))
    with open_wheel(tmp_path / wheel.name) as archive, pytest.raises(AuditError, match=r"unpack"):
        archive.digest(archive.members[0])


def test_the_number_of_members_is_limited(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.formats.wheel.MAX_MEMBERS", 3)
    with pytest.raises(AuditError) as caught, open_wheel(wheel):
        pass
    assert "5 members; the limit is 3" in caught.value.why


def test_large_metadata_is_not_read_into_memory(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.formats.wheel.MAX_TEXT", 10)
    with open_wheel(wheel) as archive, pytest.raises(AuditError, match=r"METADATA is \d+ bytes long"):
        archive.read(f"{archive.dist_info}/METADATA")


def test_a_disk_too_small_for_a_member_is_said_before_unpacking(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr("scripts.formats.wheel.shutil.disk_usage", lambda _: usage)
    with open_wheel(wheel) as archive, pytest.raises(AuditError) as caught, archive.unpacked(archive.members[0]):
        pass
    assert "TMPDIR" in caught.value.fix[0]


@pytest.mark.parametrize("name", ["METADATA", "RECORD"])
def test_missing_metadata_is_an_error(wheel: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(tmp_path / wheel.name, "w") as new:
        for member in old.infolist():
            if not member.filename.endswith(name):
                new.writestr(member, old.read(member))
    with pytest.raises(AuditError, match=f"{name} is missing"):
        audit_wheel(tmp_path / wheel.name, [])


@pytest.mark.parametrize("record", [b"\xff\xfe", b"a,b\n", b"a,b,c\n"])
def test_a_record_that_cannot_be_read_is_an_error(wheel: Path, tmp_path: Path, record: bytes) -> None:
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(tmp_path / wheel.name, "w") as new:
        for member in old.infolist():
            new.writestr(member, record if member.filename.endswith("RECORD") else old.read(member))
    with open_wheel(tmp_path / wheel.name) as archive, pytest.raises(AuditError, match="RECORD cannot be read"):
        read_record(archive)


@pytest.mark.parametrize("name", ["vllm.whl", "vllm-x-y-z-a.whl", "vllm-1.0.tar.gz"])
def test_file_names_that_are_no_wheels_are_refused(name: str) -> None:
    with pytest.raises(AuditError, match="is not the name of a wheel"):
        wheel_name(Path(name))


def test_a_build_number_is_kept_apart() -> None:
    name = wheel_name(Path("vllm-1.0-2-cp38-abi3-linux_x86_64.whl"))
    assert (name.build, name.tags, str(name)) == (
        "2",
        "cp38-abi3-linux_x86_64",
        "vllm-1.0-2-cp38-abi3-linux_x86_64.whl",
    )


@settings(max_examples=200, deadline=4000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=10), cut=st.floats(0, 1))
@example(flips=[(0.9992153849599146, 1)], cut=1.0)  # the table of contents moved: members begin before the file
def test_damaged_wheels_are_audited_or_refused(
    wheel: Path, tmp_path: Path, flips: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(wheel.read_bytes())
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    if cut < 0.3:
        del data[int(cut * 3 * len(data)) :]
    path = tmp_path / wheel.name
    path.write_bytes(data)
    with suppress(AuditError):
        audit_wheel(path, [])


def test_the_fixture_is_a_zip_that_python_reads(wheel: Path) -> None:
    assert zipfile.ZipFile(io.BytesIO(wheel.read_bytes())).testzip() is None
