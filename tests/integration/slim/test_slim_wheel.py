from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import zstandard
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import parse_wheel_filename

from scripts.audit.collect import audit_wheel
from scripts.commands import slim as command
from scripts.core.console import Console
from scripts.core.errors import AuditError, UsageError
from scripts.core.files import file_sha256
from scripts.cuda.archs import parse_arch_list
from scripts.cuda.drivers import parse_target
from scripts.formats.fatbin import read_device_code
from scripts.formats.fatbin_types import Compression, Kind
from scripts.formats.wheel import open_wheel, read_record
from scripts.index.statements import slimmed
from scripts.report.wheelhouse import report_path
from scripts.slim.wheel import slim, slim_version, slim_wheel
from tests.fatbins import container, cubin, entry, ptx_entry, sass, shared_object
from tests.wheels import make_wheel

CODE = random.Random(0).randbytes(15_360)  # does not compress


def members(folder: Path) -> dict[str, bytes]:
    core = {
        "cache.cu": container(sass("80", "c", code=CODE), sass("90", "c", code=CODE), sass("120", "c", code=CODE)),
        "marlin.cu": container(sass("80", "m", code=CODE), ptx_entry("80", "m")),
    }
    hopper = {"hopper.cu": container(sass("90a", "h", code=CODE))}
    return {
        "vllm/__init__.py": b"__version__ = '0.15.1'\n",
        "vllm/_C.abi3.so": shared_object(folder / "_C.abi3.so", core).read_bytes(),
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so": shared_object(folder / "fa3.so", hopper).read_bytes(),
        "vllm-0.15.1.data/scripts/serve": b"#!python\n",
    }


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fat")
    return make_wheel(folder, members(folder), stated_tags="cp38-abi3-linux_x86_64")


def test_a_slim_wheel_says_cuda_and_archs_in_its_name_and_metadata(fat: Path, tmp_path: Path) -> None:
    wheel = slim_wheel(fat, parse_arch_list("8.6"), tmp_path)
    assert wheel.name == "vllm-0.15.1+cu129.sm86-cp38-abi3-manylinux_2_31_x86_64.whl"
    parse_wheel_filename(wheel.name)
    with open_wheel(wheel) as archive:
        assert archive.dist_info == "vllm-0.15.1+cu129.sm86.dist-info"
        assert archive.message("METADATA")["Version"] == "0.15.1+cu129.sm86"
        assert archive.message("METADATA")["Requires-Dist"] == "torch==2.9.1"
        assert archive.message("WHEEL").get_all("Tag") == ["cp38-abi3-manylinux_2_31_x86_64"]


def test_record_is_right_and_everything_but_gpu_code_and_metadata_is_unchanged(fat: Path, tmp_path: Path) -> None:
    wheel = slim_wheel(fat, parse_arch_list("8.6"), tmp_path)
    report = audit_wheel(wheel, [])
    assert report.findings == [item for item in report.findings if item.level.value == "note"]
    with zipfile.ZipFile(fat) as old, zipfile.ZipFile(wheel) as new:
        assert new.read("vllm/__init__.py") == old.read("vllm/__init__.py")
        assert new.read("vllm-0.15.1+cu129.sm86.data/scripts/serve") == b"#!python\n"
        assert new.getinfo("vllm/_C.abi3.so").external_attr == old.getinfo("vllm/_C.abi3.so").external_attr
        assert new.getinfo("vllm/__init__.py").date_time == (2026, 2, 4, 19, 3, 0)
        assert new.namelist()[-1] == "vllm-0.15.1+cu129.sm86.dist-info/RECORD"


def test_the_same_wheel_and_archs_give_the_same_bytes(fat: Path, tmp_path: Path) -> None:
    one = slim_wheel(fat, parse_arch_list("9.0;12.0"), tmp_path / "one")
    two = slim_wheel(fat, parse_arch_list("12.0,9.0"), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("target", ["A40@12.0", "A40@12.8"])
def test_the_verdict_for_a_kept_arch_is_the_same_as_before(fat: Path, tmp_path: Path, target: str) -> None:
    before = audit_wheel(fat, [parse_target(target)]).targets[0]
    after = audit_wheel(slim_wheel(fat, parse_arch_list("8.6"), tmp_path), [parse_target(target)]).targets[0]
    for name in ("ok", "native", "compatible", "jit", "missing", "lowest_driver", "summary"):
        assert getattr(after, name) == getattr(before, name)


def test_jit_stays_for_an_arch_that_needs_it(fat: Path, tmp_path: Path) -> None:
    report = audit_wheel(slim_wheel(fat, parse_arch_list("12.0"), tmp_path), [parse_target("rtx5090@12.8")])
    assert "1 of 2 kernel containers need a CUDA 12.9 driver: Marlin (1)" in report.targets[0].summary


def test_an_arch_that_was_cut_out_is_missing_afterwards(fat: Path, tmp_path: Path) -> None:
    report = audit_wheel(slim_wheel(fat, parse_arch_list("8.6"), tmp_path), [parse_target("H100@12.9")])
    assert "core kernels: no code for it" in report.targets[0].reasons[0]


def test_libraries_with_nothing_left_stay_unless_asked_to_be_dropped(fat: Path, tmp_path: Path) -> None:
    name = "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"
    kept = slim(fat, parse_arch_list("8.6"), tmp_path / "kept")
    assert [(item.title, item.dropped) for item in kept.members] == [
        ("core kernels", False),
        ("FlashAttention 3", False),
    ]
    with zipfile.ZipFile(kept.wheel) as archive:
        archive.extract(name, tmp_path)
    assert [item.size for item in read_device_code(tmp_path / name).containers] == [0]
    dropped = slim(fat, parse_arch_list("8.6"), tmp_path / "dropped", drop_empty=True)
    with open_wheel(dropped.wheel) as wheel:
        assert name not in read_record(wheel)
        assert name not in {member.filename for member in wheel.members}
    assert dropped.after < kept.after
    assert kept.members[0].result.after < kept.members[0].result.before


def test_pip_installs_a_slim_wheel_and_verifies_its_record(fat: Path, tmp_path: Path) -> None:
    wheel = slim_wheel(fat, parse_arch_list("9.0"), tmp_path)
    uv = Path(sys.executable).parent / "uv"
    command = [
        str(uv),
        "pip",
        "install",
        "--no-deps",
        "--offline",
        "--no-cache",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "site/vllm-0.15.1+cu129.sm90.dist-info/METADATA").is_file()
    assert len(read_device_code(tmp_path / "site/vllm/_C.abi3.so").containers) == 2


def test_an_arch_the_wheel_has_nothing_for_is_refused_and_nothing_is_left_behind(fat: Path, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"has no code for 7.5") as caught:
        slim_wheel(fat, parse_arch_list("7.5;9.0"), tmp_path)
    assert "T4" in caught.value.why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("archs", ["9.0a", "8.0+PTX", "10.0f;9.0"])
def test_archs_that_are_code_and_not_gpus_are_refused_with_the_right_spelling(
    fat: Path, tmp_path: Path, archs: str
) -> None:
    with pytest.raises(UsageError) as caught:
        slim_wheel(fat, parse_arch_list(archs), tmp_path)
    assert caught.value.fix[0].startswith("--arch '")
    assert not caught.value.fix[0].endswith(("a'", "f'", "PTX'"))


def test_a_member_that_is_not_what_record_says_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, members(tmp_path), record={"vllm/__init__.py": "sha256=AAAA,3"})
    with pytest.raises(AuditError, match=r"vllm/__init__.py is not what RECORD says"):
        slim_wheel(wheel, parse_arch_list("9.0"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("old", "archs", "new"),
    [
        ("0.15.1", "8.6", "0.15.1+cu129.sm86"),
        ("0.15.1+cu128", "8.6;9.0", "0.15.1+cu128.sm86.sm90"),
        ("0.20.1+cu130.quickstart", "9.0", "0.20.1+cu130.sm90.quickstart"),
        ("0.20.1+cu130.sm90.sm120.core", "12.0", "0.20.1+cu130.sm120.core"),
        ("1.0rc1", "9.0", "1.0rc1+cu129.sm90"),
    ],
)
def test_versions_keep_their_cuda_and_notes_and_take_the_new_archs(old: str, archs: str, new: str) -> None:
    assert slim_version(old, "12.9", parse_arch_list(archs)) == new


def test_without_ptx_the_cuda_version_comes_from_libcudart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared_object(tmp_path / "libcudart.so.13", {}, link=["-Wl,-soname,libcudart.so.13"], source="int cudart;")
    units = {"a.cu": container(sass("90", "k"), sass("80", "k"))}
    link = ["-Wl,--no-as-needed", str(tmp_path / "libcudart.so.13")]
    data = shared_object(tmp_path / "_C.so", units, link=link).read_bytes()
    wheel = make_wheel(tmp_path, {"other/_C.so": data}, name="other")
    assert command.main([str(wheel), "--arch", "9.0", "--out", str(tmp_path / "out")], Console()) == 0
    [new] = (tmp_path / "out").glob("*.whl")
    assert new.name.startswith("other-0.15.1+cu130.sm90-")
    assert "which CUDA 13 compiled it: labelled as 13.0" in capsys.readouterr().err
    report = json.loads(report_path(new).read_text())
    assert report["audit"]["ok"], report["audit"]["targets"]  # 13 is CUDA 13's first release, not less than 13.0


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.ZSTD])
def test_without_ptx_a_cubin_names_the_cuda_that_compiled_it(tmp_path: Path, compression: Compression) -> None:
    note = b"ptxas\0Cuda compilation tools, release 13.2, V13.2.51\0Build cuda_13.2.r13.2/compiler.1_0\0"
    plain = cubin("k", code=note + b"\x90" * 8)
    stored = plain if compression is Compression.NONE else zstandard.compress(plain)
    made = entry(Kind.ELF, "90", stored, version=(1, 8), compression=compression, size=len(plain))
    units = {"a.cu": container(made, entry(Kind.ELF, "80", plain, version=(1, 8)))}
    data = shared_object(tmp_path / "_C.so", units).read_bytes()
    wheel = make_wheel(tmp_path, {"other/_C.so": data}, name="other")
    slim = slim_wheel(wheel, parse_arch_list("9.0"), tmp_path / "out")
    assert slim.name.startswith("other-0.15.1+cu132.sm90-")


def test_the_command_tells_what_it_did_and_writes_it_as_json(
    fat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(fat), "--arch", "A40", "--arch", "8.0", "--out", str(tmp_path), "--json", str(tmp_path / "r.json")]
    assert command.main([*arguments, "--drop-empty"], Console()) == 0
    out, err = capsys.readouterr()
    assert "vllm-0.15.1+cu129.sm80.sm86-" in out
    assert "_C.abi3.so: " in err
    assert "_vllm_fa3_C.abi3.so: dropped: nothing for these archs" in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["components"]["vllm/_C.abi3.so"]["entries"] == 2
    assert report["components"]["vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"]["dropped"]


def test_the_command_marks_unchanged_and_emptied_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = make_wheel(
        tmp_path, members(tmp_path) | {"vllm/host.so": shared_object(tmp_path / "h.so", {}).read_bytes()}
    )
    command.main([str(wheel), "--arch", "8.0", "--out", str(tmp_path / "out")], Console())
    err = capsys.readouterr().err
    assert "host.so: unchanged" in err
    assert "no GPU code left (--drop-empty leaves it out)" in err


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(fat: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match=r"slimming failed"):
        slim_wheel(fat, parse_arch_list("9.0"), tmp_path / "file" / "out")


def test_what_is_no_wheel_is_a_usage_error_that_says_so(fat: Path, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(b"x")
    for path, words in ((tmp_path / "nothere.whl", "there is no"), (tmp_path, "not a wheel"), (archive, "not a wheel")):
        with pytest.raises(UsageError, match=words):
            slim_wheel(path, parse_arch_list("8.6"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wheel_is_never_written_onto_itself(fat: Path, tmp_path: Path) -> None:
    first = slim_wheel(fat, parse_arch_list("8.6;9.0"), tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    renamed = first.with_name(first.name.replace(".sm86.sm90", ".sm86"))
    renamed.write_bytes(first.read_bytes())
    before = renamed.read_bytes()
    for out in (tmp_path, tmp_path / "again/.."):
        with pytest.raises(UsageError, match="would have the name of the wheel it is cut out of"):
            slim_wheel(renamed, parse_arch_list("8.6"), out)
    assert renamed.read_bytes() == before
    assert slim_wheel(renamed, parse_arch_list("8.6"), again).exists()


def test_a_wheel_from_which_nothing_goes_is_refused_and_not_labelled(fat: Path, tmp_path: Path) -> None:
    once = slim_wheel(fat, parse_arch_list("8.6"), tmp_path / "once", drop_empty=True)
    with pytest.raises(AuditError, match="nothing can be removed") as caught:
        slim_wheel(once, parse_arch_list("8.6"), tmp_path / "twice")
    assert "is what 8.6 takes" in caught.value.why
    assert list((tmp_path / "twice").glob("*.whl")) == []


def test_device_linked_code_is_kept_whole_and_named_as_the_reason(tmp_path: Path) -> None:
    code = {"a.cu": container(sass("80", "k"), sass("90", "k"))}
    library = shared_object(tmp_path / "x.so", code, wrapper_version=2).read_bytes()
    wheel = make_wheel(tmp_path, {"vllm/x.so": library})
    with pytest.raises(AuditError, match="nothing can be removed") as caught:
        slim_wheel(wheel, parse_arch_list("9.0"), tmp_path / "out")
    assert "x.so is device-linked (-rdc) or not registered by host code" in caught.value.why


def test_libraries_of_several_cudas_give_a_label_without_cuda_and_a_word_about_it(tmp_path: Path) -> None:
    files = {}
    for name, isa in (("lib_cuda128.so", (8, 7)), ("lib_cuda130.so", (9, 0))):
        code = container(sass("80", "k"), sass("90", "k"), ptx_entry("90", "k", isa=isa))
        files[f"b/{name}"] = shared_object(tmp_path / name, {"a.cu": code}).read_bytes()
    result = slim(make_wheel(tmp_path, files, name="b", version="1.0"), parse_arch_list("8.0"), tmp_path / "out")
    assert result.wheel.name.startswith("b-1.0+sm80-")
    assert "different CUDA versions (12.8, 13.0)" in result.notes[0]


def test_linker_scripts_and_links_called_so_stay_as_they_are(fat: Path, tmp_path: Path) -> None:
    files = {
        **members(tmp_path),
        "vllm/libx.so": b"/* GNU ld script */ GROUP ( libx.so.1 )\n",
        "vllm/liby.so": b"libx.so.1",
    }
    wheel = slim_wheel(make_wheel(tmp_path, files), parse_arch_list("8.6"), tmp_path / "out")
    with open_wheel(wheel) as archive:
        assert archive.read("vllm/libx.so") == files["vllm/libx.so"]
        assert archive.read("vllm/liby.so") == b"libx.so.1"
    assert audit_wheel(wheel, [parse_target("A40@12.9")]).ok


def test_a_slimmed_upstream_wheel_can_be_published_signed_and_verified(fat: Path, tmp_path: Path) -> None:
    assert command.main([str(fat), "--arch", "8.6", "--out", str(tmp_path)], Console()) == 0
    wheel = next(tmp_path.glob("*.whl"))
    report = json.loads(report_path(wheel).read_text())
    assert report["slimmed_from"]["sha256"] == file_sha256(fat)
    assert report["audit"]["ok"]
    claim = slimmed(wheel, file_sha256(wheel), None)
    assert claim is not None
    definition = claim["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"] == [{"name": fat.name, "digest": {"sha256": file_sha256(fat)}}]
    assert definition["externalParameters"] == {"archs": "8.6"}
    with open_wheel(wheel) as archive:
        sbom = archive.read(f"{archive.dist_info}/sboms/wheelsmith.cdx.json")
    assert sbom is not None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.decode()) is None
    ancestor = json.loads(sbom)["metadata"]["component"]["pedigree"]["ancestors"][0]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": file_sha256(fat)}]
