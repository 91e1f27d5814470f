from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from scripts.audit import subjects as audit_subjects
from scripts.audit.collect import audit_path
from scripts.audit.models import AuditReport
from scripts.audit.show import html, show, signs
from scripts.commands import audit
from scripts.core.console import Console
from scripts.core.errors import AuditError, UsageError
from scripts.core.paths import ROOT
from scripts.recipe.files import load_recipe
from tests.fatbins import container, ptx_entry, sass, shared_object
from tests.wheels import make_wheel

UNITS = {
    "cache.cu": container(sass("80", "c"), sass("120", "c")),
    "marlin.cu": container(sass("80", "m"), ptx_entry("80", "m")),
    "host.cu": container(sass("80"), ptx_entry("80")),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    library = shared_object(folder / "x.so", UNITS).read_bytes()
    hopper = shared_object(folder / "h.so", {"h.cu": container(sass("90a", "h"))}).read_bytes()
    return make_wheel(folder, {"vllm/_C.abi3.so": library, "vllm/_vllm_fa3_C.abi3.so": hopper, "vllm/<b>.so": b"<"})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return make_wheel(
        folder, {"vllm/_C.abi3.so": shared_object(folder / "x.so", UNITS).read_bytes()}, version="9.9.9+cu128.sm80"
    )


def test_a_met_target_gives_0_and_a_table(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([str(good), "--target", "A40@12.0"], Console()) == 0
    out = capsys.readouterr().out
    assert "A40 with a CUDA 12.0 driver (525.x): OK: 0 native, 3 compatible, 0 JIT" in out
    assert "80:3 120:1" in out
    assert "0/3/0/0" in out


def test_an_unmet_target_is_exit_code_9_with_why_and_remedies(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AuditError) as caught:
        audit.main([str(good), "--target", "rtx5090@12.8", "--target", "T4"], Console())
    assert caught.value.exit_code == 9
    assert "2 of 3 kernel containers need a CUDA 12.9 driver" in caught.value.why
    assert caught.value.fix == ["a driver of CUDA 12.9 (575.51.03) or later on the RTX 5090"]
    assert "NOT OK" in capsys.readouterr().out


def test_a_recipe_names_libraries_that_may_have_nothing_for_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    general = shared_object(tmp_path / "g.so", {"a.cu": container(sass("80", "k"), sass("90", "k"))}).read_bytes()
    newer = shared_object(tmp_path / "n.so", {"b.cu": container(sass("90", "k"))}).read_bytes()
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": general, "vllm/_moe_C.abi3.so": newer}, version="9.9.9+cu130.sm80")
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "vllm-0.20.1-cu130"\ncomponents = ["_C", "_moe_C"]\n')
    command = [str(wheel), "--recipe", str(recipe), "--target", "A100@13.0"]
    with pytest.raises(AuditError) as caught:
        audit.main(command, Console())
    assert "MoE kernels: no code for it" in caught.value.why
    recipe.write_text(recipe.read_text() + '[optional_libraries._moe_C]\narchs = "8.0"\nlost = "all MoE models"\n')
    assert audit.main(command, Console()) == 0
    assert "it goes without all MoE models [mine: _moe_C]" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(AuditError):  # for 8.0 only
        audit.main([*command[:-1], "V100@12.8"], Console())


def test_the_remedy_for_a_driver_that_dropped_the_gpu_is_an_older_one(tmp_path: Path) -> None:
    library = shared_object(tmp_path / "x.so", {"a.cu": container(sass("70", "k"))})
    with pytest.raises(AuditError) as caught:
        audit.main([str(library), "--target", "V100@590"], Console())
    assert "drivers after 580.x no longer support Volta" in caught.value.why
    assert caught.value.fix == ["a driver of CUDA 12.0 (525.60.13) or later, up to 580.x on the V100"]


def test_the_remedy_for_ptx_newer_than_the_table_names_no_release_that_nobody_knows(tmp_path: Path) -> None:
    library = shared_object(tmp_path / "x.so", {"a.cu": container(ptx_entry("90", "k", isa=(9, 9)))})
    with pytest.raises(AuditError) as caught:
        audit.main([str(library), "--target", "H100@13.5"], Console())
    assert caught.value.fix == ["a driver newer than CUDA 13.5's (the last that wheelsmith knows) on the H100"]


def test_a_finding_alone_fails_the_audit_too(wheel: Path) -> None:
    with pytest.raises(AuditError) as caught:
        audit.main([str(wheel), "--target", "A100"], Console())
    assert caught.value.why.startswith("vllm/<b>.so: it is called a shared object and is none; ")
    assert "--help" in caught.value.fix[0]


def test_json_follows_its_published_schema(good: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    audit.main([str(good), "--target", "rtx5090@12.9", "--target", "A40", "--json", str(target)], Console())
    report = json.loads(target.read_text())
    schema = json.loads((ROOT / "docs/audit.schema.json").read_text())
    jsonschema.validate(report, schema)
    first = report["targets"][0]
    assert {name: first[name] for name in ("gpu", "driver", "ok", "native", "compatible", "jit", "missing")} == {
        "gpu": "RTX 5090",
        "driver": "12.9",
        "ok": True,
        "native": 1,
        "compatible": 0,
        "jit": 2,
        "missing": 0,
    }
    assert first["components"]["vllm/_C.abi3.so"]["elf"] == {"80": 3, "120": 1}
    assert first["components"]["vllm/_C.abi3.so"]["ptx"] == {"80": 2}
    assert report["targets"][1]["driver"] is None
    assert report["schema_version"] == 1


def test_the_published_schema_is_that_of_the_models() -> None:
    assert json.loads((ROOT / "docs/audit.schema.json").read_text()) == AuditReport.model_json_schema()


def test_html_is_one_page_that_loads_nothing_and_escapes_names(wheel: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with pytest.raises(AuditError):
        audit.main([str(wheel), "--target", "rtx5090@12.8", "--html", str(page)], Console())
    text = page.read_text()
    assert "src=" not in text
    assert "http" not in text
    assert "<b>.so" not in text
    assert "vllm/&lt;b&gt;.so" in text
    assert "1 native, 0 compatible, 2 JIT, 0 missing" in text
    assert "host.cu</code> compute_80, PTX 8.8 (CUDA 12.9), no kernels" in text


def test_html_and_table_of_a_file_without_gpu_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = audit_path(shared_object(tmp_path / "plain.so", {}), [])
    show(report, Console())
    assert "containers" not in capsys.readouterr().out
    assert "<p>nothing</p>" in html(report)
    assert "not a wheel" in html(report)


def test_signs_fall_back_to_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    class Latin:
        encoding = "latin-1"

    monkeypatch.setattr("sys.stdout", Latin())
    assert signs()["ok"] == "ok"
    Latin.encoding = "utf-8"
    assert signs()["ok"] == "\u2713"


def test_several_wheels_take_no_report_file(good: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take one wheel"):
        audit.main([str(good), str(good), "--json", str(tmp_path / "x")], Console())
    assert audit.main([str(good), str(good), "--target", "A100"], Console()) == 0


def test_without_targets_the_archs_of_the_version_label_are_judged(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([str(good)], Console()) == 0
    assert "GPU 8.0: needs a CUDA 12.0 driver (525.60.13) or later: 3 native" in capsys.readouterr().out


def test_without_targets_label_or_recipe_the_archs_inside_are_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.audit.subjects.recipe_names", list)
    path = shared_object(tmp_path / "libx.so", {"a": container(sass("86", "k"), sass("90", "k"))})
    assert audit.main([str(path)], Console()) == 0
    out = capsys.readouterr().out
    assert "GPU 8.6: needs" in out
    assert "GPU 9.0: needs" in out


def test_the_default_recipe_gives_the_targets_of_others_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("scripts.audit.subjects.DEFAULT_RECIPE", "quickstart")
    for isa, cuda in (((9, 0), "13.0"), ((9, 2), "13.2"), ((8, 4), "12.4")):
        code = container(sass("90", "k"), sass("120", "k"), ptx_entry("90", "k", isa=isa))
        path = shared_object(tmp_path / f"lib{cuda}.so", {"a": code})
        assert audit.main([str(path), "--json", str(tmp_path / "r.json")], Console()) == 0
        labels = [(item["gpu"], item["driver"]) for item in json.loads((tmp_path / "r.json").read_text())["targets"]]
        assert labels == [("H100", cuda), ("RTX 5090", max(cuda, "12.8"))]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("vllm-0.20.1+cu130.quickstart-cp38-abi3-linux_x86_64.whl", "quickstart"),
        ("vllm-0.20.1+cu130.sm90.quickstart-cp38-abi3-linux_x86_64.whl", "quickstart"),
        ("vllm-0.20.1+cu130.core-cp38-abi3-linux_x86_64.whl", "vllm-0.20.1-cu130"),
        ("vllm-0.20.1+cu129.core-cp38-abi3-linux_x86_64.whl", ""),
        ("xformers-0.20.1+cu130.core-cp38-abi3-linux_x86_64.whl", ""),
        ("vllm-0.20.1-cp38-abi3-linux_x86_64.whl", "vllm-0.20.1-cu130"),
        ("vllm-0.3.0-cp38-abi3-linux_x86_64.whl", ""),
        ("libx.so", ""),
    ],
)
def test_a_wheels_recipe_is_found_by_its_name_and_label(name: str, recipe: str) -> None:
    found = audit_subjects.matching_recipe(Path(name))
    assert (found.name if found else "") == recipe


def test_the_recipes_archs_and_cuda_are_the_default_targets() -> None:
    recipe = load_recipe("quickstart")
    targets = audit_subjects.targets_for(recipe, ())
    assert not callable(targets)
    assert [item.label for item in targets] == ["H100@13.0", "RTX 5090@13.0"]


def test_a_recipe_on_the_command_line_says_what_to_expect(good: Path) -> None:
    with pytest.raises(AuditError) as caught:
        audit.main([str(good), "--recipe", "quickstart", "--target", "A100"], Console())
    assert "cumem_allocator is in recipe quickstart and not in the wheel" in caught.value.why
