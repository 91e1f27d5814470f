"""Run operators of a `_moe_C` on a GPU and compare them with float64: `python tests/gpu/moe_ops.py SHARED_OBJECT`.

Needs torch and a GPU, nothing of this project. Prints one line of JSON: worst error per operator, relative to the
largest reference value, against its limit; and a digest of all outputs (inputs are seeded, so that two builds can be
compared bit for bit). Exit code 1 when a limit is passed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys

import torch

LIMITS = {
    "topk_softmax": 1e-5,
    "topk_sigmoid": 1e-5,
    "moe_sum": 4e-3,  # bfloat16 output
    "router_gemm_bf16_fp32": 2e-3,
    "shuffle_rows": 0.0,
}
DIGEST = hashlib.sha256()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the worst relative error and add the output to the digest."""
    DIGEST.update(bytes(got.contiguous().view(torch.uint8).flatten().cpu().tolist()))
    difference = (got.double() - want.double()).abs().max()
    return float("inf") if difference.isnan() else float(difference / want.double().abs().max())


def topk(name: str, tokens: int, experts: int, k: int) -> float:
    """Gating: weights and indices of the k best experts; a wrong index counts as an infinite error."""
    gating = torch.randn(tokens, experts, device="cuda")
    weights = torch.full((tokens, k), float("nan"), device="cuda")
    indices = torch.full((tokens, k), -1, dtype=torch.int32, device="cuda")
    source = torch.empty_like(indices)
    getattr(torch.ops._moe_C, name)(weights, indices, source, gating, False, None)  # noqa: FBT003
    scores = gating.double().softmax(-1) if name == "topk_softmax" else gating.double().sigmoid()
    want, best = scores.topk(k)
    return error(weights, want) if torch.equal(best, indices.long()) else float("inf")


def moe_sum(tokens: int, k: int, hidden: int) -> float:
    """Sum over the experts of each token, bfloat16."""
    x = torch.randn(tokens, k, hidden, device="cuda", dtype=torch.bfloat16)
    out = torch.full((tokens, hidden), float("nan"), device="cuda", dtype=torch.bfloat16)
    torch.ops._moe_C.moe_sum(x, out)
    return error(out, x.double().sum(1))


def router_gemm(tokens: int, hidden: int, experts: int) -> float:
    """Product of bfloat16 matrices with float32 result."""
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(experts, hidden, device="cuda", dtype=torch.bfloat16)
    return error(torch.ops._moe_C.router_gemm_bf16_fp32(x, w), x.double() @ w.double().T)


def shuffle_rows(rows: int, hidden: int) -> float:
    """A gather of rows: exact."""
    x = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16)
    order = torch.randperm(rows, device="cuda").int()
    out = torch.full_like(x, float("nan"))
    torch.ops._moe_C.shuffle_rows(x, order, out)
    return error(out, x[order.long()])


def main(path: str) -> int:
    """Load the shared object, run all, print the result."""
    torch.manual_seed(7)
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    gates = [(1, 8, 2), (33, 64, 6), (512, 128, 8), (257, 256, 8)]
    products = [(1, 1024, 64), (16, 2880, 128), (300, 7168, 256)]
    worst = {
        "topk_softmax": max(topk("topk_softmax", *shape) for shape in gates),
        "topk_sigmoid": max(topk("topk_sigmoid", *shape) for shape in gates),
        "moe_sum": max(moe_sum(*shape) for shape in [(1, 2, 1024), (129, 2, 4096), (64, 3, 2880)]),
        "router_gemm_bf16_fp32": max(router_gemm(*shape) for shape in products),
        "shuffle_rows": max(shuffle_rows(*shape) for shape in [(7, 128), (500, 4096)]),
    }
    torch.cuda.synchronize()
    ok = all(value <= LIMITS[name] for name, value in worst.items())
    result = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "operators": {name: {"error": value, "limit": LIMITS[name]} for name, value in worst.items()},
        "outputs_sha256": DIGEST.hexdigest(),
        "ok": ok,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
