"""Bundles: written where there is a network, read where there is none."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.commands import fetch as commands_fetch
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import FetchError, UsageError
from scripts.core.files import file_sha256
from scripts.downloads.access import Access
from scripts.downloads.listing import IndexSource
from scripts.downloads.mirrors import parse_mirrors
from scripts.recipe.files import load_recipe
from scripts.recipe.model import Recipe
from scripts.recipe.sources import GitSource, SdistSource
from scripts.sources.bundle import Manifest, read_bundle, write_bundle
from scripts.sources.fetch import fetch_archive
from scripts.sources.git_source import fetch_git
from tests.accesses import make_access
from tests.integration.git_servers import Upstream, git

QUIET = Console(quiet=True)


def bundled(recipe: Recipe, target: Path, access: Access) -> Manifest:
    def archive_of(source: IndexSource) -> Path:
        return fetch_archive(source, make_access(access.cache, offline=True)).path

    return write_bundle(recipe, target, access=access, archive_of=archive_of)


@dataclass(frozen=True)
class Prepared:
    """What all tests start from, made once: servers' repositories, an archive, a cache with all, and the bundle."""

    folder: Path
    recipe: Recipe


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    recipe = made_recipe(folder)
    cache = Cache.open(folder / "online")
    archive = folder / "dep-1.tar.gz"
    place = cache.place(f"downloads/{file_sha256(archive)}", archive.name)
    place.write_bytes(archive.read_bytes())
    access = make_access(cache, mirrors=parse_mirrors((folder / "srv").as_uri()))
    manifest = bundled(recipe, folder / "sources.tar", access)
    assert len(manifest.members) == 4
    return Prepared(folder, recipe)


@pytest.fixture
def recipe(prepared: Prepared, tmp_path: Path) -> Recipe:
    """The recipe, with the repositories, the archive and the bundle copied into `tmp_path`."""
    shutil.copytree(prepared.folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    return prepared.recipe


@pytest.fixture
def bundle(recipe: Recipe, tmp_path: Path) -> Path:
    assert (tmp_path / "srv" / "vllm.git").is_dir()
    return tmp_path / "sources.tar"


def made_recipe(folder: Path) -> Recipe:
    """The production recipe in small: vLLM from git, one dependency with a submodule, one archive."""
    root = folder / "srv"
    root.mkdir()
    cutlass = Upstream.create(root, "cutlass")
    cutlass.commit({"include/a.h": b"a\n", "examples/b.cu": b"b\n"})
    flash = Upstream.create(root, "flash")
    modules = b'[submodule "c"]\n\tpath = csrc/cutlass\n\turl = https://github.com/cutlass.git\n'
    flash.commit({".gitmodules": modules, "csrc/f.cu": b"f\n", "csrc/cutlass": cutlass.head})
    vllm = Upstream.create(root, "vllm")
    vllm.commit({"old.txt": b"old\n"})
    vllm.commit({"CMakeLists.txt": b"project(vllm)\n", "docs/guide.md": b"g\n"})
    archive = folder / "dep-1.tar.gz"
    archive.write_bytes(b"an archive")
    base = load_recipe("vllm-0.15.1-cu128").model_dump(mode="json") | {"archs": ["9.0"]}

    def source(name: str, commit: str, **more: Any) -> dict[str, Any]:
        return {"kind": "git", "repository": f"https://github.com/{name}.git", "commit": commit, **more}

    modules_pinned = {"csrc/cutlass": cutlass.head}
    wanted = ["csrc/cutlass/include"]
    data = {
        **base,
        "source": source("vllm", vllm.head),
        "dependencies": {
            "flash": {
                "version": "1",
                "variable": "F",
                "source": source("flash", flash.head, submodules=modules_pinned, subdirectories=wanted),
            },
            "archive": {
                "version": "1",
                "variable": "A",
                "source": {"kind": "sdist", "name": "dep", "version": "1", "sha256": file_sha256(archive)},
            },
        },
    }
    return Recipe.model_validate(data)


def test_a_bundle_brings_all_sources_to_a_machine_without_a_network(
    recipe: Recipe, bundle: Path, tmp_path: Path
) -> None:
    cache = Cache.open(tmp_path / "airgapped")
    (tmp_path / "srv").rename(tmp_path / "gone")
    manifest = read_bundle(bundle, make_access(cache))
    assert manifest.recipe_digest == recipe.digest
    flash, archive = recipe.dependencies["flash"].source, recipe.dependencies["archive"].source
    assert isinstance(recipe.source, GitSource)
    assert isinstance(flash, GitSource)
    assert isinstance(archive, SdistSource)
    tree = fetch_git(recipe.source, make_access(cache, offline=True))
    assert (tree.path / "CMakeLists.txt").read_bytes() == b"project(vllm)\n"
    (repository,) = (cache.root / "git").glob("vllm-*.git")
    assert git(repository, "rev-list", "--count", tree.commit) == "1"  # no history
    dependency = fetch_git(flash, make_access(cache, offline=True))
    assert (dependency.path / "csrc/cutlass/include/a.h").read_bytes() == b"a\n"
    assert not (dependency.path / "csrc/cutlass/examples").exists()
    assert fetch_archive(archive, make_access(cache, offline=True)).path.read_bytes() == b"an archive"


def test_equal_sources_make_equal_bundles(recipe: Recipe, bundle: Path, tmp_path: Path) -> None:
    access = make_access(Cache.open(tmp_path / "online"), offline=True)
    bundled(recipe, tmp_path / "again.tar", access)
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()


def test_reading_a_bundle_twice_is_fine(bundle: Path, tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "airgapped")
    assert read_bundle(bundle, make_access(cache)) == read_bundle(bundle, make_access(cache))


def rewritten(bundle: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with tarfile.open(bundle) as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(bundle, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return bundle


def damaged(members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.startswith("packs/"))
    members[name] = members[name][:-1] + b"x"


def missing(members: dict[str, bytes]) -> None:
    del members[next(name for name in members if name.startswith("packs/"))]


def shortened(members: dict[str, bytes]) -> None:
    members[next(name for name in members if name.startswith("archives/"))] = b""


def without_manifest(members: dict[str, bytes]) -> None:
    del members["manifest.json"]


def unreadable_manifest(members: dict[str, bytes]) -> None:
    members["manifest.json"] = b"{"


def hostile_name(members: dict[str, bytes]) -> None:
    members["manifest.json"] = members["manifest.json"].replace(b'"dep-1.tar.gz"', b'"../../dep-1.tar.gz"')


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (damaged, "sha256 of the manifest"),
        (missing, "is missing"),
        (shortened, "is not a file of"),
        (without_manifest, "does not begin with manifest.json"),
        (unreadable_manifest, "manifest.json"),
        (hostile_name, "manifest.json"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], why: str
) -> None:
    cache = Cache.open(tmp_path / "airgapped")
    with pytest.raises(FetchError, match="is not a whole bundle") as caught:
        read_bundle(rewritten(bundle, change), make_access(cache))
    assert why in caught.value.why


def test_a_truncated_or_absent_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "airgapped")
    bundle.write_bytes(bundle.read_bytes()[:600])
    with pytest.raises(FetchError, match="is not a whole bundle"):
        read_bundle(bundle, make_access(cache))
    with pytest.raises(FetchError, match="there is no bundle"):
        read_bundle(tmp_path / "none.tar", make_access(cache))


def test_a_header_that_python_s_tarfile_cannot_read_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.pax_headers = {"GNU.sparse.map": "x,y"}  # a ValueError of tarfile
        tar.addfile(entry, io.BytesIO())
    with pytest.raises(FetchError, match="not a whole bundle"):
        read_bundle(tmp_path / "odd.tar", make_access(Cache.open(tmp_path / "home")))


def test_a_pack_that_does_not_hold_the_pinned_commit_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A forged bundle has a consistent manifest, but no other objects under the pinned ids."""

    def forge(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        packs = [item for item in manifest["members"] if item["kind"] == "pack"]
        packs[0]["commit"] = "d" * 40
        members["manifest.json"] = json.dumps(manifest).encode()

    cache = Cache.open(tmp_path / "airgapped")
    with pytest.raises(FetchError):
        read_bundle(rewritten(bundle, forge), make_access(cache))


def test_a_bundle_that_cannot_be_written_says_why(recipe: Recipe, bundle: Path, tmp_path: Path) -> None:
    access = make_access(Cache.open(tmp_path / "online"), offline=True)
    with pytest.raises(FetchError, match="writing the bundle failed"):
        bundled(recipe, tmp_path / "nowhere/sources.tar", access)


def test_a_manifest_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        Manifest.model_validate({"format": 2, "recipe": "x", "recipe_digest": "y", "members": []})


def test_the_command_writes_and_reads_a_bundle(recipe: Recipe, bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(commands_fetch, "load_recipe", lambda _: recipe)
    again = tmp_path / "again.tar"
    online, airgapped = str(tmp_path / "online"), str(tmp_path / "airgapped")
    small = recipe.model_copy(update={"dependencies": {"flash": recipe.dependencies["flash"]}})
    monkeypatch.setattr(commands_fetch, "load_recipe", lambda _: small)
    assert commands_fetch.main(["--cache", online, "--offline", "--bundle", str(again)], QUIET) == 0
    assert commands_fetch.main(["--cache", airgapped, "--from-bundle", str(again)], QUIET) == 0
    with pytest.raises(UsageError, match="not both"):
        commands_fetch.main(["--bundle", str(again), "--from-bundle", str(again)], QUIET)
