"""Wheel variants: what is said of a wheel is true or it is refused; uv, with its preview feature, takes the right."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from variantlib.variants_json import VariantsJson

from scripts.commands import publish
from scripts.core.console import Console
from scripts.core.errors import PublishError, UsageError
from scripts.core.files import file_sha256
from tests.fatbins import container, sass, shared_object
from tests.integration.index_servers import clean_environment, serve, tool, venv
from tests.wheels import make_wheel

METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nRequires-Python: >=3.10,<3.14\n\nText.\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WHEELSMITH_INVOKED_FROM", str(tmp_path))


def wheel_for(folder: Path, version: str, arch: str) -> Path:
    """Return a wheel whose one kernel is for this arch (`90`, `120a`), with the report of a passed audit."""
    folder.mkdir(exist_ok=True)
    library = shared_object(folder / f"{arch}.so", {"a.cu": container(sass(arch, "k"))}).read_bytes()
    members = {"vllm/_C.abi3.so": library, "vllm/__init__.py": f"VERSION = {version!r}\n".encode()}
    wheel = make_wheel(folder, members, version=version, metadata=METADATA, tags="py3-none-any")
    about = {"schema": 1, "wheel": {"sha256": file_sha256(wheel)}, "audit": {"ok": True}}
    wheel.with_name(wheel.name + ".report.json").write_text(json.dumps(about))
    return wheel


def run(*arguments: object) -> int:
    return publish.main([str(word) for word in arguments], Console(quiet=True))


def variants_json(index: Path) -> VariantsJson:
    return VariantsJson(json.loads((index / "variants/simple/vllm/vllm-0.15.1-variants.json").read_text()))


def test_uv_installs_the_variant_that_fits_the_gpu(tmp_path: Path) -> None:
    wheels = [wheel_for(tmp_path / "w", f"0.15.1+cu130.sm{arch}", arch) for arch in ("80", "90")]
    run(*wheels, "--to", "index", "--variants")
    assert set(variants_json(tmp_path / "index").variants) == {"cu130_sm80", "cu130_sm90"}
    for arch, label in (("8.6", "sm80"), ("9.0", "sm90")):
        python = venv(tmp_path / f"venv{arch}")
        environment = {
            **clean_environment(tmp_path),
            "UV_PREVIEW_FEATURES": "wheel-variants",
            "NV_VARIANT_PROVIDER_FORCE_CUDA_DRIVER_VERSION": "13.0",
            "NV_VARIANT_PROVIDER_FORCE_SM_ARCH": arch,
        }
        with serve(tmp_path / "index") as server:
            url = f"{server.url}/variants/simple/"
            command = [tool("uv"), "pip", "install", "--python", str(python), "--default-index", url, "vllm==0.15.1"]
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        show = [str(python), "-c", "import vllm; print(vllm.VERSION)"]
        assert label in subprocess.run(show, cwd=tmp_path, check=True, capture_output=True, text=True).stdout


def test_a_variant_is_the_same_wheel_under_its_public_version(tmp_path: Path) -> None:
    run(wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90"), "--to", "index", "--variants")
    [made] = (tmp_path / "index/variants/files").glob("*/*.whl")
    assert made.name == "vllm-0.15.1-py3-none-any-cu130_sm90.whl"
    with zipfile.ZipFile(made) as archive:
        assert b"Version: 0.15.1\n" in archive.read("vllm-0.15.1.dist-info/METADATA")
        variant = json.loads(archive.read("vllm-0.15.1.dist-info/variant.json"))
        assert b"vllm-0.15.1.dist-info/variant.json,sha256=" in archive.read("vllm-0.15.1.dist-info/RECORD")
    assert variant["variants"]["cu130_sm90"]["nvidia"]["sm_arch"] == ["90_real"]
    page = (tmp_path / "index/variants/simple/vllm/index.html").read_text()
    assert f"#sha256={file_sha256(made)}" in page
    assert "vllm-0.15.1-variants.json" in page


@pytest.mark.parametrize(("arch", "ok"), [("120a", False), ("90a", True), ("100a", False), ("120", True)])
def test_code_that_the_format_has_no_word_for_is_refused_before_anything_is_sent(
    tmp_path: Path, arch: str, *, ok: bool
) -> None:
    wheel = wheel_for(tmp_path / "w", f"0.15.1+cu130.sm{arch}", arch)
    if ok:
        assert run(wheel, "--to", "index", "--variants") == 0
        return
    with pytest.raises(PublishError, match="cannot be a wheel variant") as caught:
        run(wheel, "--to", "index", "--variants")
    assert "the format knows no such code" in caught.value.why
    assert not (tmp_path / "index/files").exists()


def test_repeating_sends_nothing_and_pruned_wheels_take_their_variants_along(tmp_path: Path) -> None:
    wheels = [wheel_for(tmp_path / "w", f"0.15.1+cu130.sm{arch}", arch) for arch in ("80", "90")]
    run(*wheels, "--to", "index", "--variants")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index/variants").rglob("*") if path.is_file()}
    run(*wheels, "--to", "index", "--variants")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run("--to", "index", "--prune", wheels[0].name)
    assert set(variants_json(tmp_path / "index").variants) == {"cu130_sm90"}
    assert len(list((tmp_path / "index/variants/files").glob("*/*.whl"))) == 1


def test_wheels_that_would_be_one_variant_or_were_not_audited_are_refused(tmp_path: Path) -> None:
    wheel = wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90")
    with pytest.raises(PublishError, match="its audit names no GPU"):
        run(wheel, "--to", "index", "--variants", "--no-audit")
    with pytest.raises(UsageError, match="--variants is for static indexes"):
        run(wheel, "--to", "https://localhost/x/", "--check-url", "https://localhost/y/", "--variants")
    run(wheel, "--to", "index", "--variants")
    twin = wheel_for(tmp_path / "v", "0.15.1+cu130_sm90", "90")
    with pytest.raises(PublishError, match="has another"):
        run(twin, "--to", "index", "--variants")
