"""A static index in an object store (S3 and what speaks its API, Google Cloud Storage, Azure), through obstore.

Every write is one object, which readers see old or new. Pages are replaced on condition that they are still what was
read (If-Match), so no lock is needed; stores without conditions are written all the same, and looked at again after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import ObjectStore as Backend
from obstore.store import from_url

from scripts.cache import file_sha256
from scripts.console import Console
from scripts.errors import PublishError, UsageError
from scripts.indexes import redacted
from scripts.store import Stored, check_unchanged

SCHEMES = ("s3://", "gs://", "az://")
CHUNK = 8 << 20  # bytes per part of a large upload
PARALLEL = 6  # parts at once: at most 48 MiB in memory
RETRIES: dict[str, Any] = {"max_retries": 5}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    "index.json": "application/vnd.pypi.simple.v1+json",
    ".json": "application/json",
    ".metadata": "text/plain; charset=utf-8",
    "SHA256SUMS": "text/plain; charset=utf-8",
}
_MISSING = (FileNotFoundError,)


class ObjectStore:
    """An index below a prefix of a bucket."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        options: dict[str, Any] = {"retry_config": RETRIES}
        try:
            self._store: Backend = from_url(
                self._url, client_options={"allow_http": True, "timeout": "3600s"}, **options
            )
        except (BaseError, ValueError) as error:
            raise UsageError(
                f"--to {redacted(url)} is not an object store that can be used",
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
    def lock(self, _console: Console) -> Iterator[None]:
        """Do nothing: conditional writes keep publishers from overwriting each other."""
        yield

    def _error(self, error: BaseException, doing: str, key: str) -> PublishError:
        return PublishError(
            f"{doing} {self.location}/{key} failed",
            why=_first_line(error),
            fix="check the bucket, the credentials (AWS_ACCESS_KEY_ID ...) and the network; then run it again",
        )

    def keys(self, prefix: str) -> list[str]:
        """Return the objects below a prefix."""
        try:
            found = [item["path"] for batch in obstore.list(self._store, prefix.rstrip("/")) for item in batch]
        except (BaseError, OSError) as error:
            raise self._error(error, "listing", prefix) from error
        return sorted(found)

    def read(self, key: str) -> Stored | None:
        """Return an object and its ETag."""
        try:
            found = obstore.get(self._store, key)
            return Stored(bytes(found.bytes()), found.meta["e_tag"] or "")
        except _MISSING:
            return None
        except (BaseError, OSError) as error:
            raise self._error(error, "reading", key) from error

    def write(self, key: str, data: bytes, *, over: Stored | None) -> bool:
        """Write an object if it is still what was read."""
        mode: Any = "create" if over is None else {"e_tag": over.tag}
        attributes = {"Content-Type": _content_type(key), "Cache-Control": _caching(key)}
        try:
            if self._conditions:
                with suppress(NotSupportedError, NotImplementedError):
                    obstore.put(self._store, key, data, mode=mode, attributes=attributes)
                    return True
                self._conditions = False
            obstore.put(self._store, key, data, attributes=attributes)
        except (AlreadyExistsError, PreconditionError):
            return False
        except _MISSING:
            return False  # it was there when it was read
        except (BaseError, OSError) as error:
            raise self._error(error, "writing", key) from error
        return True

    def add_file(self, key: str, path: Path, sha256: str) -> None:
        """Send a file in parts; it is visible when all have come, or not at all."""
        attributes: Mapping[str, str] = {"Content-Type": "application/octet-stream", "Cache-Control": _caching(key)}
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

    def size(self, key: str) -> int | None:
        """Return an object's size."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except _MISSING:
            return None
        except (BaseError, OSError) as error:
            raise self._error(error, "reading", key) from error

    def remove(self, key: str) -> None:
        """Remove an object."""
        try:
            obstore.delete(self._store, key)
        except _MISSING:
            pass
        except (BaseError, OSError) as error:
            raise self._error(error, "removing", key) from error


def _content_type(key: str) -> str:
    return next((kind for suffix, kind in _TYPES.items() if key.endswith(suffix)), "application/octet-stream")


def _caching(key: str) -> str:
    return "public, max-age=31536000, immutable" if key.startswith("files/") else "no-cache"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
