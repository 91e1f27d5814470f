"""Whole kinds of wheels that once got a wrong verdict: a small real wheel of each, and the right word about it."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from scripts.audit.collect import audit_path, audit_wheel
from scripts.audit.models import AuditReport, Level
from scripts.commands import audit
from scripts.core.console import Console
from scripts.core.errors import AuditError, UsageError
from scripts.cuda.drivers import parse_target
from tests.fatbins import container, cubin, ptx_entry, sass, shared_object
from tests.wheels import make_wheel

H100, B200, A100 = (parse_target(text) for text in ("H100@12.9", "B200@12.9", "A100@12.9"))
HOPPER = container(sass("90", "k"))


def loose(flags: int, abi: int = 8) -> bytes:
    """Return a cubin file whose ELF flags say what it is for."""
    data = bytearray(cubin("k"))
    data[8] = abi
    struct.pack_into("<I", data, 48, flags)
    return bytes(data)


def audited(folder: Path, members: dict[str, bytes], *targets: str, name: str = "flashinfer_cubin") -> AuditReport:
    wheel = make_wheel(folder, members, name=name, version="0.6.13", tags="py3-none-any")
    return audit_wheel(wheel, [parse_target(text) for text in targets or ("H100@12.9",)])


def test_a_package_of_cubins_is_read_and_judged(tmp_path: Path) -> None:
    members = {
        "f/cubins/a/one.cubin": loose(0x6006402),
        "f/cubins/a/two.cubin": loose(0x600640A),
        "f/cubins/b/three.cubin": loose(0x600670A),
        "f/cubins/b/four.cubin": loose(0x5A055A, abi=7),
        "f/cubins/b/five.cubin": loose(0x5A0D5A, abi=7),
    }
    report = audited(tmp_path, members, "B200@12.9", "B300@12.9", "H100@12.9", "A100@12.9")
    item = report.components["f/cubins/*.cubin"]
    assert (item.kind, item.containers) == ("cubins", 5)
    assert item.elf == {"90": 1, "90a": 1, "100": 1, "100a": 1, "103a": 1}
    assert [(v.ok, v.native, v.compatible) for v in report.targets] == [
        (True, 2, 0),
        (True, 1, 1),
        (True, 2, 0),
        (False, 0, 0),
    ]
    assert "nothing in it has code for this GPU" in report.targets[3].summary
    assert not report.ok


def test_relocatable_cubins_and_damaged_ones_are_never_a_green_verdict(tmp_path: Path) -> None:
    relocatable = bytearray(loose(0x6006402))
    struct.pack_into("<H", relocatable, 16, 1)
    report = audited(tmp_path, {"f/a.cubin": bytes(relocatable), "f/b.cubin": loose(0x6006402)[:100]})
    assert report.targets[0].summary.endswith("NOT JUDGED: there is no GPU code inside that the audit can judge")
    assert [item.code for item in report.findings if item.where == "f/b.cubin"] == ["not-read"]
    assert not report.ok


@pytest.mark.parametrize("name", ["x/kernels.fatbin", "x/kernels.bin", "x/lib.so.1.alt", "x/tool", "x/bare.so"])
def test_gpu_code_is_found_whatever_the_member_is_called(tmp_path: Path, name: str) -> None:
    data = HOPPER
    if name.endswith(("alt", "tool", ".so")):
        data = shared_object(tmp_path / "lib.so", {"k.cu": HOPPER}).read_bytes()
    if name == "x/tool":
        (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
        work = tmp_path / "lib.so.work"
        command = ["gcc", "-o", str(tmp_path / "tool"), str(tmp_path / "main.c"), str(work / "0.s")]
        subprocess.run(command, cwd=work, check=True)
        data = (tmp_path / "tool").read_bytes()
    if name == "x/bare.so":
        data = data[:40] + bytes(8) + data[48:58] + bytes(6) + data[64:]  # no section headers
    report = audited(tmp_path, {name: data}, "H100@12.9", "A100@12.9")
    assert report.components[name].elf == {"90": 1}
    assert [item.ok for item in report.targets] == [True, False]


def test_archives_are_listed_and_not_judged(tmp_path: Path) -> None:
    work = shared_object(tmp_path / "lib.so", {"k.cu": HOPPER}).with_name("lib.so.work")
    commands = (["gcc", "-c", "0.s", "-o", "0.o"], ["ar", "rc", "libk.a", "0.o"])
    for command in commands:
        subprocess.run(command, cwd=work, check=True)
    report = audited(tmp_path, {"x/libk.a": (work / "libk.a").read_bytes()})
    item = report.components["x/libk.a"]
    assert (item.kind, item.elf) == ("archive", {"90": 1})
    assert "NOT JUDGED" in report.targets[0].summary
    assert not report.ok


def test_a_wheel_without_gpu_code_is_not_ok_and_says_why(tmp_path: Path) -> None:
    report = audited(tmp_path, {"x/__init__.py": b""}, "H100@12.9", "V100")
    assert [item.ok for item in report.targets] == [False, False]
    assert all("NOT JUDGED" in item.summary and not item.judged for item in report.targets)


def test_a_directory_means_the_wheels_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared_object(tmp_path / "a.so", {"k.cu": HOPPER}).read_bytes()
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(folder, {"x/a.so": data}, name="x", version=version)
    assert audit.main([str(folder), "--target", "H100@12.9"], Console()) == 0
    out = capsys.readouterr().out
    assert "x-1.0-cp38" in out
    assert "x-2.0-cp38" in out
    assert out.count("H100 with a CUDA 12.9 driver (575.x): OK: 1 native") == 2


def test_nothing_to_audit_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/readme.txt").write_text("words")
    for name, words in (("empty", "holds nothing"), ("text", "holds nothing"), ("nothere.whl", "there is no")):
        with pytest.raises(UsageError, match=words):
            audit.main([str(tmp_path / name), "--target", "H100"], Console())


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ("nonsense", "bad-tag"),
        ("a!-b-c", "bad-tag"),
        ("\x02-b-c", "bad-tag"),
        ("a..b-c-d", "bad-tag"),
        ("a-b", "bad-tag"),
        ("py3-none-any cp38-abi3", "bad-tag"),
        ("py3-none-any", "tags-differ"),
    ],
)
def test_a_tag_that_is_none_is_a_finding(tmp_path: Path, tags: str, code: str) -> None:
    data = shared_object(tmp_path / "a.so", {"k.cu": HOPPER}).read_bytes()
    report = audit_wheel(make_wheel(tmp_path, {"x/a.so": data}, name="x", stated_tags=tags), [H100])
    found = {item.code: item.level for item in report.findings}
    assert code in found
    assert report.ok == (code != "bad-tag")


@pytest.mark.parametrize("soname", ["libcudart.so.x", "libcudart.so.", "libcudart.so.99999", "libcudart.so.1_2"])
def test_an_odd_soname_is_not_an_error_of_ours(tmp_path: Path, soname: str) -> None:
    runtime = shared_object(tmp_path / "libcudart.so", {}, link=[f"-Wl,-soname,{soname}"])
    path = shared_object(tmp_path / "a.so", {"k.cu": HOPPER}, link=["-Wl,--no-as-needed", str(runtime)])
    report = audit_path(path, [H100])
    assert report.components["a.so"].host.needed[0] == soname
    assert report.components["a.so"].cuda_major == 12
    assert report.ok


def test_missing_containers_are_told_although_the_verdict_is_ok(tmp_path: Path) -> None:
    units = {"a.cu": HOPPER, "b.cu": container(sass("80", "k"))}
    path = shared_object(tmp_path / "a.so", units)
    assert audit_path(path, [H100]).targets[0].summary.endswith("OK: 1 native, 0 compatible, 0 JIT, 1 missing")


def test_the_remedy_is_told_once_and_compiling_only_for_wheels_that_a_recipe_makes(tmp_path: Path) -> None:
    data = shared_object(tmp_path / "a.so", {"k.cu": container(sass("90", "k"), ptx_entry("80", "k"))}).read_bytes()
    others = make_wheel(tmp_path, {"x/a.so": data}, name="x")
    ours = make_wheel(tmp_path, {"x/a.so": data}, version="0.20.1+cu130.sm90.core")
    arguments = [text for gpu in ("A100", "A40", "T4", "V100") for text in ("--target", f"{gpu}@12.8")]
    for wheel, compiled in ((others, False), (ours, True)):
        with pytest.raises(AuditError) as caught:
            audit.main([str(wheel), *arguments], Console())
        assert sum("driver of CUDA 12.9" in text for text in caught.value.fix) == 1
        assert any("compile for it" in text for text in caught.value.fix) == compiled


def test_24_targets_remain_readable_in_120_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared_object(tmp_path / "a.so", {"k.cu": HOPPER}).read_bytes()
    members = {f"x/library_number_{index}.so": data for index in range(9)}
    wheel = make_wheel(tmp_path, members, name="x")
    arguments = [text for minor in range(24) for text in ("--target", f"H100@{11 + minor // 9}.{minor % 9}")]
    arguments = [text.replace("11.8", "12.1").replace("13.6", "13.5") for text in arguments]
    with pytest.raises(AuditError):
        audit.main([str(wheel), *arguments], Console())
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("H100@")]
    assert all(len(line) <= 120 for line in rows)
    assert len(rows) == 48  # two tables: nine libraries do not fit beside each other
    assert sum("1/0/0/0" in row for row in rows) == 48


def test_every_library_says_which_torch_it_fits(tmp_path: Path) -> None:
    sources = {
        "pinned": "void _ZN2at5emptyEv(void); void f(void) { _ZN2at5emptyEv(); }",
        "pinned_too": "extern int _ZTVN3c105ErrorE; int *f(void) { return &_ZTVN3c105ErrorE; }",
        "stable": "void aoti_torch_get_dim(void); void torch_from_blob(void);"
        "void f(void) { aoti_torch_get_dim(); torch_from_blob(); }",
        "older": "void aoti_torch_get_dim(void); void f(void) { aoti_torch_get_dim(); }",
        "newer": "void torch_exception_get_what(void); void f(void) { torch_exception_get_what(); }",
        "none": "int f(void) { return 1; }",
    }
    members = {
        f"x/{name}.so": shared_object(tmp_path / f"{name}.so", {"k.cu": HOPPER}, source=source).read_bytes()
        for name, source in sources.items()
    }
    report = audit_wheel(make_wheel(tmp_path, members, name="x"), [H100])
    assert {name: report.components[f"x/{name}.so"].torch for name in sources} == {
        "pinned": "one release (1 C++ symbols)",
        "pinned_too": "one release (1 C++ symbols)",
        "stable": ">= 2.11 (stable ABI)",
        "older": ">= 2.9 (stable ABI)",
        "newer": ">= 2.13 (stable ABI)",
        "none": "any",
    }


def test_stripped_libraries_are_recognised_by_the_names_of_their_kernels(tmp_path: Path) -> None:
    kernel = "_ZN20marlin_moe_wna166MarlinILl1EEEvv"
    code = container(sass("80", kernel), ptx_entry("80", kernel, isa=(8, 7)))
    path = shared_object(tmp_path / "_moe_C.abi3.so", {"ops.cu": code}, link=["-s"])
    report = audit_path(path, [parse_target("rtx5090@13.0"), A100])
    assert [item.id for item in report.targets[0].hazards if item.level is Level.ERROR] == ["marlin-moe-jit"]
    assert report.targets[0].hazards[0].units == [f"kernel {kernel}"]
    assert report.targets[1].ok


def test_code_for_an_arch_newer_than_the_table_is_a_note_and_no_crash(tmp_path: Path) -> None:
    path = shared_object(tmp_path / "a.so", {"k.cu": container(sass("90", "k"), sass("140", "k"))})
    report = audit_path(path, lambda subject: [parse_target(arch.number) for arch in subject.archs()])
    assert next(item.text for item in report.findings if item.code == "unknown-arch").endswith("sm_140")
    assert [item.arch for item in report.targets] == ["sm_90"]
