"""A stand-in for a GPU machine's Python: says what a plan tells it to. `python tests/fake_gpu.py PLAN ARGUMENTS…`.

The plan is a JSON file: `torch` and `gpu` (exit codes), `driver_says`, `families` (name to checks and what they do:
ok, jit, wrong, crash, hang, lost, other), `engine` (run to what it prints), `speed`, `attention` (exit code).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any


def install(folder: Path, plan: dict[str, Any]) -> Path:
    """Write the plan, a `python3` and an `nvidia-smi` that follow it; return the first."""
    (folder / "plan.json").write_text(json.dumps(plan))
    python = folder / "python3"
    words = [sys.executable, str(Path(__file__).resolve()), str(folder / "plan.json")]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{plan.get('smi', 'echo 580.1')}\n")
    for path in (python, smi):
        path.chmod(0o755)
    return python


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def worker(plan: dict[str, Any], words: list[str]) -> int:
    def given(flag: str) -> list[str]:
        return [words[i + 1] for i, word in enumerate(words) if word == flag]

    names = [n for checks in plan["families"].values() for n in checks]
    operators = [[f"_C::{name}", True, "not covered", "no check written"] for name in [*names, "extra"]]
    say(event="operators", operators=operators, libraries=plan.get("libraries", {"_C.abi3.so": ""}))
    if plan.get("broken"):
        sys.stderr.write("no libcudart\n")
        return 1
    say(event="machine", gpu="Fake", capability=plan.get("capability", "9.0"), torch="2", cuda="13.0", python="3.12")
    family = given("--family")[0]
    planned = [{"check": n, "operators": [f"_C::{n}"], "family": family} for n in plan["families"].get(family, {})]
    say(event="planned", checks=planned)
    slimmed = "slim-site" in words[2]
    for name, what in plan["families"].get(family, {}).items():
        if name in given("--skip") or (given("--only") and name not in given("--only")):
            continue
        about = {"check": name, "operators": [f"_C::{name}"], "family": family}
        say(event="begin", **about)
        sys.stdout.write("noise\n[1]\n")
        say(event="check", **about, **outcome(what, name, slimmed=slimmed))
        if what == "lost":
            return 3
    return 0


def outcome(what: str, name: str, *, slimmed: bool) -> dict[str, Any]:
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(60)
    if what == "other":
        return {"state": "other arch", "reason": "for others"}
    if what == "lost" or (what == "jit" and "CUDA_DISABLE_PTX_JIT" in os.environ):
        return {"state": "error", "reason": "CUDA error: no kernel image"}
    ok = what != "wrong"
    changing = what == "moving" or (what == "differs" and slimmed)
    return {
        "state": "ok" if ok else "wrong",
        "lines": [{"dtype": "float32", "error": 0.0 if ok else 0.5, "limit": 0.1, "cases": 1, "ok": ok}],
        "sha256": str(time.time_ns()) if changing else name,
        "repeatable": what != "moving",
        "notes": [],
    }


def main(plan: dict[str, Any], words: list[str]) -> int:
    if words[0] == "-c" and "device_count" in words[1]:
        sys.stderr.write(str(plan.get("driver_says", "")))
        return int(plan.get("gpu", 0))
    if words[0] == "-c" and "vllm" in words[1]:
        sys.stderr.write("ImportError: no flash-attention\n")
        return int(plan.get("attention", 1))
    if words[0] == "-c":
        return int(plan.get("torch", 0))
    if words[1] == "scripts.gpu_check.device.worker":
        return worker(plan, words)
    speed = words[1] == "scripts.gpu_check.device.speed"
    result = plan["speed"] if speed else plan["engine"].get(f"{words[2]} {words[3]}")
    if result is None:
        sys.stderr.write("first\nRuntimeError: engine died\n")
        return 1
    sys.stdout.write("RESULT " + json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]))
