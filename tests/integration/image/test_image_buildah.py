"""The runtime image with a real buildah (root, chroot isolation) on images of a few bytes, in a store of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.commands import runtime_image
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import ImageError
from scripts.image.buildah import Buildah
from scripts.image.checks import read_facts
from scripts.image.engine import Engine, Plan
from tests.accesses import make_access
from tests.fatbins import container, sass, shared_object
from tests.wheels import make_wheel

pytestmark = pytest.mark.skipif(
    shutil.which("buildah") is None or os.geteuid() != 0, reason="needs buildah (apt-get install buildah) and root"
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give buildah a store of 48 MB in memory, which is gone afterwards."""
    folder = tmp_path / "store"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=False).returncode:
        pytest.skip("cannot mount here")
    conf = tmp_path / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def engine(tmp_path: Path, store: Path) -> Engine:
    return Buildah(tmp_path / "image.log", make_access(Cache.open(tmp_path / "cache")))


def root_filesystem(folder: Path, size: int = 10) -> Path:
    """Return a tar with one file of `size` bytes."""
    (folder / "file").write_bytes(os.urandom(size))
    with tarfile.open(folder / "root.tar", "w") as tar:
        tar.add(folder / "file", "file")
    return folder / "root.tar"


def containers() -> str:
    return subprocess.run(["buildah", "containers", "-q"], capture_output=True, text=True, check=True).stdout


def test_a_base_is_imported_built_on_and_measured_layer_by_layer(tmp_path: Path, engine: Engine) -> None:
    engine.import_tar(root_filesystem(tmp_path), "localhost/tiny:1")
    (tmp_path / "Dockerfile.runtime").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS runtime\nCOPY file /copy\n")
    plan = Plan(tmp_path, "runtime", "localhost/built:1", {"BASE_IMAGE": "localhost/tiny:1"}, labels={"a": "b"})
    engine.build(plan)
    layers = engine.layers("localhost/built:1")
    assert len(layers) == 2
    assert all(layer.size > 0 for layer in layers)
    assert engine.inspect("localhost/built:1")["Docker"]["config"]["Labels"]["a"] == "b"
    with engine.folder("localhost/built:1", "/copy") as copy:
        assert copy.read_bytes() == (tmp_path / "file").read_bytes()
    assert engine.storage().is_dir()
    engine.tag("localhost/built:1", "localhost/named:1")
    engine.untag("localhost/built:1", "localhost/tiny:1")
    assert engine.has("localhost/named:1")
    assert not engine.has("localhost/built:1")
    assert containers() == ""


def test_an_image_that_loses_its_name_leaves_its_layers_to_the_next_build(tmp_path: Path, engine: Engine) -> None:
    engine.import_tar(root_filesystem(tmp_path), "localhost/tiny:1")
    (tmp_path / "Dockerfile.runtime").write_text("FROM localhost/tiny:1 AS runtime\nCOPY file /a\nCOPY file /b\n")
    plan = Plan(tmp_path, "runtime", "localhost/unfinished:1", {})
    for times in (0, 2):
        engine.build(plan)
        assert engine.log.read_text().count("Using cache") == times
        engine.untag("localhost/unfinished:1", "localhost/tiny:1")
        assert not engine.has("localhost/unfinished:1")
    assert engine.has("localhost/tiny:1")


def test_a_base_without_python_is_an_image_error(tmp_path: Path, engine: Engine) -> None:
    engine.import_tar(root_filesystem(tmp_path), "localhost/tiny:1")
    with pytest.raises(ImageError, match="has no Python that runs"):
        read_facts(engine, "localhost/tiny:1")
    assert containers() == ""


def test_a_disk_that_fills_in_the_middle_leaves_no_container_and_no_tag(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(ImageError) as caught:
        engine.import_tar(root_filesystem(tmp_path, 60_000_000), "localhost/large:1")
    assert "no space left" in caught.value.why
    assert containers() == ""
    assert not engine.has("localhost/large:1")


def test_a_build_that_fills_the_disk_leaves_no_container_no_tag_and_no_files(tmp_path: Path, engine: Engine) -> None:
    engine.import_tar(root_filesystem(tmp_path), "localhost/tiny:1")
    context = tmp_path / "context"
    context.mkdir()
    (context / "large").write_bytes(os.urandom(60_000_000))
    (context / "Dockerfile.runtime").write_text("FROM localhost/tiny:1 AS runtime\nCOPY large /large\n")
    with pytest.raises(ImageError) as caught:
        engine.build(Plan(context, "runtime", "localhost/built:1", {}))
    assert "no space left" in caught.value.why
    assert containers() == ""
    assert not engine.has("localhost/built:1")
    assert list(tmp_path.glob("wheelsmith-layers-*")) == []


def test_a_step_that_fails_leaves_no_container_and_no_tag(tmp_path: Path, engine: Engine) -> None:
    engine.import_tar(root_filesystem(tmp_path), "localhost/tiny:1")
    (tmp_path / "Dockerfile.runtime").write_text("FROM localhost/tiny:1 AS runtime\nRUN true\n")
    with pytest.raises(ImageError, match="building target runtime failed"):
        engine.build(Plan(tmp_path, "runtime", "localhost/built:1", {}))
    assert containers() == ""
    assert not engine.has("localhost/built:1")


def test_a_registry_that_cannot_be_reached_is_an_image_error(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = shared_object(tmp_path / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    wheel = make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="0.15.1+cu128.sm86")
    words = [
        "--wheel",
        str(wheel),
        "--engine",
        "buildah",
        "--base",
        "127.0.0.1:9/python:3",
        "--cache",
        str(tmp_path / "c"),
    ]
    with pytest.raises(ImageError) as caught:
        runtime_image.main(words, Console(quiet=True))
    assert caught.value.why == "a registry or package index cannot be reached"
