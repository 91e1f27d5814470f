"""A stand-in for `vllm serve`: its command line, its routes over real HTTP, and the faults a real one can have.

The last message says what to do: `echo TEXT`, `status N TEXT`, `die`, `cut`, `hang`, `garbage`, `split TEXT`.
STANDIN_LOAD is how many seconds it loads, STANDIN_FAIL makes it end with that code while it loads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

from aiohttp import web

STARTED = time.monotonic()


async def health(_: web.Request) -> web.Response:
    """Answer 200 once the model is loaded."""
    loading = time.monotonic() - STARTED < float(os.environ.get("STANDIN_LOAD", "0"))
    return web.Response(status=503 if loading else 200)


async def metrics(_: web.Request) -> web.Response:
    """Answer as vLLM does: cache configuration in labels."""
    return web.Response(text='vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="6400"} 1.0\n')


async def models(request: web.Request) -> web.Response:
    """List the model."""
    return web.json_response({"object": "list", "data": [{"id": request.app["model"]}]})


def _wish(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt", body.get("input", "")))


async def answer(request: web.Request) -> web.StreamResponse:
    """Do what the last message asks for."""
    body = await request.json()
    word, _, text = _wish(body).partition(" ")
    if word == "status":
        number, _, message = text.partition(" ")
        return web.json_response({"error": {"message": message, "type": "test"}}, status=int(number))
    if word == "garbage":
        return web.Response(text="<html>", content_type="text/html")
    if word == "hang":
        await asyncio.sleep(60)
    if word == "die" and not body.get("stream"):
        os._exit(9)
    if body.get("stream"):
        return await _stream(request, word, text)
    return web.json_response({"object": request.path, "model": body.get("model"), "text": text, "seen": body})


async def _stream(request: web.Request, word: str, text: str) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    responses = request.path == "/v1/responses"
    for piece in text.split(" "):
        event = f"data: {json.dumps({'text': piece}, ensure_ascii=False)}\n\n".encode()
        if responses:
            event = b"event: response.output_text.delta\n" + event
        if word == "split":
            for index in range(len(event)):
                await stream.write(event[index : index + 1])
                await asyncio.sleep(0)
        else:
            await stream.write(event)
        await asyncio.sleep(0)
        if word == "die":
            await asyncio.sleep(0.1)
            os._exit(9)
    if word == "cut":
        return stream
    await stream.write(b'event: response.completed\ndata: {"text": ""}\n\n' if responses else b"data: [DONE]\n\n")
    return stream


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options, others = parser.parse_known_args()
    print("Loading safetensors checkpoint shards:  50% Completed", others, flush=True)  # noqa: T201
    if code := os.environ.get("STANDIN_FAIL"):
        print("ValueError: no kernel image is available", flush=True)  # noqa: T201
        sys.exit(int(code))
    app = web.Application(client_max_size=1 << 26)
    app["model"] = options.model
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/models", models)
    for route in ("chat/completions", "completions", "responses", "embeddings"):
        app.router.add_post(f"/v1/{route}", answer)
    web.run_app(app, host=options.host, port=options.port, print=None, backlog=4096)


if __name__ == "__main__":
    main()
