"""Where machines share steps of nvcc and objects: WebDAV through httpx, S3 through obstore, Redis through redis.

They are those that sccache's variables name, so that a user sets one thing for both. Entries lie below
`wheelsmith/`, beside sccache's own. A backend only moves bytes: whether they are an entry is looked at by who
asked (step_store.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from scripts.downloads.access import Access

FOLDER = "wheelsmith"
LARGEST = 256 << 20  # bytes of an entry that is sent or taken
CONNECT_LIMIT = 5.0  # seconds
SILENCE_LIMIT = 10.0  # seconds without a byte
_REFUSED = {400, 401, 402, 403, 405, 409, 411, 413, 414, 415, 422, 423, 431, 507}


class BackendError(Exception):
    """A backend did not answer, or not as it should. The text may have secrets in it: Shared.hide."""


class RefusedError(BackendError):
    """A backend answered that it will not take an entry: too large, read-only, full."""


class Backend(Protocol):
    """A place for entries by name (`steps/ab/cdef…`); threads may call it at the same time."""

    def get(self, name: str) -> bytes | None:
        """Return an entry, None when there is none. Raises BackendError."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Keep an entry, over any other of its name; no reader sees half of it. Raises BackendError."""
        ...

    def close(self) -> None:
        """Leave; no thread uses it any more."""
        ...


def open_backend(variables: Mapping[str, str], access: Access) -> Backend | None:
    """Return the backend that SCCACHE_* variables name, None when it is of a kind that only sccache speaks.

    Raises BackendError, and FetchError for certificates that cannot be read.
    """
    if "SCCACHE_CONF" in variables:  # its file may name another
        return None
    if variables.get("SCCACHE_WEBDAV_ENDPOINT"):
        return WebDav(variables, access)
    if variables.get("SCCACHE_BUCKET"):
        return Bucket(variables)
    if variables.get("SCCACHE_REDIS_ENDPOINT") or variables.get("SCCACHE_REDIS"):
        return Redis(variables)
    return None


def _prefix(value: str) -> str:
    """Return a key prefix with the folder of our entries."""
    return "/".join(part for part in (*value.split("/"), FOLDER) if part)


class WebDav:
    """A WebDAV server, or any that takes PUT; folders are made where it wants them made first."""

    def __init__(self, variables: Mapping[str, str], access: Access) -> None:
        import httpx2  # noqa: PLC0415  (only who shares loads it)

        user, password = (variables.get(f"SCCACHE_WEBDAV_{name}", "") for name in ("USERNAME", "PASSWORD"))
        token = variables.get("SCCACHE_WEBDAV_TOKEN", "")
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError, OSError)
        self._root = variables["SCCACHE_WEBDAV_ENDPOINT"].rstrip("/")
        self._folder = quote(_prefix(variables.get("SCCACHE_WEBDAV_KEY_PREFIX", "")))
        auth: Any = (user, password) if user or password else _Bearer(token) if token else None
        self._client = httpx2.Client(
            auth=auth,
            verify=access.indexes.ssl_context(access.environment),
            timeout=httpx2.Timeout(SILENCE_LIMIT, connect=CONNECT_LIMIT),
            follow_redirects=True,
        )

    def get(self, name: str) -> bytes | None:
        """Read a file."""
        with _speaking(self._errors), self._client.stream("GET", self._url(name)) as answer:
            if answer.status_code in {404, 410}:
                return None
            if answer.status_code != 200:
                raise BackendError(f"HTTP {answer.status_code} {answer.reason_phrase}")
            blocks, size = [], 0
            for block in answer.iter_raw():
                blocks.append(block)
                size += len(block)
                if size > LARGEST:
                    raise BackendError(f"an entry has more than {LARGEST} bytes")
            return b"".join(blocks)

    def put(self, name: str, data: bytes) -> None:
        """Write a file, and the folders above it if the server says that they are missing."""
        status = self._ask("PUT", self._url(name), data)
        if status in {403, 404, 409}:
            parts = f"{self._folder}/{name}".split("/")[:-1]
            for number in range(1, len(parts) + 1):
                self._ask("MKCOL", f"{self._root}/{'/'.join(parts[:number])}/")
            status = self._ask("PUT", self._url(name), data)
        if status in _REFUSED:
            raise RefusedError(f"HTTP {status}")
        if not 200 <= status < 300:
            raise BackendError(f"HTTP {status}")

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _url(self, name: str) -> str:
        return f"{self._root}/{self._folder}/{name}"

    def _ask(self, method: str, url: str, data: bytes | None = None) -> int:
        with _speaking(self._errors):
            return int(self._client.request(method, url, content=data).status_code)


class _Bearer:
    """Adds a token to requests."""

    def __init__(self, token: str) -> None:
        self._value = f"Bearer {token}"

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = self._value
        return request


class Bucket:
    """A bucket of S3 or of what speaks its API."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        import obstore  # noqa: PLC0415  (only who shares loads it)
        from obstore.exceptions import BaseError  # noqa: PLC0415
        from obstore.store import S3Store  # noqa: PLC0415

        self._library, self._errors = obstore, (BaseError, OSError, ValueError)
        options: Any = {
            "allow_http": True,  # the endpoint says which it is
            "timeout": timedelta(seconds=60),
            "connect_timeout": timedelta(seconds=CONNECT_LIMIT),
        }
        config: Any = bucket_config(variables)
        with _speaking(self._errors):
            self._store = S3Store(
                variables["SCCACHE_BUCKET"],
                prefix=_prefix(variables.get("SCCACHE_S3_KEY_PREFIX", "")),
                config=config,
                client_options=options,
                retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=2 * SILENCE_LIMIT)},
            )

    def get(self, name: str) -> bytes | None:
        """Read an object."""
        try:
            with _speaking(self._errors, besides=FileNotFoundError):
                found = self._library.get(self._store, name)
                if found.meta["size"] > LARGEST:
                    raise BackendError(f"an entry has {found.meta['size']} bytes")
                return bytes(found.bytes())
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError  # noqa: PLC0415

        try:
            with _speaking(self._errors, besides=(PermissionDeniedError, UnauthenticatedError)):
                self._library.put(self._store, name, data)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise RefusedError(_first_line(error)) from error

    def close(self) -> None:
        """Do nothing: the library closes connections with the object."""


def bucket_config(variables: Mapping[str, str]) -> dict[str, str]:
    """Return obstore's settings for sccache's variables of a bucket."""
    region = next(filter(None, (variables.get(name) for name in ("SCCACHE_REGION", "AWS_REGION"))), "us-east-1")
    config = {"region": region}
    endpoint = variables.get("SCCACHE_ENDPOINT", "")
    secure = _is_true(variables, "SCCACHE_S3_USE_SSL")
    if endpoint:
        config["endpoint"] = endpoint if "://" in endpoint else f"http{'s' if secure else ''}://{endpoint}"
    for option, name in (
        ("access_key_id", "AWS_ACCESS_KEY_ID"),
        ("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
        ("session_token", "AWS_SESSION_TOKEN"),
    ):
        if variables.get(name):
            config[option] = variables[name]
    if _is_true(variables, "SCCACHE_S3_NO_CREDENTIALS"):
        config["skip_signature"] = "true"
    if _is_true(variables, "SCCACHE_S3_ENABLE_VIRTUAL_HOST_STYLE"):
        config["virtual_hosted_style_request"] = "true"
    if _is_true(variables, "SCCACHE_S3_SERVER_SIDE_ENCRYPTION"):
        config["server_side_encryption"] = "AES256"
    return config


class Redis:
    """A Redis server, or what speaks its protocol."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        import redis  # noqa: PLC0415  (only who shares loads it)
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        self._errors = (redis.RedisError, OSError, ValueError)
        self._answers = (redis.ResponseError,)
        given = {name: variables.get(f"SCCACHE_REDIS_{name}", "") for name in ("USERNAME", "PASSWORD", "DB")}
        options = {name.lower(): value for name, value in given.items() if value}
        if "db" in options:
            options["db"] = int(options["db"]) if options["db"].isdecimal() else 0  # type: ignore[assignment]
        expires = variables.get("SCCACHE_REDIS_EXPIRATION") or variables.get("SCCACHE_REDIS_TTL") or ""
        self._expires = int(expires) if expires.isdecimal() and int(expires) else None
        self._prefix = _prefix(variables.get("SCCACHE_REDIS_KEY_PREFIX", ""))
        limits = {"socket_connect_timeout": CONNECT_LIMIT, "socket_timeout": SILENCE_LIMIT}
        with _speaking(self._errors):
            url = redis_url(variables.get("SCCACHE_REDIS_ENDPOINT") or variables.get("SCCACHE_REDIS", ""))
            self._client = redis.Redis.from_url(url, **options, **limits, retry=Retry(NoBackoff(), 1))

    def get(self, name: str) -> bytes | None:
        """Read a value."""
        with _speaking(self._errors):
            found = self._client.get(f"{self._prefix}/{name}")
        if found is not None and not isinstance(found, bytes):
            raise BackendError("an answer of another form")
        return found

    def put(self, name: str, data: bytes) -> None:
        """Write a value; it expires when the user said so."""
        try:
            with _speaking(self._errors, besides=self._answers):
                self._client.set(f"{self._prefix}/{name}", data, ex=self._expires)
        except self._answers as error:
            raise RefusedError(_first_line(error)) from error

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def redis_url(endpoint: str) -> str:
    """Return redis-py's form of a URL as sccache takes it: `tcp://host:port`, `host:port`, `redis+unix:///path`."""
    if "://" not in endpoint:
        return f"redis://{endpoint}"
    parts = urlsplit(endpoint)
    scheme = {"tcp": "redis", "redis+unix": "unix"}.get(parts.scheme, parts.scheme)
    return endpoint.replace(parts.scheme, scheme, 1)


def _is_true(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").strip().lower() in {"1", "true", "on", "yes"}


@contextmanager
def _speaking(
    errors: tuple[type[BaseException], ...], *, besides: type[BaseException] | tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turn a client library's errors, `besides` apart, into BackendError."""
    try:
        yield
    except BackendError:
        raise
    except besides:
        raise
    except errors as error:
        raise BackendError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    """Return what an error says first, without user:password in URLs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"(\w+://)[^/\s@\"]+@", r"\1***@", lines[0][:300]) if lines else type(error).__name__
