from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.audit.collect import audit_path, audit_wheel, read_wheel
from scripts.audit.models import AuditReport, Finding, Level
from scripts.core.errors import AuditError, UsageError
from scripts.cuda.archs import parse_arch_list
from scripts.cuda.drivers import parse_target
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Component, Recipe
from scripts.recipe.sources import GitSource
from tests.fatbins import container, ptx_entry, sass, shared_object
from tests.wheels import METADATA, digest, make_wheel

UNITS = {"cache.cu": container(sass("80", "c"), sass("90", "c")), "nothing.cu": container(sass("52"), ptx_entry("52"))}
TORCH = """
int at_exported(void) { return 1; }
int renamed_in_2_9(void) { return 2; }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with a small torch: real libraries, real symbol tables."""
    root = tmp_path_factory.mktemp("site") / "site-packages"
    (root / "torch/lib").mkdir(parents=True)
    (root / "nvidia/cuda_runtime/lib").mkdir(parents=True)
    (root / "torch/version.py").write_text("__version__ = '2.9.1+cu128'\ncuda: Optional[str] = '12.8'\n")
    runtime = root / "nvidia/cuda_runtime/lib/libcudart.so.12"
    shared_object(runtime, {}, source="int cudaMalloc(void) { return 0; }", link=["-Wl,-soname,libcudart.so.12"])
    link = ["-Wl,-soname,libtorch_cpu.so", "-Wl,--no-as-needed", str(runtime)]
    shared_object(root / "torch/lib/libtorch_cpu.so", {}, source=TORCH, link=link)
    for work in root.rglob("*.work"):
        shutil.rmtree(work)
    return root


def extension(folder: Path, site: Path, source: str, *link: str) -> bytes:
    libraries = [str(site / "torch/lib/libtorch_cpu.so"), "-Wl,--no-as-needed"]
    libraries += [str(site / "nvidia/cuda_runtime/lib/libcudart.so.12")]
    name = f"e{len(list(folder.iterdir()))}.so"
    return shared_object(
        folder / name, UNITS, source=source, link=["-Wl,--no-as-needed", *libraries, *link]
    ).read_bytes()


USES = "int at_exported(void); int PyLong_FromLong(void); int use(void) { return at_exported() + PyLong_FromLong(); }"
CPP_USES = "int _ZN2at8exportedEv(void); int use(void) { return _ZN2at8exportedEv(); }"


def codes(report: AuditReport, level: Level | None = None) -> list[str]:
    return [item.code for item in report.findings if level is None or item.level is level]


def finding(report: AuditReport, code: str) -> Finding:
    return next(item for item in report.findings if item.code == code)


def test_a_sound_wheel_is_ok_and_its_report_has_all_facts(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES)})
    report = audit_wheel(wheel, [parse_target("A40@12.8")], torch=site)
    assert report.ok
    assert codes(report, Level.ERROR) == codes(report, Level.WARNING) == []
    assert (report.name, report.version, report.torch, report.tags[0]) == ("vllm", "0.15.1", "==2.9.1", "cp38")
    item = report.components["vllm/_C.abi3.so"]
    assert (item.containers, item.empty_containers, item.cuda_major) == (2, 1, 12)
    assert (item.elf, item.ptx, item.ptx_versions) == ({"52": 1, "80": 1, "90": 1}, {"52": 1}, {"8.8": 1})
    assert item.compression == {"none": 4}
    assert item.host.machine == "x86_64"
    assert "libtorch_cpu.so" in item.host.needed
    assert item.host.unresolved == []
    assert not item.host.executable_stack
    assert not item.host.stripped


def test_a_unit_without_arch_flags_is_noted_and_harmless_without_kernels(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES)})
    note = finding(audit_wheel(wheel, []), "no-arch-flags")
    assert note.level is Level.NOTE
    assert note.text == "1 unit was compiled without arch flags: nothing.cu (no kernels inside)"


def test_a_unit_without_arch_flags_that_has_kernels_is_a_warning(tmp_path: Path) -> None:
    bad = {f"u{n}.cu": container(sass("75", "k"), ptx_entry("75", "k")) for n in range(2)} | UNITS
    path = shared_object(tmp_path / "_C.so", bad)
    note = finding(audit_path(path, []), "no-arch-flags")
    assert note.level is Level.WARNING
    assert note.text.startswith("2 units were compiled") or note.text.startswith("3 units were compiled")


def test_symbols_that_torch_does_not_have_are_found_before_import(tmp_path: Path, site: Path) -> None:
    source = "int renamed_in_2_10(void); int use(void) { return renamed_in_2_10(); }"
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, source)})
    report = audit_wheel(wheel, [], torch=site)
    assert not report.ok
    assert finding(report, "undefined-symbols").text == ("nothing provides 1 of its symbols, such as renamed_in_2_10")


def test_without_torch_at_hand_symbols_are_not_checked_and_that_is_said(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES)})
    report = audit_wheel(wheel, [])
    assert report.components["vllm/_C.abi3.so"].host.unresolved is None
    assert finding(report, "torch-not-at-hand").level is Level.NOTE


def test_another_torch_than_the_pinned_one_is_a_warning(tmp_path: Path, site: Path) -> None:
    metadata = METADATA.replace("torch==2.9.1", "torch==2.10.0")
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES)}, metadata=metadata)
    assert "torch 2.9.1+cu128, but the wheel requires torch==2.10.0" in (
        finding(audit_wheel(wheel, [], torch=site), "torch-differs").text
    )


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("numpy", "does not require torch"),
        ("torch>=2.0", "only says torch>=2.0"),
        ("torch==2.9.1; extra == 'x'", "does not"),
    ],
)
def test_a_wheel_linked_to_torch_without_a_pin_is_a_warning(
    tmp_path: Path, site: Path, requirement: str, said: str
) -> None:
    metadata = METADATA.replace("Requires-Dist: torch==2.9.1", f"Requires-Dist: {requirement}\nRequires-Dist: ?!")
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, CPP_USES)}, metadata=metadata)
    assert said in finding(audit_wheel(wheel, []), "torch-pin").text


def test_a_library_that_is_linked_to_torch_and_uses_none_of_it_fits_any_torch(tmp_path: Path, site: Path) -> None:
    """As spinloop and fs_io_C of vLLM 0.33.0, which CMake links to torch."""
    metadata = METADATA.replace("torch==2.9.1", "torch>=2.11")
    library = extension(tmp_path, site, "int use(void) { return 1; }")
    report = audit_wheel(make_wheel(tmp_path, {"vllm/spinloop.abi3.so": library}, metadata=metadata), [])
    assert any(name.startswith("libtorch") for name in report.components["vllm/spinloop.abi3.so"].host.needed)
    assert "torch-pin" not in {item.code for item in report.findings}


def test_a_library_of_another_cuda_than_torchs_is_an_error(tmp_path: Path, site: Path) -> None:
    other = shared_object(tmp_path / "libcudart.so.13", {}, link=["-Wl,-soname,libcudart.so.13"])
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES, str(other))})
    text = finding(audit_wheel(wheel, [], torch=site), "cuda-mismatch").text
    assert text == "it needs libcudart.so.13, but torch 2.9.1+cu128 brings CUDA 12.8"


def test_a_soname_that_nothing_provides_is_an_error_with_torch_and_a_warning_without(
    tmp_path: Path, site: Path
) -> None:
    other = shared_object(tmp_path / "libodd.so.1", {}, link=["-Wl,-soname,libodd.so.1"])
    members = {"vllm/_C.abi3.so": extension(tmp_path, site, USES, str(other))}
    wheel = make_wheel(tmp_path, members)
    assert "missing-library" in codes(audit_wheel(wheel, [], torch=site), Level.ERROR)
    assert "unknown-library" in codes(audit_wheel(wheel, []), Level.WARNING)
    brought = make_wheel(tmp_path, members | {"vllm.libs/libodd.so.1": other.read_bytes()})
    assert not {"missing-library", "unknown-library"} & set(codes(audit_wheel(brought, [], torch=site)))


def test_a_missing_library_excuses_symbols_that_are_not_torchs(tmp_path: Path, site: Path) -> None:
    other = shared_object(
        tmp_path / "libodd.so.1", {}, link=["-Wl,-soname,libodd.so.1"], source="int odd(void) {return 1;}"
    )
    driver = shared_object(tmp_path / "libcuda.so.1", {}, link=["-Wl,-soname,libcuda.so.1"], source="int cuInit;")
    source = "int odd(), _ZN2at4goneEv(); extern int cuInit; int f(void) { return odd() + cuInit + _ZN2at4goneEv(); }"
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, source, str(other), str(driver))})
    report = audit_wheel(wheel, [], torch=site)
    assert report.components["vllm/_C.abi3.so"].host.unresolved == ["_ZN2at4goneEv"]


def test_executable_stacks_and_paths_of_the_build_machine_are_warned_of(tmp_path: Path, site: Path) -> None:
    flags = ["-Wl,-z,execstack", "-Wl,-rpath,/build/torch/lib:$ORIGIN/../torch/lib"]
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES, *flags)})
    report = audit_wheel(wheel, [])
    assert {"executable-stack", "absolute-rpath"} <= set(codes(report, Level.WARNING))
    assert "/build/torch/lib" in finding(report, "absolute-rpath").text
    assert "ORIGIN" not in finding(report, "absolute-rpath").text


@pytest.mark.parametrize("tags", ["cp38-abi3-manylinux_2_2_x86_64", "cp38-abi3-manylinux1_x86_64"])
def test_a_platform_tag_that_promises_an_older_glibc_than_is_needed_is_an_error(tmp_path: Path, tags: str) -> None:
    source = "#include <string.h>\nvoid *use(void *a, void *b, unsigned n) { return memcpy(a, b, n); }"
    data = shared_object(tmp_path / "x.so", UNITS, source=source).read_bytes()
    report = audit_wheel(make_wheel(tmp_path, {"vllm/_C.so": data}, tags=tags), [])
    assert report.components["vllm/_C.so"].host.glibc == "2.14"
    assert finding(report, "platform-tag").text.startswith("it needs glibc 2.14, the platform tag promises 2.")
    assert "Debian 12" in report.components["vllm/_C.so"].host.base_images


def test_a_library_for_another_machine_than_the_tag_is_an_error(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(
        tmp_path, {"vllm/_C.so": extension(tmp_path, site, USES)}, tags="cp38-abi3-manylinux_2_31_aarch64"
    )
    assert "it is for x86_64, the platform tag says aarch64" in finding(audit_wheel(wheel, []), "platform-tag").text


def test_wheels_without_manylinux_tag_are_not_held_to_one(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_C.so": extension(tmp_path, site, USES)}, tags="cp38-abi3-linux_x86_64")
    assert "platform-tag" not in codes(audit_wheel(wheel, []))


def test_files_that_differ_from_record_or_are_missing_on_either_side_are_errors(tmp_path: Path) -> None:
    record = {"vllm/a.py": "sha256=AAAA,1", "vllm/b.py": "absent", "vllm/gone.py": "sha256=AAAA,1"}
    wheel = make_wheel(tmp_path, {"vllm/a.py": b"a", "vllm/b.py": b"b", "vllm/c.py": b"c"}, record=record)
    report = audit_wheel(wheel, [])
    assert not report.ok
    texts = sorted(item.text for item in report.findings if item.code == "record-mismatch")
    assert texts == [
        "content differs from RECORD: vllm/a.py",
        "listed in RECORD and missing: vllm/gone.py",
        "not listed in RECORD: vllm/b.py",
    ]


def test_metadata_and_tags_that_contradict_the_file_name_are_found(tmp_path: Path) -> None:
    metadata = METADATA.replace("{version}", "not-a-version")
    wheel = make_wheel(tmp_path, {"vllm/a.py": b""}, metadata=metadata, stated_tags="cp38-abi3-linux_x86_64")
    renamed = wheel.rename(tmp_path / wheel.name.replace("0.15.1", "0.15.2"))
    report = audit_wheel(renamed, [])
    assert codes(report) == ["metadata-mismatch", "metadata-mismatch", "tags-differ"]


def test_something_called_a_shared_object_that_is_none_is_an_error(tmp_path: Path) -> None:
    report = audit_wheel(make_wheel(tmp_path, {"vllm/_C.abi3.so": b"#!/bin/sh\n"}), [])
    assert codes(report, Level.ERROR) == ["not-elf"]


def recipe(*components: Component, **changes: object) -> Recipe:
    return load_recipe("quickstart").model_copy(update={"components": components, **changes})


def test_an_optional_component_that_vanished_is_an_error(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_moe_C.abi3.so": extension(tmp_path, site, USES)})
    wanted = recipe(Component.MOE, Component.CORE, Component.FLASH_ATTENTION_3, Component.TRITON_KERNELS)
    report = audit_wheel(wheel, [], recipe=wanted, archs=parse_arch_list("9.0"))
    assert [item.where for item in report.findings if item.code == "missing-component"] == [
        "_C",
        "_vllm_fa3_C",
        "triton_kernels",
    ]


def test_components_that_upstream_builds_for_other_archs_only_are_not_missed(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_moe_C.abi3.so": extension(tmp_path, site, USES)})
    wanted = recipe(Component.MOE, Component.FLASH_ATTENTION_3)
    assert "missing-component" not in codes(audit_wheel(wheel, [], recipe=wanted, archs=parse_arch_list("8.6")))


def pinned(folder: Path, **files: bytes) -> Recipe:
    """Return a recipe that pins triton_kernels to these files."""
    hexes = {name: bytes.fromhex(_hex(data)) for name, data in files.items()}
    (folder / "pins.sha256").write_text("# files\n" + "".join(f"{h.hex()}  {name}.py\n" for name, h in hexes.items()))
    base = load_recipe("quickstart")
    source = GitSource(kind="git", repository="https://example.org/x", commit="0" * 40, files_sha256="pins.sha256")
    dependency = base.dependencies["cutlass"].model_copy(update={"source": source})
    made = recipe(Component.TRITON_KERNELS, dependencies={"triton_kernels": dependency})
    return made.model_copy(update={"folder": folder})


def _hex(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_triton_kernels_are_compared_with_the_recipes_pin(tmp_path: Path) -> None:
    wanted = pinned(tmp_path, matmul=b"right", swiglu=b"right")
    folder = "vllm/third_party/triton_kernels"
    wheel = make_wheel(tmp_path, {f"{folder}/matmul.py": b"right", f"{folder}/swiglu.py": b"right"})
    assert finding(audit_wheel(wheel, [], recipe=wanted), "triton-kernels").text.endswith(
        "all 2 files are the pinned ones"
    )
    wheel = make_wheel(tmp_path, {f"{folder}/matmul.py": b"right", f"{folder}/swiglu.py": b"main of that day"})
    bad = finding(audit_wheel(wheel, [], recipe=wanted), "triton-kernels")
    assert bad.level is Level.ERROR
    assert bad.text == "1 of 2 files of triton_kernels are not the pinned ones, such as swiglu.py"


def test_a_wheel_without_triton_kernels_says_so_and_one_without_pin_too(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/a.py": b""})
    assert (
        "gpt-oss models need it" in finding(audit_wheel(wheel, [], recipe=recipe(Component.MOE)), "triton-kernels").text
    )
    wheel = make_wheel(tmp_path, {"vllm/third_party/triton_kernels/__init__.py": b""})
    assert "no pin at hand" in finding(audit_wheel(wheel, []), "triton-kernels").text


def test_a_directory_and_a_single_library_are_audited_too(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    path = shared_object(tmp_path / "lib/libx.so.1", UNITS)
    shutil.rmtree(tmp_path / "lib/libx.so.1.work")
    (tmp_path / "lib/text.so").write_text("INPUT(libx.so.1)")
    (tmp_path / "lib/link.so").symlink_to(path)
    for subject, kind in ((path, "file"), (tmp_path / "lib", "directory")):
        report = audit_path(subject, [parse_target("H100@12.8")])
        assert (report.kind, len(report.components), report.ok) == (kind, 1, True)


def test_an_installed_environment_is_audited_against_its_own_torch(tmp_path: Path, site: Path) -> None:
    root = tmp_path / "env/lib/python3.11/site-packages"
    shutil.copytree(site, root)
    (root / "vllm").mkdir()
    (root / "vllm-0.15.1.dist-info").mkdir()
    (root / "vllm/_C.abi3.so").write_bytes(extension(tmp_path, site, USES))
    report = audit_path(tmp_path / "env", [parse_target("H100")])
    assert (report.kind, report.name, report.version) == ("environment", "vllm", "0.15.1")
    assert report.components["vllm/_C.abi3.so"].host.unresolved == []
    assert audit_path(root, []).kind == "environment"
    with pytest.raises(UsageError, match="flash_attn is not installed"):
        audit_path(tmp_path / "env", [], package="flash_attn")


def test_what_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        audit_path(tmp_path / "none", [])


def test_a_torch_folder_without_torch_leaves_symbols_unchecked(tmp_path: Path, site: Path) -> None:
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": extension(tmp_path, site, USES)})
    assert audit_wheel(wheel, [], torch=tmp_path).components["vllm/_C.abi3.so"].host.unresolved is None


def test_the_cuda_version_is_read_from_ptx_or_cubins_when_libcudart_is_linked_in(tmp_path: Path) -> None:
    new = container(ptx_entry("80", "k", isa=(9, 0)), sass("80", "k"))
    assert audit_path(shared_object(tmp_path / "a.so", {"a": new}), []).components["a.so"].cuda_major == 13
    old = container(sass("80", "k"))
    assert audit_path(shared_object(tmp_path / "b.so", {"a": old}), []).components["b.so"].cuda_major == 12


def test_a_wheel_that_cannot_be_read_is_an_audit_error(tmp_path: Path) -> None:
    path = tmp_path / "vllm-0.15.1-cp38-abi3-linux_x86_64.whl"
    with pytest.raises(AuditError, match="cannot be read"):
        audit_path(path, [])
    path.write_bytes(b"PK" * 100)
    with pytest.raises(AuditError, match="is not a wheel"):
        audit_path(path, [])


def test_digest_of_the_fixture_is_recorded_as_pip_wants_it() -> None:
    assert digest(b"") == "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"


def test_a_wheel_that_is_read_is_judged_for_any_targets_without_being_read_again(tmp_path: Path) -> None:
    data = shared_object(tmp_path / "x.so", UNITS).read_bytes()
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": data})
    contents = read_wheel(wheel)
    assert [container.unit for container in contents.codes["vllm/_C.abi3.so"].containers] == list(UNITS)
    fresh = [audit_wheel(wheel, [parse_target(text)]) for text in ("A40@12.8", "H100@12.9")]
    wheel.unlink()
    again = [contents.report([parse_target(text)], 0.0) for text in ("A40@12.8", "H100@12.9")]
    assert [item.model_copy(update={"seconds": 0}) for item in again] == [
        item.model_copy(update={"seconds": 0}) for item in fresh
    ]
