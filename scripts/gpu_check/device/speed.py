"""A few operators against torch's own on the same inputs: `python -m scripts.gpu_check.device.speed FOLDER`.

A wheel compiled without optimisation, or one that the driver compiled just now, is tens of times slower than torch;
the limits are wide on purpose. Times are the median of device events, in microseconds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from scripts.gpu_check.device.coverage import load
from scripts.gpu_check.device.probe import FP8, fitting

REPEATS = 50


def microseconds(run: Callable[[], object]) -> float:
    """Return the median time of one call."""
    for _ in range(5):
        run()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return float(statistics.median(times))


def _pairs() -> Iterator[tuple[str, str, float, Callable[[], object], Callable[[], object]]]:
    """Yield operator, what it is compared with, how much slower it may be, and both as functions."""
    ops, moe = torch.ops._C, torch.ops._moe_C
    half = torch.bfloat16
    x = torch.randn(8192, 8192, device="cuda", dtype=half)
    out, weight = torch.empty_like(x), torch.randn(8192, device="cuda", dtype=half)
    if hasattr(ops, "rms_norm"):
        yield (
            "rms_norm",
            "torch's rms_norm",
            1.5,
            lambda: ops.rms_norm(out, x, weight, 1e-6),
            lambda: F.rms_norm(x, (8192,), weight, 1e-6),
        )
        narrow = torch.empty(8192, 4096, device="cuda", dtype=half)
        first, second = x.chunk(2, -1)
        yield (
            "silu_and_mul",
            "silu(a) * b, two kernels",
            1.5,
            lambda: ops.silu_and_mul(narrow, x),
            lambda: F.silu(first) * second,
        )
    if hasattr(ops, "cutlass_scaled_mm"):
        a, b = (torch.randn(4096, 4096, device="cuda").to(FP8) for _ in range(2))
        scale = torch.ones(1, 1, device="cuda")
        product = torch.empty(4096, 4096, device="cuda", dtype=half)
        yield (
            "cutlass_scaled_mm fp8 4096^3",
            "torch._scaled_mm",
            2.0,
            lambda: ops.cutlass_scaled_mm(product, a, b.t(), scale, scale, None),
            lambda: torch._scaled_mm(a, b.t(), scale, scale, out_dtype=half),
        )
    if hasattr(moe, "topk_softmax"):
        gates = torch.randn(8192, 128, device="cuda")
        weights = torch.empty(8192, 8, device="cuda")
        plain = fitting(moe.topk_softmax, {"bias": None, "is_padding": None})
        index, source = (torch.empty(8192, 8, dtype=torch.int32, device="cuda") for _ in range(2))
        yield (
            "topk_softmax",
            "softmax, then topk",
            1.5,
            lambda: moe.topk_softmax(weights, index, source, gates, False, **plain),
            lambda: gates.softmax(-1).topk(8),
        )
        parts = torch.randn(8192, 2, 4096, device="cuda", dtype=half)
        total = torch.empty(8192, 4096, device="cuda", dtype=half)
        yield "moe_sum", "torch's sum", 2.0, lambda: moe.moe_sum(parts, total), lambda: parts.sum(1)


def main(folder: str) -> int:
    """Load, time, print one JSON line."""
    load(Path(folder))
    rows: list[dict[str, Any]] = []
    for name, against, limit, ours, theirs in _pairs():
        mine, torchs = microseconds(ours), microseconds(theirs)
        row = {"operator": name, "us": round(mine, 1), "against": against, "torch_us": round(torchs, 1)}
        rows.append({**row, "ratio": round(mine / torchs, 3), "limit": limit, "ok": mine <= limit * torchs})
    sys.stdout.write("RESULT " + json.dumps({"rows": rows, "ok": all(row["ok"] for row in rows)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
