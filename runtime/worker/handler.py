"""The worker: `python -m worker.handler` starts the engine, waits for it, and takes jobs until it is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import runpod
from pydantic import ValidationError

from . import gpt_oss
from .engine import Engine, EngineError, concurrency
from .flags import serve_command
from .proxy import Output, Proxy, failure
from .routes import InputError, engine_request
from .settings import Settings, engine_environment, misspelt, settings_help

EXIT_SETTINGS, EXIT_ENGINE = 2, 11
GPU_CHECK = Path(__file__).parents[1] / "gpu.py"
"""The image's own check, beside the worker's folder; there is none outside an image."""
Job = dict[str, Any]


def say(text: str) -> None:
    """Write a line to the worker's log."""
    sys.stderr.write(f"worker: {text}\n")
    sys.stderr.flush()


class Worker:
    """An engine that is ready, and what jobs need of it."""

    def __init__(self, settings: Settings, engine: Engine, *, jobs: int) -> None:
        self.settings, self.engine, self.jobs = settings, engine, jobs
        self.proxy = Proxy(engine.url, silence=settings.request_timeout)
        self._harmony = gpt_oss.size_of(settings.model_name) is not None or gpt_oss.size_of(settings.model) is not None
        self._draining = False

    async def handle(self, job: Job) -> AsyncIterator[Output]:
        """Yield a job's outputs: the handler of the RunPod SDK."""
        try:
            request = engine_request(job.get("input"), model=self.settings.model_name, harmony=self._harmony)
        except InputError as error:
            yield failure(str(error), kind="invalid_request_error", status=400)
            return
        async for output in self.proxy.outputs(request):
            yield output

    async def handle_whole(self, job: Job) -> Job:
        """Return a job's outputs together: for `--test_input`, where the SDK does not read generators."""
        outputs = [output async for output in self.handle(job)]
        await self.proxy.close()
        broken = next((item for item in outputs if isinstance(item, dict) and "error" in item), None)
        return broken if isinstance(broken, dict) else {"outputs": outputs}

    def scale(self, _current: int) -> int:
        """Return how many jobs to take at once. The SDK calls it in its main thread, after it set its own signals."""
        if not self._draining:
            self._drain_on_sigterm()
        return self.jobs

    def _drain_on_sigterm(self) -> None:
        """After SIGTERM let jobs in flight end, then leave: the SDK itself would first wait for its next job."""
        self._draining = True
        theirs = signal.getsignal(signal.SIGTERM)

        def stop(number: int, frame: FrameType | None) -> None:
            if callable(theirs):
                theirs(number, frame)
            threading.Thread(target=self._drain, name="drain", daemon=True).start()

        signal.signal(signal.SIGTERM, stop)

    def _drain(self) -> None:
        say(f"told to stop: {self.proxy.in_flight} jobs in flight")
        self.wait_idle(self.settings.stop_timeout)
        self.engine.stop(self.settings.stop_timeout)
        os._exit(0)

    def wait_idle(self, seconds: float) -> None:
        """Wait until no job is in flight and its last output had a second to leave, `seconds` at most."""
        deadline = time.monotonic() + seconds
        while self.proxy.in_flight and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def engine_died(self, code: int) -> None:
        """Leave with the engine, after jobs in flight were told: the platform then starts another worker."""
        say(f"the engine ended with {code}; leaving so that this worker is replaced\n{self.engine.log_tail()}")
        self.wait_idle(5.0)
        os._exit(EXIT_ENGINE)


def read_settings() -> Settings:
    """Return the settings of the environment, or leave with 2 and what is wrong, one line each."""
    for wrong, right in misspelt(os.environ).items():
        say(f"{wrong} is no setting. Perhaps you meant {right}?")
    try:
        return Settings()
    except ValidationError as error:
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"]).upper()
            say(f"error: {name + ': ' if name else ''}{item['msg']}")
        say("see docs/deploy-runpod.md for the settings")
        sys.exit(EXIT_SETTINGS)


def check_gpu(program: Path = GPU_CHECK) -> int:
    """Hold the GPU against the audit; return 0, or the exit code to leave with. The entry point may have done it."""
    if os.environ.get("WHEELSMITH_GPU_CHECK", "1") == "0" or not program.is_file():
        return 0
    return subprocess.run([sys.executable, str(program)], check=False).returncode


def gpu_memory_gb() -> float | None:
    """Return the memory of the smallest GPU in GB (10^9 bytes), None when the driver does not tell."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return min((pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in handles), default=0) / 1e9 or None
    except pynvml.NVMLError:
        return None


def make_engine(settings: Settings, *, program: str = "vllm") -> Engine:
    """Return the engine for the settings, not started; leave with 2 when the model cannot fit."""
    memory = settings.gpu_memory_gb or gpu_memory_gb()
    try:
        defaults = gpt_oss.defaults(settings, memory)
    except ValueError as error:
        say(f"error: {error}")
        sys.exit(EXIT_SETTINGS)
    command = serve_command(settings, defaults, program=program)
    return Engine(command, engine_environment(settings, dict(os.environ)), port=settings.engine_port)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main(start: Callable[[dict[str, Any]], object] = runpod.serverless.start) -> int:
    """Run the worker; return its exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(settings_help())
        return 0
    if code := check_gpu():
        return code
    settings = read_settings()
    engine = make_engine(settings, program=os.environ.get("WORKER_ENGINE", "vllm"))
    signal.signal(signal.SIGTERM, _leave)
    try:
        say(f"starting {settings.model} ({' '.join(engine.command[1:])})")
        engine.start()
        engine.wait_ready(settings.start_timeout, tell=say)
        tokens = engine.kv_tokens()
        jobs = concurrency(tokens, per_request=settings.tokens_per_request, most=settings.max_concurrency)
        say(f"KV cache of {tokens or 'unknown'} tokens: {jobs} jobs at once")
        worker = Worker(settings, engine, jobs=jobs)
        engine.watch(worker.engine_died)
        start({"handler": _handler(worker), "concurrency_modifier": worker.scale, "return_aggregate_stream": True})
    except EngineError as error:
        say(f"error: {error}")
        return EXIT_ENGINE
    finally:
        engine.stop(settings.stop_timeout)
    return 0


def _handler(worker: Worker) -> Callable[[Job], AsyncIterator[Output]] | Callable[[Job], Awaitable[Job]]:
    """Return the generator, or, for `--test_input`, the whole answer: there the SDK reads no generators."""
    if any(word.startswith("--test_input") for word in sys.argv[1:]):
        return worker.handle_whole
    return worker.handle


if __name__ == "__main__":
    sys.exit(main())
