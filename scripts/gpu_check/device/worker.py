"""Run in a process of its own: `python -m scripts.gpu_check.device.worker FOLDER --family F --seed N [--skip NAME]…`.

FOLDER is the wheel's unpacked `vllm/`. Writes one JSON object per line to stdout: `operators` and `planned` once,
then `begin` and `check` for every check; a crash therefore loses nothing but the check that began last.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scripts.gpu_check.device.coverage import Registered, load, missing, verdict_without_check
from scripts.gpu_check.device.probe import TABLE, Check, Probe

MODULES = (
    *("norms", "activations", "gates", "quant", "gemms", "moe", "routing", "weights"),
    *("kv_cache", "kimi", "tiers", "fused_rope", "attention", "lookups", "host"),
)


def fill_table() -> None:
    """Import all modules that enter checks."""
    for name in MODULES:
        importlib.import_module(f"scripts.gpu_check.device.{name}")


def say(**values: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def result(check: Check, seed: int, device: str = "cuda") -> dict[str, Any]:
    """Run one check twice with the same seed; return what it saw."""
    probes = []
    started = time.monotonic()
    for _ in range(2):
        torch.manual_seed(seed)
        probe = Probe(device)
        check.run(probe)
        if device == "cuda":
            torch.cuda.synchronize()
        probes.append(probe)
    lines = [
        {
            "dtype": line.dtype,
            "error": line.error if math.isfinite(line.error) else str(line.error),
            "limit": line.limit,
            "cases": line.cases,
            "ok": line.ok,
        }
        for line in probes[0].lines.values()
    ]
    return {
        "ok": bool(lines) and all(line["ok"] for line in lines),
        "lines": lines,
        "notes": probes[0].notes,
        "sha256": probes[0].digest,
        "repeatable": probes[0].digest == probes[1].digest,
        "seconds": round(time.monotonic() - started, 3),
    }


def run(check: Check, operators: list[Registered], seed: int) -> dict[str, Any]:
    """Run a check, or say why it cannot be run here."""
    if gone := missing(operators, check.operators):
        return {"state": "not in the wheel", "reason": f"no kernel of {', '.join(gone)}"}
    if not check.arch(torch.cuda.get_device_capability()):
        return {"state": "other arch", "reason": "this kernel is for other GPUs"}
    try:
        seen = result(check, seed)
    except Exception as error:  # noqa: BLE001  # whatever a kernel or its wrapper throws belongs in the table
        text = str(error).strip().splitlines() or [""]
        return {"state": "error", "reason": f"{type(error).__name__}: {text[0][:300]}"}
    return {"state": "ok" if seen["ok"] else "wrong" if seen["lines"] else "not covered", **seen}


def machine() -> dict[str, Any]:
    """Return what torch says of the GPU and its driver."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def main(arguments: list[str]) -> int:
    """Run the command; the exit code tells only whether it came to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="list the operators; needs no GPU")
    options = parser.parse_args(arguments)
    fill_table()
    operators, loaded = load(options.folder)
    listed = [[o.name, o.kernel, *verdict_without_check(o)] for o in operators]
    say(event="operators", operators=listed, libraries=loaded)
    if options.list:
        return 0
    say(event="machine", **machine())
    listed_checks = [{"check": c.name, "operators": c.operators, "family": f} for f in options.family for c in TABLE[f]]
    say(event="planned", checks=listed_checks)
    for family in options.family:
        for check in TABLE[family]:
            if check.name in options.skip or (options.only and check.name not in options.only):
                continue
            say(event="begin", check=check.name, operators=check.operators, family=family)
            seen = run(check, operators, options.seed)
            say(event="check", check=check.name, operators=check.operators, family=family, **seen)
            if "CUDA error" in str(seen.get("reason", "")) or "AcceleratorError" in str(seen.get("reason", "")):
                return 3  # the context is lost: the parent starts another process for the rest
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
