"""Requests to the engine over one HTTP session, answers as the job's outputs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from .routes import EngineRequest
from .stream import EventSplitter, is_last, parsed

Output = dict[str, Any] | str | list[Any]
MAX_ERROR = 8192  # bytes of an error's body that are passed on


def failure(message: str, *, kind: str = "engine_error", status: int | None = None) -> dict[str, str]:
    """Return an error as the RunPod SDK wants it: text, which fails the job. The text is JSON of OpenAI's form."""
    error: dict[str, Any] = {"message": message, "type": kind}
    if status is not None:
        error["code"] = status
    return {"error": json.dumps(error)}


class Proxy:
    """One session for all requests; made in the event loop on first use."""

    def __init__(self, url: str, *, silence: float) -> None:
        self.url = url
        self.in_flight = 0
        self._silence = silence
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, connect=30, sock_read=self._silence),
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def outputs(self, request: EngineRequest) -> AsyncIterator[Output]:
        """Yield the answer: events of a stream as they come, else one object. Failures are yielded, never raised."""
        self.in_flight += 1
        try:
            async for output in self._outputs(request):
                yield output
        except asyncio.TimeoutError:
            yield failure(f"the engine was silent for {self._silence:.0f} s", kind="timeout")
        except (aiohttp.ClientError, ConnectionError) as error:
            yield failure(f"the connection to the engine broke: {error or type(error).__name__}")
        except (ValueError, TypeError) as error:
            yield failure(f"the engine's answer cannot be read: {error}")
        finally:
            self.in_flight -= 1

    async def _outputs(self, request: EngineRequest) -> AsyncIterator[Output]:
        body = request.body if request.method == "POST" else None
        async with self._open().request(request.method, self.url + request.route, json=body) as answer:
            if answer.status >= 400:
                yield await _refused(answer)
            elif answer.content_type == "text/event-stream":
                async for output in _events(answer, raw=request.raw):
                    yield output
            else:
                yield json.loads(await answer.read())


async def _refused(answer: aiohttp.ClientResponse) -> dict[str, str]:
    text = (await answer.content.read(MAX_ERROR)).decode("utf-8", "replace")
    try:
        said = json.loads(text)
        error = said.get("error", said)
        message = error.get("message", text) if isinstance(error, dict) else str(error)
        kind = str(error.get("type", "engine_error")) if isinstance(error, dict) else "engine_error"
    except (ValueError, AttributeError):
        message, kind = text or answer.reason or "no reason given", "engine_error"
    return failure(message, kind=kind, status=answer.status)


async def _events(answer: aiohttp.ClientResponse, *, raw: bool) -> AsyncIterator[Output]:
    splitter, last = EventSplitter(), False
    async for chunk in answer.content.iter_any():
        for event in splitter.feed(chunk):
            last = last or is_last(event)
            if raw:
                yield event + "\n\n"
            elif (value := parsed(event)) is not None:
                yield value
    if not last:
        yield failure("the engine ended the stream before it was complete")
