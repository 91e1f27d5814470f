"""Mixture of experts: routing, sorting tokens by expert, permuting, summing, and the quantised expert products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from scripts.gpu_check.device.probe import DTYPES, HALVES, Probe, call, check, dtype_name, poisoned, randn

GATES = ((1, 8, 2), (33, 64, 6), (512, 128, 8), (257, 256, 8), (64, 60, 4))


def _hopper(capability: tuple[int, int]) -> bool:
    return capability[0] in (9, 10)


def _gate(probe: Probe, operator: Any, score: Any, *, renormalize: bool) -> None:
    for dtype in DTYPES:
        for tokens, experts, k in GATES:
            # Distinct values also in half precision, so that the k best are well defined.
            gating = torch.stack([torch.randperm(experts, device=probe.device) for _ in range(tokens)])
            gating = (gating.float() / experts * 4 - 2).to(dtype)
            weights = poisoned(probe, tokens, k, dtype=torch.float32)
            indices = poisoned(probe, tokens, k, dtype=torch.int32)
            source = torch.empty_like(indices)
            plain = {"bias": None, "is_padding": None, "routed_scaling_factor": 1.0}
            call(operator, weights, indices, source, gating, renormalize, neutral=plain)
            want, best = score(gating.double()).topk(k)
            if renormalize:
                want = want / want.sum(-1, keepdim=True)
            probe.close(weights, want, dtype=f"float32 of {dtype_name(dtype)}")
            probe.exact(indices.sort(-1).values, best.sort(-1).values, dtype="indices")


def _softmax(x: Any) -> Any:
    return x.softmax(-1)


@check("moe", "_moe_C::topk_softmax")
def topk_softmax(probe: Probe) -> None:
    """Weights and indices of the k best experts."""
    for renormalize in (False, True):
        _gate(probe, torch.ops._moe_C.topk_softmax, _softmax, renormalize=renormalize)


@check("moe", "_moe_C::topk_sigmoid")
def topk_sigmoid(probe: Probe) -> None:
    """The same with sigmoid scores."""
    for renormalize in (False, True):
        _gate(probe, torch.ops._moe_C.topk_sigmoid, torch.sigmoid, renormalize=renormalize)


@check("moe", "_moe_C::topk_softplus_sqrt")
def topk_softplus_sqrt(probe: Probe) -> None:
    """sqrt(softplus) scores, scaled by 2.5 after renormalising; float32 and the expert counts it was compiled for."""
    for tokens, experts, k in ((1, 256, 6), (33, 256, 8), (300, 384, 6)):
        gating = torch.stack([torch.randperm(experts, device=probe.device) for _ in range(tokens)])
        gating = gating.float() / experts * 4 - 2
        weights = poisoned(probe, tokens, k, dtype=torch.float32)
        indices = poisoned(probe, tokens, k, dtype=torch.int32)
        source = torch.empty_like(indices)
        nothing = {"bias": None, "input_ids": None, "tid2eid": None, "is_padding": None}
        call(torch.ops._moe_C.topk_softplus_sqrt, weights, indices, source, gating, True, 2.5, neutral=nothing)
        want, best = F.softplus(gating.double()).sqrt().topk(k)
        probe.close(weights, want / want.sum(-1, keepdim=True) * 2.5)
        probe.exact(indices.sort(-1).values, best.sort(-1).values, dtype="indices")


@check("moe", "_moe_C::grouped_topk")
def grouped_topk(probe: Probe) -> None:
    """DeepSeek's routing: best groups by their two best biased scores, then the best experts in them."""
    for tokens, experts, groups, kept, k in ((1, 256, 8, 4, 8), (65, 256, 8, 4, 8), (300, 64, 1, 1, 6)):
        logits = randn(probe, tokens, experts)
        bias = randn(probe, experts, scale=0.1)
        values, indices = torch.ops._moe_C.grouped_topk(logits, groups, kept, k, True, 2.5, bias, 1)
        score = torch.sigmoid(logits.double())
        biased = score + bias.double()
        by_group = biased.view(tokens, groups, -1).topk(2, -1).values.sum(-1)
        chosen = torch.zeros_like(by_group).scatter_(1, by_group.topk(kept).indices, 1.0)
        allowed = chosen.repeat_interleave(experts // groups, 1).bool()
        best = biased.masked_fill(~allowed, -1e30).topk(k).indices
        want = score.gather(1, best)
        want = want / want.sum(-1, keepdim=True) * 2.5
        order, ours = indices.long().sort(-1), best.sort(-1)
        probe.exact(order.values, ours.values, dtype="indices")
        probe.close(values.gather(1, order.indices), want.gather(1, ours.indices))


@check("moe", "_moe_C::moe_sum")
def moe_sum(probe: Probe) -> None:
    """Sum over the experts of each token."""
    for dtype in DTYPES:
        for tokens, k, hidden in ((1, 2, 1024), (129, 2, 4096), (64, 3, 2880), (33, 4, 512), (17, 8, 2048)):
            x = randn(probe, tokens, k, hidden, dtype=dtype)
            out = poisoned(probe, tokens, hidden, dtype=dtype)
            torch.ops._moe_C.moe_sum(x, out)
            probe.close(out, x.double().sum(1))


def blocks_of(flat: Any, experts: int, block: int) -> tuple[list[list[int]], list[int]]:
    """Return the tokens of each block of `block`, by expert, without padding, and each block's expert."""
    lists: list[list[int]] = [[] for _ in range(experts)]
    for index, expert in enumerate(flat.tolist()):
        lists[expert].append(index)
    blocks, owners = [], []
    for expert, tokens in enumerate(lists):
        for start in range(0, len(tokens), block):
            blocks.append(tokens[start : start + block])
            owners.append(expert)
    return blocks, owners


def aligned(probe: Probe, topk_ids: Any, experts: int, block: int) -> tuple[Any, Any, Any]:
    """Return sorted token ids, expert of each block and the padded count, built here and not by the kernel."""
    blocks, owners = blocks_of(topk_ids.flatten().cpu(), experts, block)
    pad = topk_ids.numel()
    rows = [index for entry in blocks for index in (*entry, *([pad] * (block - len(entry))))]
    as_tensor = [torch.tensor(x, dtype=torch.int32, device=probe.device) for x in (rows, owners, [len(rows)])]
    return as_tensor[0], as_tensor[1], as_tensor[2]


@check("moe", "_moe_C::moe_align_block_size")
def moe_align_block_size(probe: Probe) -> None:
    """Tokens grouped by expert and padded to whole blocks, for few and many experts."""
    for tokens, k, experts, block in ((1, 2, 8, 16), (33, 4, 64, 16), (300, 8, 256, 64), (2000, 6, 60, 128)):
        ids = torch.rand(tokens, experts, device=probe.device).topk(k).indices.int()
        room = tokens * k + experts * (block - 1)
        out = torch.full((room,), -7, dtype=torch.int32, device=probe.device)
        owners = torch.full(((room + block - 1) // block,), -7, dtype=torch.int32, device=probe.device)
        count = torch.full((1,), -7, dtype=torch.int32, device=probe.device)
        torch.ops._moe_C.moe_align_block_size(ids, experts, block, out, owners, count, None)
        want, want_owners, want_count = aligned(probe, ids, experts, block)
        used = int(want_count)
        probe.exact(count, want_count)
        probe.exact(owners[: used // block], want_owners)
        expert = want_owners.repeat_interleave(block).long()
        probe.exact(by_expert(out[:used], expert, room), by_expert(want, expert, room))


def by_expert(tokens: Any, expert: Any, room: int) -> Any:
    """Sort tokens within each expert: which of an expert's blocks a token is in is left to chance."""
    return (expert * (room + 1) + tokens).sort().values


@check("moe", "_moe_C::batched_moe_align_block_size")
def batched_moe_align_block_size(probe: Probe) -> None:
    """The same for tokens that lie in one batch per expert."""
    for batch, experts, block in ((32, 8, 16), (129, 60, 64)):
        counts = torch.randint(0, batch + 1, (experts,), dtype=torch.int32, device=probe.device)
        room = experts * ((batch + block - 1) // block) * block
        out = torch.full((room,), -7, dtype=torch.int32, device=probe.device)
        owners = torch.full((room // block,), -7, dtype=torch.int32, device=probe.device)
        total = torch.full((1,), -7, dtype=torch.int32, device=probe.device)
        torch.ops._moe_C.batched_moe_align_block_size(batch, block, counts, out, owners, total)
        rows: list[int] = []
        want: list[int] = []
        for expert, count in enumerate(counts.tolist()):
            padded = (count + block - 1) // block * block
            rows += [expert * batch + i if i < count else experts * batch for i in range(padded)]
            want += [expert] * (padded // block)
        probe.exact(total.cpu(), torch.tensor([len(rows)], dtype=torch.int32))
        probe.exact(out[: len(rows)].cpu(), torch.tensor(rows, dtype=torch.int32))
        probe.exact(owners[: len(want)].cpu(), torch.tensor(want, dtype=torch.int32))


@check("moe", "_moe_C::moe_permute", "_moe_C::moe_unpermute", "_moe_C::moe_permute_unpermute_supported")
def moe_permute_unpermute(probe: Probe) -> None:
    """Rows sorted by expert, and the weighted sum back."""
    probe.true(torch.ops._moe_C.moe_permute_unpermute_supported(), "compiled with CUDA 12 or later")
    for tokens, hidden, experts, k in ((1, 2048, 16, 2), (33, 2048, 64, 6), (300, 7168, 256, 8)):
        dtype = torch.bfloat16
        x = randn(probe, tokens, hidden, dtype=dtype)
        ids = torch.rand(tokens, experts, device=probe.device).topk(k).indices.int()
        flat = torch.arange(tokens * k, dtype=torch.int32, device=probe.device)
        out = poisoned(probe, tokens * k, hidden, dtype=dtype)
        first = torch.full((experts + 1,), -7, dtype=torch.int64, device=probe.device)
        inverse = torch.full((tokens, k), -7, dtype=torch.int32, device=probe.device)
        order = torch.full((tokens * k,), tokens * k, dtype=torch.int32, device=probe.device)
        torch.ops._moe_C.moe_permute(
            x, ids, flat.view(tokens, k), None, experts, experts, k, out, first, inverse, order
        )
        counts = torch.bincount(ids.flatten().long(), minlength=experts).cumsum(0)
        probe.exact(first[1:], counts)
        rows = torch.argsort(ids.flatten(), stable=True)
        probe.exact(out, x[rows // k])
        weights = torch.rand(tokens, k, device=probe.device)
        back = poisoned(probe, tokens, hidden, dtype=dtype)
        torch.ops._moe_C.moe_unpermute(out, weights, inverse, None, k, back)
        probe.close(back, x.double() * weights.double().sum(-1, keepdim=True))


@check("moe", "_moe_C::shuffle_rows")
def shuffle_rows(probe: Probe) -> None:
    """A gather of rows."""
    for dtype in HALVES:
        for rows, hidden in ((7, 128), (500, 4096)):
            x = randn(probe, rows, hidden, dtype=dtype)
            order = torch.randint(0, rows, (2 * rows,), device=probe.device).int()
            out = poisoned(probe, 2 * rows, hidden, dtype=dtype)
            torch.ops._moe_C.shuffle_rows(x, order, out)
            probe.exact(out, x[order.long()])


@check("moe", "_moe_C::router_gemm_bf16_fp32")
def router_gemm(probe: Probe) -> None:
    """bfloat16 matrices, float32 result."""
    for tokens, hidden, experts in ((1, 1024, 64), (16, 2880, 128), (300, 7168, 256)):
        x = randn(probe, tokens, hidden, dtype=torch.bfloat16)
        w = randn(probe, experts, hidden, dtype=torch.bfloat16)
        probe.close(torch.ops._moe_C.router_gemm_bf16_fp32(x, w), x.double() @ w.double().T)


@check("moe", "_moe_C::dsv3_router_gemm", arch=_hopper)
def dsv3_router_gemm(probe: Probe) -> None:
    """The router of DeepSeek-V3 and Kimi: 1 to 16 tokens, hidden 7168."""
    for tokens in (1, 5, 16):
        for experts in (256, 384):
            for dtype in (torch.float32, torch.bfloat16):
                x = randn(probe, tokens, 7168, dtype=torch.bfloat16)
                w = randn(probe, experts, 7168, dtype=torch.bfloat16)
                out = poisoned(probe, tokens, experts, dtype=dtype)
                torch.ops._moe_C.dsv3_router_gemm(out, x, w)
                probe.close(out, x.double() @ w.double().T)


@check("moe", "_moe_C::moe_wna16_gemm")
def moe_wna16_gemm(probe: Probe) -> None:
    """Experts with 4 and 8 bit weights, a scale per 64 or 128 of k, against dequantised products."""
    for dtype in HALVES:
        for bit, group in ((4, 128), (4, 64), (8, 128)):
            tokens, k, experts, n, width = 9, 2, 8, 256, 512
            x = randn(probe, tokens, width, dtype=dtype, scale=0.5)
            codes = torch.randint(0, 2**bit, (experts, n, width), device=probe.device)
            packed = (codes[..., ::2] | codes[..., 1::2] << 4) if bit == 4 else codes
            scales = (torch.rand(experts, n, width // group, device=probe.device) * 0.02 + 0.005).to(dtype)
            ids = torch.rand(tokens, experts, device=probe.device).topk(k).indices.int()
            sorted_ids, owners, count = aligned(probe, ids, experts, 16)
            out = poisoned(probe, tokens * k, n, dtype=dtype)
            torch.ops._moe_C.moe_wna16_gemm(
                x, out, packed.to(torch.uint8).contiguous(), scales, None, None, sorted_ids, owners, count,
                k, 16, 64, max(group, 64), bit,
            )  # fmt: skip
            weight = (codes.double() - 2 ** (bit - 1)) * scales.double().repeat_interleave(group, -1)
            want = torch.einsum("td,tknd->tkn", x.double(), weight[ids.long()]).reshape(tokens * k, n)
            probe.close(out, want, limit=1e-2, dtype=f"{dtype_name(dtype)}, {bit} bit")
