"""From a job's input to a request of the engine's OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/embeddings": "POST",
    "/v1/models": "GET",
}
SHAPES = (
    '{"openai_route": "/v1/chat/completions", "openai_input": {...}}, {"route": ..., "body": {...}}, '
    '{"messages": [...]} or {"prompt": "..."}'
)


class InputError(ValueError):
    """The job's input is no request."""


@dataclass(frozen=True)
class EngineRequest:
    """A request to the engine."""

    route: str
    body: dict[str, Any]
    raw: bool
    """Whether the caller speaks OpenAI's protocol itself: streams go back as events, not as objects."""

    @property
    def method(self) -> str:
        """HTTP method of the route."""
        return ROUTES[self.route]

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.body.get("stream")) and self.method == "POST"


def engine_request(job_input: object, *, model: str, harmony: bool) -> EngineRequest:
    """Return the request of a job's input. Raises InputError.

    `harmony`: the model is gpt-oss, whose prompts must go through its chat template: /v1/completions applies none.
    """
    if not isinstance(job_input, Mapping):
        raise InputError(f"input must be an object: {SHAPES}")
    if "openai_route" in job_input:
        return _open_ai(job_input["openai_route"], job_input.get("openai_input"), model)
    if "route" in job_input:
        return _open_ai(job_input["route"], job_input.get("body"), model)
    return _plain(job_input, model=model, harmony=harmony)


def _open_ai(route: object, body: object, model: str) -> EngineRequest:
    if not isinstance(route, str):
        raise InputError("the route must be text")
    path = "/" + route.strip("/")
    path = path.removeprefix("/openai")
    path = path if path.startswith("/v1/") else "/v1" + path
    if path not in ROUTES:
        raise InputError(f"there is no route {route!r}: choose from {', '.join(ROUTES)}")
    if body is None:
        body = {}
    if not isinstance(body, Mapping):
        raise InputError("the route's body must be an object")
    return EngineRequest(path, _with_model(path, dict(body), model), raw=True)


def _with_model(path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
    return body if ROUTES[path] == "GET" else {"model": model, **body}


def _plain(job_input: Mapping[str, Any], *, model: str, harmony: bool) -> EngineRequest:
    given = dict(job_input)
    sampling = given.pop("sampling_params", None) or {}
    if not isinstance(sampling, Mapping):
        raise InputError("sampling_params must be an object")
    prompt, messages = given.pop("prompt", None), given.get("messages")
    if (prompt is None) == (messages is None):
        raise InputError(f"input must have either a prompt or messages, or be one of {SHAPES}")
    body = {"model": model, **sampling, **given}
    if messages is not None:
        if not isinstance(messages, list):
            raise InputError("messages must be a list")
        return EngineRequest("/v1/chat/completions", body, raw=False)
    if not isinstance(prompt, str):
        raise InputError("prompt must be text")
    if harmony:
        body["messages"] = [{"role": "user", "content": prompt}]
        return EngineRequest("/v1/chat/completions", body, raw=False)
    return EngineRequest("/v1/completions", {**body, "prompt": prompt}, raw=False)
