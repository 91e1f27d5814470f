"""The RunPod worker against an engine that is a process of its own, and through the RunPod SDK's own server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from runtime.worker.engine import Engine, EngineError
from runtime.worker.handler import Worker
from runtime.worker.settings import Settings

ROOT = Path(__file__).parents[3]
STANDIN = ROOT / "tests" / "standin" / "engine.py"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_settings(port: int, **changes: Any) -> Settings:
    values = {"model": "openai/gpt-oss-20b", "model_revision": "0" * 40, "engine_port": port, "stop_timeout": 5}
    return Settings(**{**values, **changes})


def make_engine(port: int, **environment: str) -> Engine:
    command = [sys.executable, str(STANDIN), "serve", "m", "--host", "127.0.0.1", "--port", str(port)]
    return Engine(command, {**os.environ, **environment}, port=port)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = make_engine(free_port())
    engine.start()
    try:
        engine.wait_ready(30, tell=lambda _: None)
        yield engine
    finally:
        engine.stop(1)  # one that hangs is killed


def worker_of(engine: Engine, **changes: Any) -> Worker:
    return Worker(make_settings(int(engine.url.rsplit(":", 1)[1]), **changes), engine, jobs=8)


def outputs(worker: Worker, *inputs: Any) -> list[list[Any]]:
    async def one(job_input: Any) -> list[Any]:
        return [item async for item in worker.handle({"id": "1", "input": job_input})]

    async def all_of_them() -> list[list[Any]]:
        try:
            return await asyncio.gather(*(one(item) for item in inputs))
        finally:
            await worker.proxy.close()

    return asyncio.run(all_of_them())


def chat(text: str, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return {"openai_route": "/v1/chat/completions", "openai_input": body}


def error_of(output: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output["error"])
    return found


def test_each_route_answers_and_the_engine_sees_the_models_name(engine: Engine) -> None:
    routes = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    jobs = [{"openai_route": route, "openai_input": {"prompt": f"echo {route}"}} for route in routes]
    found = outputs(worker_of(engine), *jobs, {"openai_route": "/v1/models"})
    assert [item[0]["object"] for item in found[:4]] == routes
    assert {item[0]["model"] for item in found[:4]} == {"openai/gpt-oss-20b"}
    assert found[4] == [{"object": "list", "data": [{"id": "m"}]}]


def test_streams_pass_whole_events_for_open_ai_and_objects_for_plain_input(engine: Engine) -> None:
    raw, plain, responses = outputs(
        worker_of(engine),
        chat("echo a b", stream=True),
        {"prompt": "echo a b", "stream": True},
        {"openai_route": "/v1/responses", "openai_input": {"input": "echo a", "stream": True}},
    )
    assert raw == ['data: {"text": "a"}\n\n', 'data: {"text": "b"}\n\n', "data: [DONE]\n\n"]
    assert plain == [{"text": "a"}, {"text": "b"}]
    assert responses[0].startswith("event: response.output_text.delta\ndata: ")
    assert len(responses) == 2


def test_characters_survive_bytes_that_come_one_by_one(engine: Engine) -> None:
    text = "Grüße 你好 🦜🧵 ‱"
    (found,) = outputs(worker_of(engine), {"prompt": f"split {text}", "stream": True})
    assert " ".join(item["text"] for item in found) == text


@pytest.mark.parametrize("stream", [True, False])
def test_an_engines_refusal_is_the_jobs_error(engine: Engine, stream: bool) -> None:  # noqa: FBT001
    (found,) = outputs(worker_of(engine), chat("status 500 out of memory", stream=stream))
    assert error_of(found[0]) == {"message": "out of memory", "type": "test", "code": 500}


def test_streams_that_are_cut_answers_that_are_none_and_silence_are_errors(engine: Engine) -> None:
    cut, garbage, hang, bad = outputs(
        worker_of(engine, request_timeout=0.5), chat("cut a", stream=True), chat("garbage"), chat("hang"), {"x": 1}
    )
    assert "before it was complete" in error_of(cut[-1])["message"]
    assert "cannot be read" in error_of(garbage[0])["message"]
    assert error_of(hang[0])["type"] == "timeout"
    assert error_of(bad[0])["code"] == 400


def test_an_engine_that_dies_in_a_stream_fails_the_job_and_is_noticed(engine: Engine) -> None:
    died: list[int] = []
    engine.watch(died.append)
    (found,) = outputs(worker_of(engine), chat("die a", stream=True))
    assert found[0] == 'data: {"text": "a"}\n\n'
    assert "error" in found[-1]
    (after,) = outputs(worker_of(engine), chat("echo a"))
    assert "connection to the engine broke" in error_of(after[0])["message"]
    deadline = time.monotonic() + 5
    while not died and time.monotonic() < deadline:
        time.sleep(0.02)
    assert died == [9]


def test_a_thousand_requests_at_once_are_neither_lost_nor_mixed_up_and_memory_stays(engine: Engine) -> None:
    worker = worker_of(engine)
    jobs = [
        chat(f"echo {number} x", stream=True) if number % 2 else {"prompt": f"echo {number} x"}
        for number in range(1000)
    ]
    outputs(worker, *jobs)
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(2):
        found = outputs(worker, *jobs)
        for number, item in enumerate(found):
            expected = [f'data: {{"text": "{number}"}}\n\n', 'data: {"text": "x"}\n\n', "data: [DONE]\n\n"]
            assert item == expected if number % 2 else item[0]["text"] == f"{number} x"
    assert worker.proxy.in_flight == 0
    assert process.memory_info().rss - before < 40e6


def test_a_slow_start_is_waited_for_with_progress() -> None:
    engine = make_engine(free_port(), STANDIN_LOAD="1.5")
    engine.start()
    told: list[str] = []
    try:
        engine.wait_ready(30, tell=told.append, every=0.3)
        assert engine.kv_tokens() == 6400 * 16
    finally:
        engine.stop(1)  # one that hangs is killed
    assert "Loading safetensors checkpoint shards:  50% Completed" in told[-2]
    assert told[-1].startswith("ready after")
    assert not engine.alive


def test_an_engine_that_is_not_ready_in_time_or_ends_or_is_not_there_is_an_error() -> None:
    slow = make_engine(free_port(), STANDIN_LOAD="60")
    slow.start()
    with pytest.raises(EngineError, match="not ready after 1 s"):
        slow.wait_ready(1, tell=lambda _: None)
    slow.stop(5)
    broken = make_engine(free_port(), STANDIN_FAIL="3")
    broken.start()
    with pytest.raises(EngineError, match=r"ended with 3 while it loaded\n(?s:.*)no kernel image"):
        broken.wait_ready(30, tell=lambda _: None)
    broken.stop(5)
    with pytest.raises(EngineError, match="could not be started"):
        Engine(["/nowhere/vllm"], {}, port=1).start()


class Deployed:
    """The worker as its image runs it."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.port, self.api = free_port(), free_port()
        program = folder / "vllm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
        program.chmod(0o755)
        base = {k: v for k, v in os.environ.items() if not k.startswith(("RUNPOD", "MODEL"))}
        settings = {"MODEL": "openai/gpt-oss-20b", "MODEL_REVISION": "0" * 40, "GPU_MEMORY_GB": "80"}
        more = {"VLLM_PORT": str(self.port), "WORKER_ENGINE": str(program), "STOP_TIMEOUT": "5"}
        serve = [word.replace("API", str(self.api)) for word in arguments]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "runtime.worker.handler", *serve],
            cwd=ROOT,
            env={**base, **settings, **more, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, job_input: Any, path: str = "runsync") -> dict[str, Any]:
        data = json.dumps({"input": job_input}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api}/{path}", data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.api)) == 0:
                    return
            assert self.child.poll() is None, self.child.communicate()[0]
            time.sleep(0.1)
        raise AssertionError("no API")

    def end(self) -> tuple[int, str]:
        text, _ = self.child.communicate(timeout=30)
        return self.child.returncode, text


@contextmanager
def deployed(folder: Path, *arguments: str, **environment: str) -> Iterator[Deployed]:
    worker = Deployed(folder, *arguments, **environment)
    try:
        yield worker
    finally:
        worker.child.kill()
        worker.child.communicate()


API = ("--rp_serve_api", "--rp_api_port", "API", "--rp_api_host", "127.0.0.1")


def engines_left(port: int) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]


def test_the_sdks_own_server_gets_answers_and_sigterm_ends_worker_and_engine(tmp_path: Path) -> None:
    with deployed(tmp_path, *API) as worker:
        worker.wait()
        whole = worker.call({"prompt": "echo hello"})
        assert whole["status"] == "COMPLETED"
        assert whole["output"][0]["text"] == "hello"
        assert worker.call(chat("echo a b", stream=True))["output"][-1] == "data: [DONE]\n\n"
        worker.child.send_signal(signal.SIGTERM)
        code, log = worker.end()
        assert code in {0, 128 + signal.SIGTERM, -signal.SIGTERM}
        assert "--tool-call-parser openai --enable-auto-tool-choice" in log
        assert "25 jobs at once" in log
        assert not engines_left(worker.port)


def test_the_worker_leaves_when_its_engine_dies_so_that_it_is_replaced(tmp_path: Path) -> None:
    with deployed(tmp_path, *API) as worker:
        worker.wait()
        failed = worker.call(chat("die"))
        assert "connection to the engine broke" in failed["output"][0]["error"]
        code, log = worker.end()
        assert code == 11
        assert "the engine ended with 9; leaving" in log


def test_a_killed_worker_takes_its_engine_with_it(tmp_path: Path) -> None:
    with deployed(tmp_path, *API) as worker:
        worker.wait()
        worker.child.kill()
        worker.child.wait()
        deadline = time.monotonic() + 10
        while engines_left(worker.port) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not engines_left(worker.port)


@pytest.mark.parametrize(
    ("wish", "code", "words"), [("echo hello", 0, "'text': 'hello'"), ("status 500 no", 1, "failed with error")]
)
def test_the_sdks_test_input_gives_the_whole_answer_and_fails_with_the_job(
    tmp_path: Path, wish: str, code: int, words: str
) -> None:
    job = json.dumps({"input": {"prompt": wish}})
    with deployed(tmp_path, "--test_input", job) as worker:
        found, log = worker.end()
        assert words in log
        assert found == code
        assert not engines_left(worker.port)


def test_sigterm_while_it_loads_ends_engine_and_worker(tmp_path: Path) -> None:
    with deployed(tmp_path, STANDIN_LOAD="60") as worker:
        deadline = time.monotonic() + 30
        while not engines_left(worker.port) and time.monotonic() < deadline:
            time.sleep(0.1)
        worker.child.send_signal(signal.SIGTERM)
        assert worker.end()[0] == 128 + signal.SIGTERM
        assert not engines_left(worker.port)


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"MODEL_REVISION": ""}, 2, "MODEL_REVISION must be the commit"),
        ({"MAX_MODEL_LEN": "many", "MAX_NUM_SEQ": "1"}, 2, "MAX_MODEL_LEN: Input should be a valid integer"),
        ({"MODEL": "openai/gpt-oss-120b", "GPU_MEMORY_GB": "24"}, 2, "needs 60 GB"),
        ({"WORKER_ENGINE": "/nowhere/vllm"}, 11, "could not be started"),
        ({"STANDIN_FAIL": "1"}, 11, "the engine ended with 1 while it loaded"),
    ],
)
def test_a_worker_that_cannot_start_says_why(
    tmp_path: Path, environment: dict[str, str], code: int, words: str
) -> None:
    with deployed(tmp_path, **environment) as worker:
        found, log = worker.end()
        assert words in log
        assert found == code
        assert "Traceback" not in log
