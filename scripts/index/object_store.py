"""A static index in an object store (S3 and what speaks its API, Google Cloud Storage, Azure), through obstore.

Every write is one object, which readers see old or new. Pages are replaced on condition that they are still what was
read (If-Match), so no lock is needed; stores without conditions are written all the same, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import ObjectStore as Backend
from obstore.store import from_url

from scripts.core.console import Console
from scripts.core.errors import PublishError, UsageError, from_os_error
from scripts.core.files import file_sha256
from scripts.downloads.indexes import redacted
from scripts.index.store import Stored, check_unchanged

SCHEMES = ("s3://", "gs://", "az://")
CHUNK = 8 << 20  # bytes per part of a large upload
PARALLEL = 6  # parts at once: at most 48 MiB in memory
RETRIES: dict[str, Any] = {"max_retries": 5}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    "index.json": "application/vnd.pypi.simple.v1+json",
    ".json": "application/json",
    ".metadata": "text/plain; charset=utf-8",
    ".intoto.jsonl": "application/vnd.dsse.envelope.v1+json",
    ".provenance": "application/vnd.pypi.integrity.v1+json",
    "SHA256SUMS": "text/plain; charset=utf-8",
}
_MISSING = (FileNotFoundError,)
_CLOCK = ".clock"


class ObjectStore:
    """An index below a prefix of a bucket.

    `public` lets shared caches keep wheels; without it only the reader's own cache does.
    """

    locked = False

    def __init__(self, url: str, *, public: bool = False) -> None:
        self._url, self._public = url.rstrip("/"), public
        options: dict[str, Any] = {"retry_config": RETRIES}
        try:
            self._store: Backend = from_url(
                self._url, client_options={"allow_http": True, "timeout": "3600s"}, **options
            )
        except (BaseError, ValueError) as error:
            raise UsageError(
                f"--to {redacted(url)} is not a usable object store",
                why=_first_line(error),
                fix="s3://bucket/prefix with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for other "
                "services than AWS, AWS_ENDPOINT_URL in the environment",
            ) from error
        self._conditions = True

    @property
    def location(self) -> str:
        """The URL."""
        return redacted(self._url)

    @contextmanager
    def lock(self, console: Console) -> Iterator[None]:
        """Keep nobody out: conditional writes keep publishers from overwriting each other, where the store has them."""
        yield
        if not self._conditions:
            console.warn(
                f"{self.location} takes no conditional writes: two publishers at once can lose each other's wheels. "
                "Publish from one place at a time"
            )

    def _error(self, error: BaseException, doing: str, key: str) -> PublishError:
        return PublishError(
            f"{doing} {self.location}/{key} failed",
            why=_first_line(error),
            fix="check the bucket, the credentials (AWS_ACCESS_KEY_ID ...) and the network; then run it again",
        )

    def top(self) -> tuple[list[str], dict[str, str]]:
        """Return the common prefixes and the objects that lie directly below ours."""
        try:
            found = obstore.list_with_delimiter(self._store)
        except (BaseError, OSError) as error:
            raise self._error(error, "listing", "") from error
        folders = [f"{path}/" for path in found["common_prefixes"] if not path.startswith(".")]
        files = {str(item["path"]): item["e_tag"] or "" for item in found["objects"]}
        return sorted(folders), {key: tag for key, tag in files.items() if not key.startswith(".")}

    def tags(self, folder: str) -> dict[str, str]:
        """Return the objects below a prefix with their ETags: a request per thousand of them."""
        try:
            batches = obstore.list(self._store, folder.rstrip("/"), chunk_size=1000)
            found = {str(item["path"]): item["e_tag"] or "" for batch in batches for item in batch}
        except (BaseError, OSError) as error:
            raise self._error(error, "listing", folder) from error
        return dict(sorted(found.items()))

    def read(self, key: str) -> Stored | None:
        """Return an object and its ETag."""
        try:
            found = obstore.get(self._store, key)
            return Stored(bytes(found.bytes()), found.meta["e_tag"] or "")
        except _MISSING:
            return None
        except (BaseError, OSError) as error:
            raise self._error(error, "reading", key) from error

    def write(self, key: str, data: bytes, *, over: Stored | None) -> Stored | None:
        """Write an object if it is still what was read."""
        mode: Any = "create" if over is None else {"e_tag": over.tag}
        attributes = {"Content-Type": _content_type(key), "Cache-Control": self._caching(key)}
        try:
            if self._conditions:
                with suppress(NotSupportedError, NotImplementedError):
                    made = obstore.put(self._store, key, data, mode=mode, attributes=attributes)
                    return Stored(data, made["e_tag"] or "")
                self._conditions = False
            made = obstore.put(self._store, key, data, attributes=attributes)
        except (AlreadyExistsError, PreconditionError):
            return None
        except _MISSING:
            return None  # it was there when it was read
        except (BaseError, OSError) as error:
            raise self._error(error, "writing", key) from error
        return Stored(data, made["e_tag"] or "")

    def add_file(self, key: str, path: Path, sha256: str) -> None:
        """Send a file in parts; it is visible when all have come, or not at all."""
        attributes: Mapping[str, str] = {
            "Content-Type": "application/octet-stream",
            "Cache-Control": self._caching(key),
        }
        check_unchanged(path, file_sha256(path), sha256)
        try:
            obstore.put(
                self._store,
                key,
                path,
                attributes=attributes,  # type: ignore[arg-type]
                chunk_size=CHUNK,
                max_concurrency=PARALLEL,
            )
        except (BaseError, OSError) as error:
            raise self._error(error, "sending", key) from error
        if self.size(key) != path.stat().st_size:
            raise PublishError(f"{self.location}/{key} did not arrive whole", fix="run the same command again")

    def fetch(self, key: str, path: Path) -> str:
        """Copy an object into a file, in parts."""
        try:
            with path.open("wb") as file:
                for block in obstore.get(self._store, key).stream(min_chunk_size=CHUNK):
                    file.write(bytes(block))
        except OSError as error:
            if error.errno:  # this machine's disk; obstore's own have no number
                raise from_os_error(PublishError, error, doing="writing", path=path, variable="TMPDIR") from error
            raise self._error(error, "reading", key) from error
        except BaseError as error:
            raise self._error(error, "reading", key) from error
        return file_sha256(path)

    def size(self, key: str) -> int | None:
        """Return an object's size."""
        found = self._head(key)
        return int(found["size"]) if found else None

    def written(self, key: str) -> datetime | None:
        """Return an object's time, which the store gave it."""
        found = self._head(key)
        return found["last_modified"] if found else None

    def _head(self, key: str) -> Any:
        try:
            return obstore.head(self._store, key)
        except _MISSING:
            return None
        except (BaseError, OSError) as error:
            raise self._error(error, "reading", key) from error

    def now(self) -> datetime:
        """Return the time of an object that is written now."""
        try:
            obstore.put(self._store, _CLOCK, b"")
            found: datetime = obstore.head(self._store, _CLOCK)["last_modified"]
        except (BaseError, OSError) as error:
            raise self._error(error, "reading the clock of", _CLOCK) from error
        return found

    def check_space(self, size: int) -> None:
        """Do nothing: buckets do not say how much they take."""

    def remove(self, key: str) -> None:
        """Remove an object."""
        try:
            obstore.delete(self._store, key)
        except _MISSING:
            pass
        except (BaseError, OSError) as error:
            raise self._error(error, "removing", key) from error

    def _caching(self, key: str) -> str:
        """Wheels never change under their name; what lies beside them may: a signature that was added later."""
        whose = "public" if self._public else "private"
        fixed = key.startswith("files/") and key.endswith((".whl", ".whl.metadata"))
        return f"{whose}, max-age=31536000, immutable" if fixed else f"{whose}, no-cache"


def _content_type(key: str) -> str:
    return next((kind for suffix, kind in _TYPES.items() if key.endswith(suffix)), "application/octet-stream")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
