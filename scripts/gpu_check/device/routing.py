"""Routing of tokens to experts: operators that came after vLLM 0.20.1."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.moe import blocks_of, by_expert
from scripts.gpu_check.device.probe import Probe, check, dtype_name, poisoned, randn

CASES = ((1, 2048, 16, 2), (33, 2048, 64, 6), (300, 7168, 256, 8))  # tokens, hidden size, experts, experts per token
SPARE = 64  # entries of scratch beyond what is needed


def _int32(probe: Probe, *shape: int) -> Any:
    return torch.full(shape, -7, dtype=torch.int32, device=probe.device)


def _chosen(probe: Probe, tokens: int, experts: int, k: int) -> Any:
    return torch.rand(tokens, experts, device=probe.device).topk(k).indices.int()


def _scratch(probe: Probe, rows: int, experts: int) -> list[Any]:
    """Return the workspace of the sort and three arrays with an entry per row."""
    size = torch.ops._moe_C.moe_permute_sort_workspace_size(rows, experts)
    probe.true(size > 0, "a size for the sort's workspace")
    workspace = torch.empty(size + SPARE, dtype=torch.int8, device=probe.device)
    return [workspace, *(_int32(probe, rows + SPARE) for _ in range(3))]


def _inverse(order: Any) -> Any:
    """Return where each row goes, from which row comes where."""
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel(), device=order.device)
    return places


@check("moe", "_C::fp32_router_gemm", arch=lambda capability: capability >= (9, 0))
def fp32_router_gemm(probe: Probe) -> None:
    """float32 weights, few tokens, and the five sizes it was compiled for."""
    for hidden, experts in ((3072, 256), (6144, 128), (5120, 256), (4096, 352), (8192, 256)):
        w = randn(probe, experts, hidden)
        for dtype in (torch.float32, torch.bfloat16):
            for tokens in (1, 7, 32):
                x = randn(probe, tokens, hidden, dtype=dtype)
                out = poisoned(probe, tokens, experts, dtype=torch.float32)
                torch.ops._C.fp32_router_gemm(out, x, w)
                probe.close(out, x.double() @ w.double().T, dtype=f"float32 of {dtype_name(dtype)}")


@check("moe", "_moe_C::moe_permute_with_scratch", "_moe_C::moe_permute_sort_workspace_size")
def moe_permute_with_scratch(probe: Probe) -> None:
    """Rows sorted by expert, in memory that the caller brings."""
    for tokens, hidden, experts, k in CASES:
        x, ids = randn(probe, tokens, hidden, dtype=torch.bfloat16), _chosen(probe, tokens, experts, k)
        rows = tokens * k
        out = poisoned(probe, rows, hidden, dtype=torch.bfloat16)
        first = torch.full((experts + 1,), -7, dtype=torch.int64, device=probe.device)
        inverse, order = _int32(probe, tokens, k), torch.full((rows,), rows, dtype=torch.int32, device=probe.device)
        source = torch.arange(rows, dtype=torch.int32, device=probe.device).view(tokens, k)
        torch.ops._moe_C.moe_permute_with_scratch(
            x, ids, source, None, experts, experts, k, out, first, inverse, order, *_scratch(probe, rows, experts)
        )
        sorted_rows = torch.argsort(ids.flatten(), stable=True)
        probe.exact(first[1:], torch.bincount(ids.flatten().long(), minlength=experts).cumsum(0))
        probe.exact(out, x[sorted_rows // k])
        probe.exact(inverse.flatten(), _inverse(sorted_rows))


@check("moe", "_moe_C::moe_prepare_scatter", "_moe_C::moe_permute_sort_workspace_size")
def moe_prepare_scatter(probe: Probe) -> None:
    """Where each row goes when sorted by expert; with all experts here, and with the first half of them."""
    for tokens, _, experts, k in CASES:
        ids = _chosen(probe, tokens, experts, k)
        rows, flat = tokens * k, ids.flatten().long()
        for local in (experts, experts // 2):
            number = torch.arange(experts, dtype=torch.int32, device=probe.device)
            here = None if local == experts else torch.where(number < local, number, -1)
            first = torch.full((local + 1,), -7, dtype=torch.int64, device=probe.device)
            places = _int32(probe, tokens, k)
            source = torch.arange(rows, dtype=torch.int32, device=probe.device).view(tokens, k)
            scratch = _scratch(probe, rows, experts)
            torch.ops._moe_C.moe_prepare_scatter(ids, source, here, experts, local, first, places, *scratch)
            counts = torch.bincount(flat, minlength=experts)[:local]
            probe.exact(first, torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)]))
            want = _inverse(torch.argsort(flat, stable=True))
            kept = flat < local  # the others come behind, in an order that nothing reads
            probe.exact(places.flatten()[kept], want[kept])


@check("moe", "_moe_C::fused_globalize_align_block_size")
def fused_globalize_align_block_size(probe: Probe) -> None:
    """Received local expert numbers: made global in place, grouped by expert in whole blocks; one block and many."""
    for tokens, received, k, local, offset, block in ((8, 5, 2, 8, 16, 16), (700, 611, 8, 32, 32, 64)):
        everywhere = 2 * local + offset
        ids = torch.randint(-1, local + 2, (tokens, k), device=probe.device)
        rows = tokens * k
        room = rows + local * (block - 1)
        valid = (ids >= 0) & (ids < local) & (torch.arange(tokens, device=probe.device) < received)[:, None]
        got, psum = ids.clone(), torch.tensor([1, received], dtype=torch.int32, device=probe.device)
        out, owners, count = _int32(probe, room), _int32(probe, room // block + 1), _int32(probe, 1)
        scatter = _int32(probe, tokens, k)
        torch.ops._moe_C.fused_globalize_align_block_size(
            got, psum, offset, everywhere, local, block, out, owners, count, scatter
        )
        probe.exact(got, torch.where(valid, ids + offset, -1))
        number = torch.arange(rows, device=probe.device).view(tokens, k)
        probe.exact(scatter, torch.where(valid, number, -1))
        # Rows of no expert here are sorted as of one expert more, and left out.
        blocks, whose = blocks_of(torch.where(valid, ids, local).flatten().cpu(), local + 1, block)
        kept = [entry for entry, expert in zip(blocks, whose, strict=True) if expert < local]
        mine = [expert for expert in whose if expert < local]
        want = [index for entry in kept for index in (*entry, *([rows] * (block - len(entry))))]
        used = len(want)
        probe.exact(count.cpu(), torch.tensor([used], dtype=torch.int32))
        filled = [*mine, *([-1] * (owners.numel() - len(mine)))]
        probe.exact(owners.cpu(), torch.tensor(filled, dtype=torch.int32))
        expert = torch.tensor(mine, dtype=torch.long, device=probe.device).repeat_interleave(block)
        wanted = torch.tensor(want, dtype=torch.long, device=probe.device)
        probe.exact(by_expert(out[:used], expert, room), by_expert(wanted, expert, room))
        probe.exact(out[used:], torch.full_like(out[used:], rows))
