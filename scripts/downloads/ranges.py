"""A file on a server, read in parts by HTTP range requests, for archives of which only a little is wanted."""

from __future__ import annotations

import http
import io
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scripts.core import interrupt
from scripts.core.console import human_bytes
from scripts.core.errors import FetchError
from scripts.downloads.access import Access
from scripts.downloads.download import retried
from scripts.downloads.indexes import redacted

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from scripts.downloads.download import Client

BLOCK = 1 << 19  # bytes of one request
KEPT = 32  # blocks in memory
MAX_RECEIVED = 1 << 29  # bytes: no honest archive's table and few files are more
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class NoRangesError(Exception):
    """The server sends whole files only."""


class RemoteFile(io.RawIOBase):
    """A file behind a URL, as zipfile wants one: seekable, read in blocks that are kept for a while.

    Raises NoRangesError when made for a server that sends whole files only, FetchError when the server cannot be
    reached, refuses, or sends what was not asked for.
    """

    def __init__(self, client: Client, url: str, access: Access) -> None:
        self._client, self._url, self._access = client, url, access
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self._tag = ""
        self.received = 0
        """Bytes of content that came over the wire."""
        self.size = 0
        self.size = self._ask(0, 0)[1]

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; none before the beginning."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer from the position on; return the number of bytes, 0 at the end."""
        if self._position >= self.size:
            return 0
        view = memoryview(buffer).cast("B")
        number, offset = divmod(self._position, BLOCK)
        part = self._block(number)[offset : offset + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            first = number * BLOCK
            self._blocks[number] = self._ask(first, min(first + BLOCK, self.size) - 1)[0]
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _ask(self, first: int, last: int) -> tuple[bytes, int]:
        """Return (the bytes from `first` to `last`, the file's size)."""
        found: list[tuple[bytes, int]] = []
        interrupt.check()
        retried(lambda: found.append(self._answer(first, last)), self._url, self._access.console, self._access.pause)
        content, total = found[-1]
        self.received += len(content)
        if self.received > MAX_RECEIVED:
            raise self._strange(f"more than {human_bytes(MAX_RECEIVED)} of it were wanted")
        return content, total

    def _answer(self, first: int, last: int) -> tuple[bytes, int]:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={first}-{last}"}
        if self._tag:
            headers["If-Range"] = self._tag  # another file under the same name would not fit the parts that are here
        wanted = last - first + 1
        with self._client.get_stream(self._url, headers=headers) as response:
            response.raise_for_status()
            if response.status_code != http.HTTPStatus.PARTIAL_CONTENT:
                if self.size:
                    raise self._strange("it was changed while it was read")
                raise NoRangesError
            total = self._checked(response.headers, first, last)
            content = b""
            for block in response.iter_raw(BLOCK):
                content += block
                if len(content) > wanted:
                    raise self._strange(f"the server sends more than the {wanted} bytes that were asked for")
        if len(content) < wanted:
            import httpx2  # noqa: PLC0415  (loaded by open_client)

            raise httpx2.ReadError(f"connection closed after {len(content)} of {wanted} bytes")
        return content, total

    def _checked(self, headers: Mapping[str, str], first: int, last: int) -> int:
        said = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if not said or (int(said[1]), int(said[2])) != (first, last) or (self.size and int(said[3]) != self.size):
            answer = headers.get("content-range") or "nothing"
            raise self._strange(f"asked for bytes {first} to {last}, it says {answer!r}")
        tag = headers.get("etag", "")
        self._tag = self._tag or ("" if tag.startswith("W/") else tag)
        return int(said[3])

    def _strange(self, why: str) -> FetchError:
        return FetchError(
            f"{redacted(self._url)} cannot be read in parts",
            why=why,
            fix="run again; if it stays so, a proxy or the index answers range requests wrongly: use another index",
        )
