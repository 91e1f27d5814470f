"""The checks of a packaged wheel, on small real wheels with one fault each."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from scripts.audit.collect import read_wheel
from scripts.core.errors import PackageError
from scripts.package.check import check_wheel, component_sizes
from scripts.recipe.model import Recipe
from tests.fatbins import container, sass, shared_object
from tests.support import make_recipe
from tests.wheels import digest, make_wheel

VERSION = "0.20.1+cu130"
GOOD = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: torch==2.11.0\n"
MOE, CUMEM = "vllm/_moe_C.abi3.so", "vllm/cumem_allocator.abi3.so"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the members of a right wheel: one library with a kernel, one without."""
    folder = tmp_path_factory.mktemp("objects")
    units = {"a.cu": container(sass("90", "k"))}
    return {
        MOE: shared_object(folder / "moe.so", units).read_bytes(),
        CUMEM: shared_object(folder / "cumem.so", {}).read_bytes(),
        "vllm/__init__.py": b"",
    }


def build(
    folder: Path,
    members: Mapping[str, bytes],
    *,
    metadata: str = GOOD,
    version: str = VERSION,
    record: Mapping[str, str] | None = None,
    tags: str = "cp38-abi3-manylinux_2_31_x86_64",
) -> Path:
    return make_wheel(folder, members, version=version, metadata=metadata, record=record, tags=tags)


def recipe() -> Recipe:
    return make_recipe()


def problems(path: Path, **words: str) -> str:
    """Return what a check says."""
    with pytest.raises(PackageError, match="is not what the recipe mine says") as raised:
        check_wheel(path, recipe(), VERSION, **words)  # type: ignore[arg-type]
    return raised.value.why


def test_a_right_wheel_is_described_by_its_digest_size_platform_and_components(
    objects: dict[str, bytes], tmp_path: Path
) -> None:
    path = build(tmp_path, objects)
    wheel = check_wheel(path, recipe(), VERSION)
    assert wheel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (wheel.size, wheel.version) == (path.stat().st_size, VERSION)
    assert wheel.components == {"cumem_allocator": len(objects[CUMEM]), "_moe_C": len(objects[MOE])}
    assert {name: len(code.containers) for name, code in wheel.device.items()} == {MOE: 1, CUMEM: 0}


def test_the_platform_is_the_manylinux_tag_when_there_are_several(objects: dict[str, bytes], tmp_path: Path) -> None:
    path = build(tmp_path, objects, tags="cp38-abi3-linux_x86_64.manylinux_2_34_x86_64")
    assert check_wheel(path, recipe(), VERSION).platform == "manylinux_2_34_x86_64"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("absent", "vllm/__init__.py: not listed in RECORD"),
        ("sha256=AAAA,0", "vllm/__init__.py: content differs from RECORD"),
        (f"{digest(b'')},7", "vllm/__init__.py: content differs from RECORD"),
        (f"{digest(b'')},0\nvllm/gone.py,,", "vllm/gone.py: listed in RECORD and missing"),
    ],
)
def test_each_fault_of_record_is_named(row: str, problem: str, objects: dict[str, bytes], tmp_path: Path) -> None:
    assert problem in problems(build(tmp_path, objects, record={"vllm/__init__.py": row}))


def test_blank_lines_of_record_and_folders_of_the_archive_are_no_fault(
    objects: dict[str, bytes], tmp_path: Path
) -> None:
    path = build(tmp_path, objects, record={"vllm/__init__.py": f"{digest(b'')},0\n"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("vllm/empty/", b"")
    assert check_wheel(path, recipe(), VERSION).components


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (GOOD.replace("{version}", "0.20.0"), "METADATA: it says vllm 0.20.0"),
        (GOOD.replace("torch==2.11.0", "torch==2.10.0"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("torch==2.11.0", "torch==2.11.*"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("torch==2.11.0", "torch>=2.11.0"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("torch==2.11.0", "torchvision==2.11.0"), "METADATA does not pin torch==2.11.0"),
        (GOOD.replace("{name}", "other"), "METADATA: it says other"),
        ("Name: {name}\nVersion: {version}\nRequires-Dist: torch==2.11.0\n", "METADATA is not valid"),
    ],
)
def test_each_fault_of_metadata_is_named(
    metadata: str, problem: str, objects: dict[str, bytes], tmp_path: Path
) -> None:
    assert problems(build(tmp_path, objects, metadata=metadata)).startswith(problem)


def test_the_name_of_torch_may_be_written_in_any_case_and_another_pin_be_wanted(
    objects: dict[str, bytes], tmp_path: Path
) -> None:
    path = build(tmp_path, objects, metadata=GOOD.replace("torch==", "Torch =="))
    assert check_wheel(path, recipe(), VERSION)
    assert problems(path, requires=">=2.9,<3") == "METADATA does not pin torch>=2.9,<3"


def test_a_missing_component_and_a_foreign_shared_object_are_both_named(
    objects: dict[str, bytes], tmp_path: Path
) -> None:
    members = {MOE: objects[MOE], "vllm.libs/libgomp.so.1.0.0": objects[CUMEM], "vllm/so.py": b""}
    sizes, wrong = component_sizes(read_wheel(build(tmp_path, members)), recipe())
    assert sizes == {"_moe_C": len(objects[MOE])}
    assert wrong == [
        "component cumem_allocator is missing (vllm/cumem_allocator.*.so)",
        "vllm.libs/libgomp.so.1.0.0 is not of a component of the recipe",
    ]


def test_all_that_is_wrong_is_in_one_message(objects: dict[str, bytes], tmp_path: Path) -> None:
    path = build(tmp_path, {MOE: objects[MOE]}, version="0.20.0", record={"vllm/x.py": ","})
    for part in ("vllm/x.py: listed in RECORD", "it is of version 0.20.0, not", "cumem_allocator is missing"):
        assert part in problems(path)


def test_a_shared_object_that_is_none_is_named(objects: dict[str, bytes], tmp_path: Path) -> None:
    assert f"{MOE}: it is called a shared object and is none" in problems(build(tmp_path, {**objects, MOE: b"moe"}))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"vllm/_moe_C.abi3.so") + len("vllm/_moe_C.abi3.so") + 40] ^= 0xFF
    path.write_bytes(data)


def _encrypt(path: Path) -> None:
    """Set the flag of an encrypted member in the archive's directory and its local header."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("vllm/__init__.py", b"")


def _second_record(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other-1.dist-info/RECORD", b"")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (_cut, "is not a wheel"),
        (_flip, ""),
        (_encrypt, "encrypted"),
        (_second_record, "2 .dist-info directories"),
        (Path.unlink, "No such file"),
        (_twice, "is in it twice"),
    ],
)
def test_a_wheel_that_cannot_be_read_is_a_package_error(
    damage: Callable[[Path], None], cause: str, objects: dict[str, bytes], tmp_path: Path
) -> None:
    path = build(tmp_path, objects)
    damage(path)
    with pytest.raises(PackageError, match="cannot be read") as raised:
        check_wheel(path, recipe(), VERSION)
    assert cause in raised.value.why
    assert raised.value.why
