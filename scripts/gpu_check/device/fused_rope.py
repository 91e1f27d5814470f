"""Norm of query and key heads, rotation and cache writes in one step, as single models need them."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.kimi import turned
from scripts.gpu_check.device.kv_cache import BLOCKS, slots_of, some_scale
from scripts.gpu_check.device.norms import EPS, cos_sin, rms, rotated
from scripts.gpu_check.device.probe import FP8, FP8_MAX, HALVES, Probe, call, check, dtype_name, poisoned, randn

BLOCK = 16
TWICE = 0.03  # rotated to bfloat16 and then to fp8: some values are rounded twice
LOOSE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}  # some kernels round between norm and rotation


def _positions(probe: Probe, tokens: int) -> Any:
    return torch.randint(0, 512, (tokens,), device=probe.device)


def _heads(qkv: Any, counts: tuple[int, ...], size: int) -> list[Any]:
    return list(qkv.clone().view(len(qkv), -1, size).split(counts, 1))


@check("norm", "_C::fused_qknorm_rope_cache")
def fused_qknorm_rope_cache(probe: Probe) -> None:
    """Weighted norm, rotation of the first columns, and both caches, as they are and as fp8."""
    for dtype in HALVES:
        for tokens, heads, kv_heads, size, turn in ((1, 5, 2, 128, 64), (83, 8, 2, 64, 64), (19, 4, 1, 256, 128)):
            counts = (heads, kv_heads, kv_heads)
            qkv = randn(probe, tokens, sum(counts) * size, dtype=dtype)
            weights = [randn(probe, size, dtype=dtype) for _ in range(2)]
            table, positions = cos_sin(probe, 512, turn, dtype), _positions(probe, tokens)
            slots = slots_of(probe, tokens, BLOCK)
            parts = _heads(qkv, counts, size)
            want = [rotated(rms(x, w), table[positions], neox=True) for x, w in zip(parts, weights, strict=False)]
            for storage, name in ((dtype, "auto"), (torch.uint8, "fp8")):
                outs = [poisoned(probe, tokens, n * size, dtype=dtype) for n in counts]
                caches = [torch.zeros(BLOCKS, BLOCK, kv_heads, size, dtype=storage, device=probe.device) for _ in "kv"]
                scales = [None, None] if name == "auto" else [some_scale(probe) for _ in range(2)]
                torch.ops._C.fused_qknorm_rope_cache(
                    *outs, qkv, *weights, *table.chunk(2, -1), positions, slots, *caches, size, heads, kv_heads,
                    turn // 2, EPS, 0.0, name, *scales,
                )  # fmt: skip
                for out, wanted in zip(outs, (*want, parts[2]), strict=True):
                    probe.close(out, wanted.double().flatten(1), limit=LOOSE[dtype])
                rows = [cache.view(-1, kv_heads, size)[slots] for cache in caches]
                for row, out, scale in zip(rows, outs[1:], scales, strict=True):
                    values = out.view(tokens, kv_heads, size)
                    if scale is None:
                        probe.exact(row, values)
                    else:
                        kind = f"fp8 of {dtype_name(dtype)}"
                        probe.codes(row.view(FP8), values.double() / scale.double(), dtype=kind)


@check("norm", "_C::fused_muse_spark_qknorm_rope_kv_insert")
def fused_muse_spark_qknorm_rope_kv_insert(probe: Probe) -> None:
    """Norm without weights, with and without rotation, in place; keys beside values in the cache; a gate stays."""
    for dtype in HALVES:
        for tokens, heads, kv_heads, size, turn in ((1, 32, 4, 64, 64), (33, 16, 2, 128, 64), (19, 4, 1, 256, 0)):
            counts = (heads, kv_heads, kv_heads, heads)
            qkv = randn(probe, tokens, sum(counts) * size, dtype=dtype)
            table = cos_sin(probe, 512, turn, torch.float32) if turn else None
            positions, slots = _positions(probe, tokens), slots_of(probe, tokens, BLOCK)
            parts, one = _heads(qkv, counts, size), torch.ones(size, device=probe.device)
            normed = [rms(x, one) for x in parts[:2]]
            want = normed if table is None else [rotated(x, table[positions], neox=False) for x in normed]
            cache = torch.zeros(BLOCKS, kv_heads, BLOCK, 2 * size, dtype=dtype, device=probe.device)
            torch.ops._C.fused_muse_spark_qknorm_rope_kv_insert(
                qkv, positions, heads, kv_heads, size, EPS, table, turn, slots, cache, BLOCK, "auto"
            )
            wanted = torch.cat([*want, *(x.double() for x in parts[2:])], 1)
            probe.close(qkv, wanted.flatten(1), limit=LOOSE[dtype])
            pair = _heads(qkv, counts, size)[1:3]
            probe.exact(cache.transpose(1, 2).reshape(-1, kv_heads, 2 * size)[slots], torch.cat(pair, -1))


def _gemma(x: Any, weight: Any, table: Any) -> Any:
    return rotated(rms(x, 1 + weight.double()), table, neox=True)


@check("norm", "_C::fused_minimax_m3_qknorm_rope_kv_insert")
def fused_minimax_m3_qknorm_rope_kv_insert(probe: Probe) -> None:
    """Norm with weights less one, half of each head rotated; alone, and with an indexer's heads and both caches."""
    dtype, size = torch.bfloat16, 128
    for tokens, heads, kv_heads, index_heads in ((1, 16, 4, 4), (64, 8, 2, 4)):
        table, positions = cos_sin(probe, 512, 64, dtype), _positions(probe, tokens)
        weights = [randn(probe, size, dtype=dtype) * 0.1 for _ in range(4)]
        here, limit = table[positions], LOOSE[dtype]
        counts: tuple[int, ...] = (heads, kv_heads, kv_heads)
        qkv = randn(probe, tokens, sum(counts) * size, dtype=dtype)
        parts = _heads(qkv, counts, size)
        operator = torch.ops._C.fused_minimax_m3_qknorm_rope_kv_insert
        given = (*weights[:2], table, positions, heads, kv_heads, 64, EPS)
        operator(qkv, *given, None, None, 0, None, None, None, None, 0, None, None, "auto")
        wanted = [_gemma(x, w, here) for x, w in zip(parts[:2], weights[:2], strict=True)]
        probe.close(qkv, torch.cat([*wanted, parts[2].double()], 1).flatten(1), limit=limit)

        counts = (heads, kv_heads, kv_heads, index_heads, 1)
        qkv = randn(probe, tokens, sum(counts) * size, dtype=dtype)
        parts = _heads(qkv, counts, size)
        slots, index_slots = (slots_of(probe, tokens, BLOCK) for _ in range(2))
        cache = torch.zeros(BLOCKS, kv_heads, BLOCK, 2 * size, dtype=dtype, device=probe.device)
        index_cache = torch.zeros(BLOCKS, BLOCK, size, dtype=dtype, device=probe.device)
        outs = [poisoned(probe, tokens, n * size, dtype=dtype) for n in (heads, index_heads)]
        operator(qkv, *given, *weights[2:], index_heads, slots, index_slots, cache, index_cache, BLOCK, *outs, "auto")
        normed = [_gemma(parts[i], w, here) for i, w in ((0, 0), (1, 1), (3, 2), (4, 3)) for w in [weights[w]]]
        probe.close(outs[0], normed[0].flatten(1), limit=limit)
        probe.close(outs[1], normed[2].flatten(1), limit=limit)
        rows = cache.transpose(1, 2).reshape(-1, kv_heads, 2 * size)[slots]
        probe.close(rows[..., :size], normed[1], limit=limit)
        probe.exact(rows[..., size:], parts[2])
        probe.close(index_cache.view(-1, size)[index_slots], normed[3][:, 0], limit=limit)


def _deepseek(probe: Probe, tokens: int, heads: int) -> tuple[Any, ...]:
    """Return query and latent rows, slots, positions, table, and both rotated in float64, the query with its norm."""
    q, kv = (randn(probe, tokens, *lead, 512, dtype=torch.bfloat16) for lead in ((heads,), ()))
    table, positions = cos_sin(probe, 512, 64, torch.float32), _positions(probe, tokens)
    normed = rms(q, torch.ones(512, device=probe.device))
    here = table[positions]
    mixed = torch.cat([normed[..., :448], rotated(normed[..., 448:], here, neox=False)], -1)
    return q, kv, slots_of(probe, tokens, BLOCK), positions, table, mixed, turned(kv, here)


def _packed(probe: Probe, cache: Any, slots: Any, want: Any) -> None:
    """Compare DeepSeek-V4's blocks: 448 fp8 and 64 bfloat16 of every token, then 8 bytes of exponents of each."""
    flat = cache.view(BLOCKS, -1)
    data = flat[:, : BLOCK * 576].reshape(-1, 576)[slots]
    exponents = flat[:, BLOCK * 576 :].reshape(-1, 8)[slots][:, :7]
    blocks = want[:, :448].reshape(len(slots), 7, 64)
    wanted = (blocks.abs().amax(-1) / FP8_MAX).log2().ceil()
    probe.exact(exponents.int() - 127, wanted.int(), dtype="exponents")
    values = blocks / wanted.exp2()[..., None]
    probe.codes(data[:, :448].contiguous().view(FP8).view_as(blocks), values, dtype="fp8 of bfloat16")
    probe.close(data[:, 448:].contiguous().view(torch.bfloat16), want[:, 448:])


@check("norm", "_C::fused_deepseek_v4_qnorm_rope_kv_rope_quant_insert")
def deepseek_v4_quant_insert(probe: Probe) -> None:
    """Query heads with norm and rotation (in place in 0.20.1, returned later), latent rows to packed blocks."""
    for tokens, heads in ((1, 64), (37, 128)):
        q, kv, slots, positions, table, want_q, want_kv = _deepseek(probe, tokens, heads)
        cache = torch.zeros(BLOCKS, BLOCK * 584, dtype=torch.uint8, device=probe.device)
        # As many heads as there are: no padding, which the first version does not have.
        out = call(
            torch.ops._C.fused_deepseek_v4_qnorm_rope_kv_rope_quant_insert, q, kv, cache, slots, positions, table,
            eps=EPS, cache_block_size=BLOCK, neutral={"q_head_padded": heads},
        )  # fmt: skip
        probe.close(q if out is None else out, want_q)
        _packed(probe, cache, slots, want_kv)


@check("norm", "_C::fused_deepseek_v4_kv_rope_insert")
def deepseek_v4_kv_rope_insert(probe: Probe) -> None:
    """Latent rows alone: to bfloat16, to fp8 with one scale, to packed blocks."""
    operator = torch.ops._C.fused_deepseek_v4_kv_rope_insert
    for tokens in (1, 37):
        _, kv, slots, positions, table, _, want = _deepseek(probe, tokens, 1)
        cache = torch.zeros(BLOCKS, BLOCK, 512, dtype=torch.bfloat16, device=probe.device)
        operator(kv, cache, slots, positions, table, BLOCK)
        probe.close(cache.view(-1, 512)[slots], want)
        eighth, scale = torch.zeros_like(cache, dtype=torch.uint8).view(FP8), some_scale(probe)
        operator(kv, eighth, slots, positions, table, BLOCK, scale)
        probe.codes(eighth.view(-1, 512)[slots], want / scale.double(), limit=TWICE, dtype="fp8 of bfloat16")
        packed = torch.zeros(BLOCKS, BLOCK, 584, dtype=torch.uint8, device=probe.device)
        operator(kv, packed, slots, positions, table, BLOCK)
        _packed(probe, packed, slots, want)


@check("norm", "_C::fused_deepseek_v4_qnorm_rope_kv_rope_full_cache_bf16_insert")
def deepseek_v4_bf16_insert(probe: Probe) -> None:
    """Query in place, latent rows to a bfloat16 cache."""
    for tokens, heads in ((1, 8), (37, 17)):
        q, kv, slots, positions, table, want_q, want_kv = _deepseek(probe, tokens, heads)
        cache = torch.zeros(BLOCKS, BLOCK, 512, dtype=torch.bfloat16, device=probe.device)
        torch.ops._C.fused_deepseek_v4_qnorm_rope_kv_rope_full_cache_bf16_insert(
            q, kv, cache, slots, positions, table, EPS, BLOCK
        )
        probe.close(q, want_q)
        probe.close(cache.view(-1, 512)[slots], want_kv)


@check("norm", "_C::fused_deepseek_v4_qnorm_rope_kv_rope_full_cache_fp8_insert")
def deepseek_v4_fp8_insert(probe: Probe) -> None:
    """The same to fp8, query and cache with their scales."""
    for tokens, heads in ((1, 8), (37, 17)):
        q, kv, slots, positions, table, want_q, want_kv = _deepseek(probe, tokens, heads)
        out = poisoned(probe, tokens, heads, 512, dtype=FP8)
        cache = torch.zeros(BLOCKS, BLOCK, 512, dtype=torch.uint8, device=probe.device).view(FP8)
        scale, inverse = some_scale(probe), 1 / some_scale(probe)
        torch.ops._C.fused_deepseek_v4_qnorm_rope_kv_rope_full_cache_fp8_insert(
            q, kv, out, cache, slots, positions, table, scale, inverse, EPS, BLOCK
        )
        probe.codes(out, want_q * inverse.double(), dtype="fp8 of bfloat16")
        probe.codes(cache.view(-1, 512)[slots], want_kv / scale.double(), limit=TWICE, dtype="fp8 of bfloat16")
