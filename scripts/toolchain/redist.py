"""A CUDA toolkit from NVIDIA's redistributable archives: the components a torch extension build needs, merged.

NVIDIA publishes per release a manifest `redistrib_X.Y.Z.json`: for each component its name, version and per platform
`relative_path`, `sha256`, `md5` and `size` (bytes, as a string); each archive is a .tar.xz with one top folder that
holds `bin include lib nvvm …`. Needs no root and nothing installed; all files lie in the cache. See docs/production.md
for what was tried against the real host.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from scripts.core.cache import Cache
from scripts.core.console import Console, human_bytes
from scripts.core.errors import FetchError, ToolchainError
from scripts.core.files import digest, file_sha256, write_atomic, write_json
from scripts.core.models import Sha256
from scripts.downloads.access import Access
from scripts.downloads.download import Transfer, download
from scripts.downloads.unpack import unpack_sdist
from scripts.recipe.model import Redist

if TYPE_CHECKING:
    from scripts.downloads.download import Client

PLATFORM = "linux-x86_64"
DOCS = "docs/production.md#redist"
PARALLEL = 4  # downloads at once
RECORD = "toolkit.json"
_NEEDED = ("bin/nvcc", "bin/ptxas", "bin/cudafe++", "bin/fatbinary", "nvvm/bin/cicc", "include/cuda_runtime.h")


class RedistArchive(BaseModel):
    """An entry of the manifest for one platform. NVIDIA may add fields; those we use must be right."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    relative_path: str
    sha256: Sha256
    size: int
    """Bytes."""

    @field_validator("relative_path")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or ":" in value or not value.endswith((".tar.xz", ".tar.gz")):
            raise ValueError("not a relative path of a .tar.xz")
        return value


@dataclass(frozen=True)
class Part:
    """One component of a release."""

    name: str
    version: str
    archive: RedistArchive


@dataclass(frozen=True)
class RedistToolkit:
    """A merged toolkit in the cache."""

    cuda_home: Path
    release: str
    components: dict[str, str]
    """Version of each component."""
    size: int
    """Bytes of all archives."""


def provide_redist(redist: Redist, client: Client, access: Access) -> RedistToolkit:
    """Return the toolkit, downloaded and merged once per set of archives. Raises ToolchainError or FetchError."""
    parts = read_manifest(redist, client, access)
    key = _key(redist, parts)
    size = sum(part.archive.size for part in parts)

    def make(folder: Path) -> None:
        access.console.note(
            f"CUDA {redist.release}: {len(parts)} archives, {human_bytes(size)}, from {redist.base_url}"
        )
        archives = _download_all(redist, parts, client, access)
        _merge(parts, archives, folder)
        write_json(folder / RECORD, {"release": redist.release, "components": {p.name: p.version for p in parts}})

    if access.offline and not access.cache.place("redist", key).is_dir():
        raise _not_cached(redist)
    home = access.cache.once("redist", key, make, console=access.console, kind=ToolchainError)
    return RedistToolkit(home, redist.release, {part.name: part.version for part in parts}, size)


def _key(redist: Redist, parts: Sequence[Part]) -> str:
    return digest([redist.release, [[part.name, part.archive.sha256] for part in parts]])


def _manifest_url(redist: Redist) -> str:
    return f"{redist.base_url.rstrip('/')}/redistrib_{redist.release}.json"


def is_cached(redist: Redist, cache: Cache) -> bool:
    """Return whether `provide_redist` needs no network. Raises ToolchainError for a kept manifest that is damaged."""
    url = _manifest_url(redist)
    kept = cache.place("redist", f"{digest([url])}.json")
    return kept.is_file() and cache.place("redist", _key(redist, _parts(kept.read_bytes(), redist, url))).is_dir()


def read_manifest(redist: Redist, client: Client, access: Access) -> tuple[Part, ...]:
    """Return the wanted components of the release. Raises ToolchainError when the manifest is not usable."""
    url = _manifest_url(redist)
    kept = access.cache.place("redist", f"{digest([url])}.json")
    if not kept.is_file():
        if access.offline:
            raise _not_cached(redist)
        data = _get(url, client)
        _parts(data, redist, url)  # a manifest that is not usable is not kept
        write_atomic(kept, data)
    return _parts(kept.read_bytes(), redist, url)


def _parts(data: bytes, redist: Redist, url: str) -> tuple[Part, ...]:
    manifest = _object(data, url)
    label = manifest.get("release_label")
    if label != redist.release:
        raise _wrong(url, f"it is the manifest of release {label!r}, not {redist.release!r}")
    parts = tuple(_part(manifest, name, url) for name in redist.components)
    for part in parts:
        pinned = redist.sha256.get(part.name, part.archive.sha256)
        if part.archive.sha256 != pinned:
            raise _wrong(url, f"{part.name} has sha256 {part.archive.sha256} there, the recipe pins {pinned}")
    return parts


def _object(data: bytes, url: str) -> Mapping[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise _wrong(url, f"it is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise _wrong(url, "it is not a JSON object")
    return manifest


def _part(manifest: Mapping[str, Any], name: str, url: str) -> Part:
    entry = manifest.get(name)
    if not isinstance(entry, dict) or PLATFORM not in entry:
        known = ", ".join(sorted(k for k, v in manifest.items() if isinstance(v, dict) and PLATFORM in v))
        raise _wrong(url, f"it has no component {name!r} for {PLATFORM}; it has: {known or 'none'}")
    try:
        return Part(name, str(entry.get("version", "")), RedistArchive.model_validate(entry[PLATFORM]))
    except ValidationError as error:
        first = error.errors()[0]
        raise _wrong(url, f"{name}.{PLATFORM}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _get(url: str, client: Client) -> bytes:
    import httpx2  # noqa: PLC0415  (loaded by open_client)

    try:
        response = client.get(url, headers={})
        response.raise_for_status()
    except (httpx2.TransportError, httpx2.HTTPStatusError) as error:
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, httpx2.HTTPStatusError):
            cause = f"the server answered {error.response.status_code} {error.response.reason_phrase}"
        raise _unreachable(url, cause) from error
    return bytes(response.content)


def _download_all(redist: Redist, parts: tuple[Part, ...], client: Client, access: Access) -> list[Path]:
    """Download the archives, four at once, each resumed and checked; the first failure ends it all."""
    total = sum(part.archive.size for part in parts)
    quiet = replace(access, console=Console(quiet=True))

    def one(part: Part) -> Path:
        url = f"{redist.base_url.rstrip('/')}/{part.archive.relative_path}"
        name = PurePosixPath(part.archive.relative_path).name
        sha256, size = part.archive.sha256, part.archive.size
        path = download(client, url, quiet, sha256=sha256, filename=name, size=size)
        if path.stat().st_size != size:
            raise _wrong(url, f"{name} is {path.stat().st_size} bytes, the manifest says {size}")
        return path

    transfer = Transfer(f"CUDA {redist.release}", total, started=time.monotonic())
    transfer.resumed_at = transfer.done = sum(_present(access.cache, part) for part in parts)

    with ThreadPoolExecutor(PARALLEL) as pool, access.console.progress(transfer.render, transfer.text) as progress:
        pending: set[Future[Path]] = set()
        futures = [pool.submit(one, part) for part in parts]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                transfer.done = sum(_present(access.cache, part) for part in parts)
                progress.tick()
        except FetchError as error:
            raise _explained(error, redist) from error
        finally:
            for future in futures:
                future.cancel()
    return [future.result() for future in futures]


def _present(cache: Cache, part: Part) -> int:
    """Return how many bytes of an archive are there. Its download renames the file whenever it ends."""
    folder, size = cache.root / "downloads" / part.archive.sha256, 0
    with suppress(FileNotFoundError):
        for path in folder.glob("*"):
            size += path.stat().st_size
    return size


def _merge(parts: tuple[Part, ...], archives: list[Path], home: Path) -> None:
    """Unpack all archives into one CUDA_HOME; licences are kept per component; `lib64` is `lib`."""
    for part, archive in zip(parts, archives, strict=True):
        unpacked = home / f".{part.name}"
        unpack_sdist(archive, unpacked)
        for path in sorted(unpacked.rglob("*")):
            relative = path.relative_to(unpacked)
            if path.is_dir() and not path.is_symlink():
                (home / relative).mkdir(parents=True, exist_ok=True)
                continue
            if len(relative.parts) == 1 and not path.is_symlink():  # LICENSE and the like: every archive has one
                relative = Path("licenses") / part.name / relative.name
            _place(path, home / relative, part)
        shutil.rmtree(unpacked)
    if (home / "lib").is_dir() and not (home / "lib64").exists():
        (home / "lib64").symlink_to("lib")
    missing = [name for name in _NEEDED if not (home / name).is_file()]
    if missing:
        raise ToolchainError(
            f"the archives hold no {', '.join(missing)}",
            why="a component that brings it is not in the recipe's list",
            fix="add it to toolchain.redist.components in the recipe",
            docs=DOCS,
        )


def _place(path: Path, final: Path, part: Part) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists() or final.is_symlink():
        same = path.is_symlink() == final.is_symlink() and file_sha256(path) == file_sha256(final)
        if same:
            return
        raise ToolchainError(
            f"two CUDA components bring different files: {final.name}",
            why=f"{part.name} brings one that is not the one already there",
            fix="take one of the components out of toolchain.redist.components",
            docs=DOCS,
        )
    path.rename(final)


def _explained(error: FetchError, redist: Redist) -> FetchError:
    fix = [
        f"check that {redist.base_url} can be reached (HTTPS_PROXY), or set another: toolchain.redist.base_url",
        *_others(redist),
    ]
    return FetchError(error.what, why=error.why, fix=fix, detail=error.detail, docs=DOCS)


def _others(redist: Redist) -> list[str]:
    cuda = ".".join(redist.release.split(".")[:2])
    return [
        f"install CUDA {cuda} and name it: CUDA_HOME=/usr/local/cuda-{cuda}",
        "build the recipe that takes its toolkit from the package index: nox -s wheel -- --recipe quickstart",
    ]


def _unreachable(url: str, cause: str) -> FetchError:
    return FetchError(
        f"{url} could not be fetched",
        why=cause,
        fix=["check the network, HTTPS_PROXY and certificates, or set toolchain.redist.base_url to a mirror"],
        docs=DOCS,
    )


def _not_cached(redist: Redist) -> FetchError:
    return FetchError(
        f"the archives of CUDA {redist.release} are not in the cache",
        why="--offline was given",
        fix=["run once without --offline", *_others(redist)],
        docs=DOCS,
    )


def _wrong(url: str, why: str) -> ToolchainError:
    return ToolchainError(
        f"{url} is not what the recipe needs",
        why=why,
        fix="check toolchain.redist in the recipe (release, components, base_url)",
        docs=DOCS,
    )
