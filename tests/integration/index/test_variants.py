"""Wheel variants: what is said of a wheel is true or it is refused; uv, with its preview feature, takes the right."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from obstore.store import MemoryStore
from variantlib.variants_json import VariantsJson

from scripts.commands import index as looking_after
from scripts.commands import publish
from scripts.core.console import Console
from scripts.core.errors import PublishError, UsageError
from scripts.core.files import file_sha256
from scripts.index.object_store import ObjectStore
from scripts.index.store import Stored
from tests.builds import put_report
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
    put_report(wheel)
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


def listed(index: Path) -> dict[str, dict[str, Any]]:
    """Return the variant wheels that the pages list, by label; each must be there, whole, with its metadata."""
    page = json.loads((index / "variants/simple/vllm/index.json").read_text())
    rows = [row for row in page["files"] if row["filename"].endswith(".whl")]
    for row in rows:
        path = index / "variants/simple/vllm" / unquote(row["url"])
        assert file_sha256(path) == row["hashes"]["sha256"]
        assert file_sha256(Path(f"{path}.metadata")) == row["core-metadata"]["sha256"]
    html = (index / "variants/simple/vllm/index.html").read_text()
    assert html.count(".whl</a>") == len(rows)
    return {row["filename"].removesuffix(".whl").rpartition("-")[2]: row for row in rows}


def files(index: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (index / "variants/files").glob("*/*.whl")}


def test_repeating_sends_nothing(tmp_path: Path) -> None:
    wheels = [wheel_for(tmp_path / "w", f"0.15.1+cu130.sm{arch}", arch) for arch in ("80", "90")]
    run(*wheels, "--to", "index", "--variants")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index/variants").rglob("*") if path.is_file()}
    run(*wheels, "--to", "index", "--variants")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_pruned_wheels_variant_leaves_the_pages_at_once_and_the_disk_after_the_grace(tmp_path: Path) -> None:
    index = tmp_path / "index"
    wheels = [wheel_for(tmp_path / "w", f"0.15.1+cu130.sm{arch}", arch) for arch in ("80", "90")]
    run(*wheels, "--to", "index", "--variants")
    before = files(index)
    run("--to", "index", "--prune", wheels[0].name)
    assert set(variants_json(index).variants) == {"cu130_sm90"} == set(listed(index))
    assert files(index) == before  # readers may just fetch it
    run("--to", "index", "--prune", wheels[1].name)
    assert listed(index) == {}
    assert not (index / "variants/simple/vllm/vllm-0.15.1-variants.json").exists()
    run(wheels[1], "--to", "index", "--variants")
    assert set(listed(index)) == {"cu130_sm90"}
    assert files(index) == before  # taken back: nothing was sent again
    run("--to", "index", "--prune", "keep=9", "--grace", "0")
    assert len(files(index)) == 1
    run("--to", "index", "--prune", "keep=9", "--grace", "0")
    run(wheels[0], "--to", "index", "--variants")
    assert set(listed(index)) == {"cu130_sm80", "cu130_sm90"}
    assert sum(path.parent.name.endswith("-1") for path in files(index)) == 1  # where no slow deleter can hit it


def test_other_bytes_under_a_name_that_was_taken_out_get_a_variant_of_their_own(tmp_path: Path) -> None:
    index = tmp_path / "index"
    run(old := wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90"), "--to", "index", "--variants")
    run("--to", "index", "--prune", old.name)
    new = wheel_for(tmp_path / "v", "0.15.1+cu130.sm90", "90a")
    assert new.name == old.name
    run(new, "--to", "index")
    assert listed(index) == {}  # the variant was not of these bytes
    run(new, "--to", "index", "--variants")
    row = listed(index)["cu130_sm90"]
    with zipfile.ZipFile(index / "variants/simple/vllm" / unquote(row["url"])) as made, zipfile.ZipFile(new) as wheel:
        assert made.read("vllm/_C.abi3.so") == wheel.read("vllm/_C.abi3.so")


def test_a_yanked_wheels_variant_is_yanked(tmp_path: Path) -> None:
    index = tmp_path / "index"
    wheel = wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90")
    run(wheel, "--to", "index", "--variants")
    assert listed(index)["cu130_sm90"]["yanked"] is False
    mark = ["index", wheel.name]
    looking_after.main(["yank", *mark, "--reason", 'wrong "on" sm_90'], Console(quiet=True))
    assert listed(index)["cu130_sm90"]["yanked"] == 'wrong "on" sm_90'
    assert 'data-yanked="wrong &quot;on&quot; sm_90"' in (index / "variants/simple/vllm/index.html").read_text()
    looking_after.main(["unyank", *mark], Console(quiet=True))
    assert listed(index)["cu130_sm90"]["yanked"] is False


def bucket(store: MemoryStore, folder: Path) -> Path:
    """Copy what is in a bucket to a folder."""
    for batch in store.list():
        for item in batch:
            path = folder / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(store.get(item["path"]).bytes()))
    return folder


def test_publishers_and_pruners_of_a_bucket_at_once_lose_no_variant_and_list_none_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    monkeypatch.setattr("scripts.index.object_store.from_url", lambda *_, **__: store)
    wheels = [wheel_for(tmp_path / "w", f"0.15.1+cu130.sm{arch}", arch) for arch in ("80", "86", "90", "100")]
    to = ["--to", "s3://bucket"]
    run(wheels[0], *to, "--variants")
    for number in range(4):
        works = [[wheel, *to, "--variants"] for wheel in wheels[1:]]
        works += [[*to, "--prune", wheels[0].name, "--grace", "0"]] if number % 2 == 0 else [[*to, "--prune", "keep=9"]]
        works += [[wheels[0], *to, "--variants"]] if number % 2 else []
        with ThreadPoolExecutor(len(works)) as pool:
            assert list(pool.map(lambda words: run(*words), works)) == [0] * len(works)
        expected = {"cu130_sm86", "cu130_sm90", "cu130_sm100"} | ({"cu130_sm80"} if number % 2 else set())
        assert set(listed(bucket(store, tmp_path / f"seen{number}"))) == expected


def test_a_variants_record_that_is_none_is_named(tmp_path: Path) -> None:
    run(wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90"), "--to", "index", "--variants")
    [record] = (tmp_path / "index/variants/entries").iterdir()
    record.write_text('{"published": 1}')
    with pytest.raises(PublishError, match="is not a record of this index"):
        run("--to", "index", "--prune", "keep=9")


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


def test_two_wheels_that_differ_only_in_their_build_would_be_one_variant(tmp_path: Path) -> None:
    wheel = wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90")
    run(wheel, "--to", "index", "--variants")
    again = shutil.copy(wheel, wheel.with_name(wheel.name.replace("-py3", "-2-py3")))
    shutil.copy(f"{wheel}.report.json", f"{again}.report.json")
    with pytest.raises(PublishError, match="would be the same variant"):
        run(again, "--to", "index", "--variants")
    assert set(listed(tmp_path / "index")) == {"cu130_sm90"}


@pytest.mark.parametrize(("key", "words"), [("entries/", "the variant of vllm"), ("simple/", "the pages of variants")])
def test_a_publisher_that_loses_every_race_gives_up_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, words: str
) -> None:
    store = MemoryStore()
    monkeypatch.setattr("scripts.index.object_store.from_url", lambda *_, **__: store)
    wheel = wheel_for(tmp_path / "w", "0.15.1+cu130.sm90", "90")
    write = ObjectStore.write

    def losing(self: ObjectStore, name: str, data: bytes, *, over: Stored | None) -> Stored | None:
        return None if name.startswith(f"variants/{key}") else write(self, name, data, over=over)

    monkeypatch.setattr(ObjectStore, "write", losing)
    with pytest.raises(PublishError, match=words):
        run(wheel, "--to", "s3://bucket", "--variants")
    monkeypatch.setattr(ObjectStore, "write", write)
    run(wheel, "--to", "s3://bucket", "--variants")  # running it again goes on
    assert set(listed(bucket(store, tmp_path / "seen"))) == {"cu130_sm90"}
