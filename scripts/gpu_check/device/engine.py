"""Generate with the wheel's vLLM: `python -m scripts.gpu_check.device.engine MODEL MODE --folder DIR --seed N`.

MODE is eager, graphs, float32 (eager, in that type) or serve. Prints one line that begins with `RESULT ` and holds
JSON. Every generated token is compared with the reference's logits for the same beginning; a token that differs from
the reference's best is accepted when the two logits are nearer than TIE. In bfloat16 a mixture of experts may also
choose another expert where two are nearly equal, as transformers itself does in that type; ROUTED of its tokens may
differ there, none in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from scripts.gpu_check.device import models

TOKENS = 16
TIE = 0.25  # logits have a standard deviation of about 4; bfloat16 rounding through two layers is about 0.03
ROUTED = 0.05
LOGPROB_LIMIT = 0.25
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}
SERVE_SECONDS = 240


def settings(folder: Path, mode: str) -> dict[str, Any]:
    """Return vLLM's engine arguments for a mode."""
    values: dict[str, Any] = {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": "float32" if mode == "float32" else "bfloat16",
        "max_model_len": models.CONTEXT,
        "max_num_seqs": 8,
        "gpu_memory_utilization": 0.1,
        "kv_cache_memory_bytes": 64 << 20,  # no measuring: other checks share the GPU
        "attention_backend": "TRITON_ATTN",
        "enable_prefix_caching": False,
        "seed": 0,
    }
    custom = {"custom_ops": ["all"]}
    if mode in {"eager", "float32"}:
        return {**values, "enforce_eager": True, "compilation_config": {"mode": 0, **custom}}
    return {**values, "compilation_config": {**GRAPHS, **custom}}


def environment() -> None:
    """Keep vLLM from the network and in one process."""
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(name, value)


def judged(folder: Path, asked: list[list[int]], given: list[list[int]]) -> dict[str, Any]:
    """Compare generated tokens with the reference, token by token, each after the tokens really generated."""
    logits = models.reference(folder, [a + g for a, g in zip(asked, given, strict=True)])
    exact, ties, wrong, worst = 0, 0, 0, 0.0
    for ask, answer, scores in zip(asked, given, logits, strict=True):
        for index, token in enumerate(answer):
            row = scores[len(ask) + index - 1]
            gap = float(row.max() - row[token])
            worst = max(worst, gap)
            exact, ties, wrong = exact + (gap == 0), ties + (0 < gap <= TIE), wrong + (gap > TIE)
    return {"tokens": exact + ties + wrong, "best": exact, "ties": ties, "wrong": wrong, "largest_gap": worst}


def allowed_wrong(folder: Path, mode: str, tokens: int) -> int:
    """Return how many tokens may differ from the reference: none but for experts chosen in bfloat16."""
    routed = "num_local_experts" in json.loads((folder / "config.json").read_text())
    return int(tokens * ROUTED) if routed and mode != "float32" else 0


def first_logprobs(folder: Path, asked: list[list[int]], given: list[dict[int, float]]) -> float:
    """Return the largest difference of a first token's log-probability from the reference."""
    logits = models.reference(folder, asked)
    worst = 0.0
    for scores, answer in zip(logits, given, strict=True):
        want = scores[-1].double().log_softmax(-1)
        worst = max([worst, *(abs(float(want[token]) - value) for token, value in answer.items())])
    return worst


def generate(folder: Path, mode: str, seed: int) -> dict[str, Any]:
    """Generate greedily one by one and in a batch of eight, twice; judge all."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    started = time.monotonic()
    llm = LLM(**settings(folder, mode))
    ready = time.monotonic() - started
    asked = models.prompts(seed)
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=5)

    def run(batch: list[list[int]]) -> list[Any]:
        inputs = [{"prompt_token_ids": ids} for ids in batch]
        return [output.outputs[0] for output in llm.generate(inputs, sampling, use_tqdm=False)]

    together = run(asked)
    again = run(asked)
    alone = [run([ids])[0] for ids in asked]
    tokens = [list(output.token_ids) for output in together]
    single = [list(output.token_ids) for output in alone]
    firsts = [{token: entry.logprob for token, entry in output.logprobs[0].items()} for output in together]
    result: dict[str, Any] = {
        "judged": judged(folder, asked, tokens),
        "judged_one_by_one": judged(folder, asked, single),
        "repeatable": tokens == [list(output.token_ids) for output in again],
        "equal_for_batch_1_and_8": sum(a == b for a, b in zip(tokens, single, strict=True)),
        "prompts": len(asked),
        "first_logprob_error": first_logprobs(folder, asked, firsts),
        "first_logprob_limit": LOGPROB_LIMIT,
        "tokens": tokens,
        "seconds_to_ready": round(ready, 1),
    }
    allowed = allowed_wrong(folder, mode, result["judged"]["tokens"])
    result["wrong_allowed"] = allowed
    sound = max(result["judged"]["wrong"], result["judged_one_by_one"]["wrong"]) <= allowed
    result["ok"] = bool(sound and result["repeatable"] and result["first_logprob_error"] <= LOGPROB_LIMIT)
    return result


def free_port() -> int:
    """Return a port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(folder: Path, port: int) -> list[str]:
    """Return the `vllm serve` command line."""
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--host", "127.0.0.1"]
    words += ["--port", str(port), "--served-model-name", "tiny"]
    for name, value in settings(folder, "graphs").items():
        if name == "model":
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append("--no-" + flag[2:])
        else:
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def serve(folder: Path, _mode: str, seed: int) -> dict[str, Any]:
    """Start `vllm serve` on loopback, ask for completions of token ids, stop it."""
    port = free_port()
    started = time.monotonic()
    server = subprocess.Popen(command(folder, port), stdout=sys.stderr, stderr=sys.stderr)
    try:
        _wait(server, port)
        ready = time.monotonic() - started
        asked = models.prompts(seed, 3)
        tokens = [_complete(port, ids) for ids in asked]
        names = [entry["id"] for entry in _json(f"http://127.0.0.1:{port}/v1/models")["data"]]
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
    result: dict[str, Any] = {"judged": judged(folder, asked, tokens), "models": names, "tokens": tokens}
    counted = all(len(answer) == TOKENS for answer in tokens)
    return {**result, "seconds_to_ready": round(ready, 1), "ok": counted and not result["judged"]["wrong"]}


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + SERVE_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"vllm serve ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"vllm serve was not ready within {SERVE_SECONDS} s")


def _json(url: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  # our own loopback
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def _complete(port: int, ids: list[int]) -> list[int]:
    body = {
        "model": "tiny",
        "prompt": ids,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    answer = _json(f"http://127.0.0.1:{port}/v1/completions", body)
    return [int(token) for token in answer["choices"][0]["token_ids"]]


def main(arguments: list[str]) -> int:
    """Write the model, run the mode, print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=models.NAMES)
    parser.add_argument("mode", choices=("eager", "graphs", "float32", "serve"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    environment()
    models.write(options.model, options.folder, options.seed)
    run = serve if options.mode == "serve" else generate
    result = run(options.folder, options.mode, options.seed)
    sys.stdout.write("RESULT " + json.dumps(result) + "\n")
    sys.stdout.flush()
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
