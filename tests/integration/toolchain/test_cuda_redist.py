"""NVIDIA's archives from a server of our own that has the manifest's real shape, good and broken in every way."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts.core.cache import Cache
from scripts.core.errors import FetchError, ToolchainError
from scripts.downloads.download import open_client
from scripts.downloads.indexes import Indexes
from scripts.recipe.model import Redist
from scripts.toolchain.redist import Part, RedistArchive, RedistToolkit, _present, provide_redist
from tests.accesses import make_access

NVCC = b"#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n"
STATIC = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(20_000))  # does not compress
FILES = {
    "cuda_nvcc": {
        "bin/nvcc": NVCC, "bin/ptxas": b"p", "bin/cudafe++": b"c", "bin/fatbinary": b"f", "nvvm/bin/cicc": b"i",
        "LICENSE": b"nvcc licence", "include/crt/host_defines.h": b"h",
    },
    "cuda_cudart": {
        "include/cuda_runtime.h": b"r", "lib/libcudart.so.12": b"12", "lib/stubs/libcuda.so": b"stub",
        "LICENSE": b"cudart licence", "lib/libcudart_static.a": STATIC,
    },
    "cuda_nsight": {"bin/nsight": b"not needed"},
}  # fmt: skip


def archive(name: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(f"{name}-linux-x86_64-12.8.90-archive/{path}")
            member.size, member.mode = len(data), 0o755 if path.startswith(("bin/", "nvvm/bin")) else 0o644
            tar.addfile(member, io.BytesIO(data))
        if name == "cuda_cudart":
            link = tarfile.TarInfo(f"{name}-linux-x86_64-12.8.90-archive/lib/libcudart.so")
            link.type, link.linkname = tarfile.SYMTYPE, "libcudart.so.12"
            tar.addfile(link)
    return buffer.getvalue()


ARCHIVES = {name: archive(name, files) for name, files in FILES.items()}


@dataclass
class Site:
    """What the server holds and does."""

    port: int = 0
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int = 0
    cuts: int = 0
    delay: float = 0.0
    ranges: list[str] = field(default_factory=list)
    active: int = 0
    most_active: int = 0

    def put(self, name: str, data: bytes) -> None:
        """Offer an archive and enter it into the manifest as NVIDIA does."""
        path = f"{name}/linux-x86_64/{name}-linux-x86_64-12.8.90-archive.tar.xz"
        self.files[path] = data
        self.manifest[name] = {
            "name": name, "license": "CUDA Toolkit", "license_path": f"{name}/LICENSE.txt", "version": "12.8.90",
            "linux-x86_64": {
                "relative_path": path, "sha256": hashlib.sha256(data).hexdigest(),
                "md5": hashlib.md5(data).hexdigest(), "size": str(len(data)),
            },
            "windows-x86_64": {"relative_path": "x.zip", "sha256": "0" * 64, "md5": "0", "size": "1"},
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        site = self.site
        path = self.path.removeprefix("/redist/")
        data = json.dumps(site.manifest).encode() if path == "redistrib_12.8.1.json" else site.files.get(path)
        if data is None:
            return self.send_error(404)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start:
            site.ranges.append(self.headers["Range"])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        site.active += 1
        site.most_active = max(site.most_active, site.active)
        time.sleep(site.delay)
        body = data[start:]
        if site.cuts and path.endswith(".xz"):
            site.cuts -= 1
            body, self.close_connection = body[: site.cut_after], True
        self.wfile.write(body)
        site.active -= 1
        return None


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site(manifest={"release_date": "2025-03-06", "release_label": "12.8.1", "release_product": "cuda"})
    for name, data in ARCHIVES.items():
        state.put(name, data)
    handler = type("Handler", (_Handler,), {"site": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "cache")


def redist(site: Site, **more: Any) -> Redist:
    components = ("cuda_nvcc", "cuda_cudart")
    data = {"release": "12.8.1", "base_url": f"http://127.0.0.1:{site.port}/redist/", "components": components, **more}
    return Redist.model_validate(data)


def provide(item: Redist, cache: Cache, **more: Any) -> RedistToolkit:
    access = make_access(cache, indexes=Indexes(), **more)
    with open_client(access) as client:
        return provide_redist(item, client, access)


def test_only_the_components_wanted_are_merged_into_one_cuda_home(site: Site, cache: Cache) -> None:
    toolkit = provide(redist(site), cache)
    home = toolkit.cuda_home
    assert (home / "bin/nvcc").stat().st_mode & 0o100
    assert (home / "include/cuda_runtime.h").is_file()
    assert (home / "lib64/libcudart.so").read_bytes() == b"12"
    assert (home / "lib64/stubs/libcuda.so").is_file()
    assert (home / "licenses/cuda_nvcc/LICENSE").read_bytes() == b"nvcc licence"
    assert (home / "licenses/cuda_cudart/LICENSE").read_bytes() == b"cudart licence"
    assert not (home / "bin/nsight").exists()
    assert toolkit.components == {"cuda_nvcc": "12.8.90", "cuda_cudart": "12.8.90"}
    assert toolkit.size == len(ARCHIVES["cuda_nvcc"]) + len(ARCHIVES["cuda_cudart"])


def test_a_second_run_needs_no_network(site: Site, cache: Cache) -> None:
    first = provide(redist(site), cache)
    site.files.clear()
    site.manifest.clear()
    assert provide(redist(site), cache, offline=True) == first


def test_archives_are_fetched_side_by_side(site: Site, cache: Cache) -> None:
    site.delay = 0.3
    provide(redist(site), cache)
    assert site.most_active == 2


def test_a_truncated_download_is_resumed_where_it_broke(site: Site, cache: Cache) -> None:
    site.cut_after, site.cuts = 300_000, 2
    toolkit = provide(redist(site), cache)
    assert (toolkit.cuda_home / "bin/nvcc").is_file()
    assert site.ranges
    assert all(int(item[6:-1]) > 200_000 for item in site.ranges)


def test_a_download_that_always_breaks_is_given_up_and_kept_for_the_next_run(site: Site, cache: Cache) -> None:
    site.cut_after, site.cuts = 1, 99
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        provide(redist(site), cache)
    assert "base_url" in caught.value.fix[0]
    assert "quickstart" in caught.value.fix[2]
    assert list(cache.root.glob("redist/*/bin")) == []
    site.cuts = 0
    assert provide(redist(site), cache).release == "12.8.1"


def test_corrupt_bytes_are_refused_and_deleted(site: Site, cache: Cache) -> None:
    path = site.manifest["cuda_nvcc"]["linux-x86_64"]["relative_path"]
    site.files[path] = site.files[path][:-8] + b"damaged!"
    with pytest.raises(FetchError, match="is not the pinned file"):
        provide(redist(site), cache)
    assert not list((cache.root / "downloads" / site.manifest["cuda_nvcc"]["linux-x86_64"]["sha256"]).glob("*"))


def test_a_size_that_differs_from_the_manifest_is_refused(site: Site, cache: Cache) -> None:
    site.manifest["cuda_nvcc"]["linux-x86_64"]["size"] = "7"
    with pytest.raises(ToolchainError, match="is not what the recipe needs") as caught:
        provide(redist(site), cache)
    assert "the manifest says 7" in caught.value.why


def test_an_archive_that_is_not_there_is_named(site: Site, cache: Cache) -> None:
    site.files.clear()
    with pytest.raises(FetchError, match=r"cuda_(nvcc|cudart).*refused") as caught:
        provide(redist(site), cache)
    assert "404" in caught.value.why


def test_a_manifest_that_is_not_there_is_named(site: Site, cache: Cache) -> None:
    with pytest.raises(FetchError, match=r"redistrib_12\.8\.9\.json could not be fetched") as caught:
        provide(redist(site, release="12.8.9"), cache)
    assert "404" in caught.value.why


def test_a_host_that_cannot_be_reached_is_named(site: Site, cache: Cache) -> None:
    with pytest.raises(FetchError, match="could not be fetched"):
        provide(redist(site, base_url="http://127.0.0.1:9/redist"), cache)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"release_label": "12.9.0"}, "release '12.9.0'"),
        ({"cuda_nvcc": {"version": "1"}}, "has no component 'cuda_nvcc'"),
        ({"cuda_nvcc": {"linux-x86_64": {"relative_path": "a.tar.xz"}}}, "sha256"),
        (
            {"cuda_nvcc": {"linux-x86_64": {"relative_path": "../a.tar.xz", "sha256": "0" * 64, "size": "1"}}},
            "not a relative path",
        ),
        (
            {"cuda_nvcc": {"linux-x86_64": {"relative_path": "http://x/a.tar.xz", "sha256": "0" * 64, "size": "1"}}},
            "not a relative path",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_and_not_kept(site: Site, cache: Cache, change: dict[str, Any], why: str) -> None:
    good = dict(site.manifest)
    site.manifest.update(change)
    with pytest.raises(ToolchainError, match="is not what the recipe needs") as caught:
        provide(redist(site), cache)
    assert why in caught.value.why
    site.manifest.update(good)
    assert provide(redist(site), cache).release == "12.8.1"


@pytest.mark.parametrize("body", [b"<html>", b"[]"])
def test_a_login_page_instead_of_a_manifest_is_refused(site: Site, cache: Cache, body: bytes) -> None:
    site.files["redistrib_12.8.2.json"] = body
    with pytest.raises(ToolchainError, match="is not what the recipe needs"):
        provide(redist(site, release="12.8.2"), cache)


def test_a_digest_pinned_in_the_recipe_outranks_the_manifest(site: Site, cache: Cache) -> None:
    with pytest.raises(ToolchainError) as caught:
        provide(redist(site, sha256={"cuda_nvcc": "1" * 64}), cache)
    assert "the recipe pins" in caught.value.why


def test_offline_without_the_archives_says_so(site: Site, cache: Cache) -> None:
    with pytest.raises(FetchError, match="not in the cache"):
        provide(redist(site), cache, offline=True)


def test_components_without_a_compiler_are_not_a_toolkit(site: Site, cache: Cache) -> None:
    with pytest.raises(ToolchainError, match="hold no bin/nvcc"):
        provide(redist(site, components=("cuda_cudart",)), cache)


def test_two_components_must_not_bring_different_files_of_one_name(site: Site, cache: Cache) -> None:
    site.put("cuda_extra", archive("cuda_extra", {"bin/ptxas": b"another"}))
    site.put("cuda_same", archive("cuda_same", {"bin/ptxas": b"p"}))
    with pytest.raises(ToolchainError, match=r"different files: ptxas"):
        provide(redist(site, components=("cuda_nvcc", "cuda_cudart", "cuda_extra")), cache)
    assert provide(redist(site, components=("cuda_nvcc", "cuda_cudart", "cuda_same")), cache)


def test_an_archive_that_writes_outside_is_refused(site: Site, cache: Cache) -> None:
    site.put("cuda_evil", archive("cuda_evil", {"../../evil": b"x"}))
    with pytest.raises(FetchError, match="is not allowed"):
        provide(redist(site, components=("cuda_nvcc", "cuda_cudart", "cuda_evil")), cache)


def test_bytes_are_counted_while_a_download_renames_its_file(cache: Cache) -> None:
    part = Part("cuda_nvcc", "12.8.90", RedistArchive(relative_path="a.tar.xz", sha256="0" * 64, size=4))
    whole = cache.place(f"downloads/{part.archive.sha256}", "a.tar.xz")
    partial, ended = whole.with_name(".a.tar.xz.part"), threading.Event()
    assert _present(cache, part) == 0
    partial.write_bytes(b"abcd")

    def rename() -> None:
        while not ended.is_set():
            partial.rename(whole)
            whole.rename(partial)

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        counted = {_present(cache, part) for _ in range(2000)}
    finally:
        ended.set()
        thread.join()
    assert counted <= {0, 4, 8}
    assert _present(cache, part) == 4
