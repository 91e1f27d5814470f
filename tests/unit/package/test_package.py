"""The checks of a packaged wheel, on small real wheels with one fault each."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from scripts.core.errors import PackageError
from scripts.package.build import check_wheel, component_sizes, metadata_problems, record_problems
from scripts.recipe.model import Component, Recipe
from tests.support import make_recipe
from tests.wheels import digest, make_wheel

VERSION = "0.20.1+cu130"
GOOD = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: torch==2.11.0\n"
OBJECTS = {"vllm/_moe_C.abi3.so": b"moe", "vllm/cumem_allocator.abi3.so": b"cumem", "vllm/__init__.py": b""}


def build(
    folder: Path,
    *,
    members: Mapping[str, bytes] = OBJECTS,
    metadata: str = GOOD,
    version: str = VERSION,
    record: Mapping[str, str] | None = None,
    tags: str = "cp38-abi3-manylinux_2_31_x86_64",
) -> Path:
    return make_wheel(folder, members, version=version, metadata=metadata, record=record, tags=tags)


def recipe() -> Recipe:
    return make_recipe()


def test_a_right_wheel_is_described_by_its_digest_size_platform_and_components(tmp_path: Path) -> None:
    path = build(tmp_path)
    wheel = check_wheel(path, recipe(), VERSION)
    assert wheel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (wheel.size, wheel.version) == (path.stat().st_size, VERSION)
    assert wheel.components == {"cumem_allocator": 5, "_moe_C": 3}


def test_the_platform_is_the_manylinux_tag_when_there_are_several(tmp_path: Path) -> None:
    path = build(tmp_path, tags="cp38-abi3-linux_x86_64.manylinux_2_34_x86_64")
    assert check_wheel(path, recipe(), VERSION).platform == "manylinux_2_34_x86_64"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("absent", "RECORD lacks vllm/__init__.py"),
        ("sha256=AAAA,0", "RECORD has a wrong digest for vllm/__init__.py"),
        (f"{digest(b'')},7", "RECORD has a wrong size for vllm/__init__.py: 7, not 0"),
        (f"{digest(b'')},", "RECORD has a wrong size for vllm/__init__.py: none, not 0"),
        (digest(b""), "RECORD has a line of 2 fields, not 3: vllm/__init__.py"),
        (f"{digest(b'')},0\nvllm/__init__.py,{digest(b'')},0", "RECORD lists vllm/__init__.py twice"),
        (f"{digest(b'')},0\nvllm/gone.py,,", "RECORD lists vllm/gone.py, which is not in the wheel"),
    ],
)
def test_each_fault_of_record_is_named(row: str, problem: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path, record={"vllm/__init__.py": row})) as archive:
        assert problem in record_problems(archive)


def test_blank_lines_of_record_and_folders_of_the_archive_are_no_fault(tmp_path: Path) -> None:
    path = build(tmp_path, record={"vllm/__init__.py": f"{digest(b'')},0\n"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("vllm/empty/", b"")
    with zipfile.ZipFile(path) as archive:
        assert record_problems(archive) == []


def test_a_file_that_is_twice_in_the_archive_is_named(tmp_path: Path) -> None:
    path = build(tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("vllm/__init__.py", b"")
    with pytest.raises(PackageError) as raised:
        check_wheel(path, recipe(), VERSION)
    assert "vllm/__init__.py is twice in the archive" in raised.value.why


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (GOOD.replace("{version}", "0.20.0"), "METADATA says version 0.20.0, not 0.20.1+cu130"),
        (GOOD.replace("torch==2.11.0", "torch==2.10.0"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("torch==2.11.0", "torch==2.11.*"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("torch==2.11.0", "torch>=2.11.0"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("torch==2.11.0", "torchvision==2.11.0"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("{name}", "other"), "METADATA is of other, not vllm"),
        ("Name: {name}\nVersion: {version}\n", "METADATA is not valid"),
    ],
)
def test_each_fault_of_metadata_is_named(metadata: str, problem: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path, metadata=metadata)) as archive:
        (found,) = metadata_problems(archive, recipe(), VERSION)
    assert found.startswith(problem)


def test_the_name_of_torch_may_be_written_in_any_case(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path, metadata=GOOD.replace("torch==", "Torch =="))) as archive:
        assert metadata_problems(archive, recipe(), VERSION) == []


def test_a_missing_component_and_a_foreign_shared_object_are_both_named(tmp_path: Path) -> None:
    members = {"vllm/_moe_C.abi3.so": b"moe", "vllm.libs/libgomp.so.1.0.0": b"gomp", "vllm/so.py": b""}
    with zipfile.ZipFile(build(tmp_path, members=members)) as archive:
        sizes, problems = component_sizes(archive, (Component.CUMEM_ALLOCATOR, Component.MOE))
    assert sizes == {"_moe_C": 3}
    assert problems == [
        "component cumem_allocator is missing (vllm/cumem_allocator.*.so)",
        "vllm.libs/libgomp.so.1.0.0 is not of a component of the recipe",
    ]


def test_all_that_is_wrong_is_in_one_message(tmp_path: Path) -> None:
    path = build(tmp_path, version="0.20.0", members={"vllm/_moe_C.abi3.so": b"moe"}, record={"vllm/x.py": ","})
    with pytest.raises(PackageError, match="is not what the recipe mine says") as raised:
        check_wheel(path, recipe(), VERSION)
    for part in ("lists vllm/x.py", "METADATA says", "cumem_allocator is missing", "the file name says version 0.20.0"):
        assert part in raised.value.why


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"vllm/_moe_C.abi3.so") + len("vllm/_moe_C.abi3.so")] ^= 0xFF
    path.write_bytes(data)


def _encrypt(path: Path) -> None:
    """Set the flag of an encrypted member in the archive's directory and its local header."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)


def _second_record(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other-1.dist-info/RECORD", b"")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (_cut, "not a zip file"),
        (_flip, ""),
        (_encrypt, "encrypted"),
        (_second_record, "2 files named"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_wheel_that_cannot_be_read_is_a_package_error(
    damage: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    path = build(tmp_path)
    damage(path)
    with pytest.raises(PackageError, match="cannot be read") as raised:
        check_wheel(path, recipe(), VERSION)
    assert cause in raised.value.why
    assert raised.value.why
