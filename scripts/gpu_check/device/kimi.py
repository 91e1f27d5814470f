"""Kimi K3's attention (MLA): keys put together, rotated, quantised and written to the cache in one step."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.kv_cache import BLOCKS, slots_of, some_scale
from scripts.gpu_check.device.norms import cos_sin, rotated
from scripts.gpu_check.device.probe import FP8, FP8_MAX, HALVES, Probe, check, dtype_name, poisoned, randn

BLOCK = 16
SIZES = ((4, 2), (83, 16))  # tokens and heads; decoding splits rows up to 64 tokens


def turned(x: Any, table: Any) -> Any:
    """Return x in float64, its last 64 columns rotated by `table`; as it is without a table."""
    if table is None:
        return x.double()
    flat = x if x.dim() == 3 else x[:, None]
    mixed = torch.cat([flat[..., :-64].double(), rotated(flat[..., -64:], table, neox=False)], -1)
    return mixed if x.dim() == 3 else mixed[:, 0]


def with_head(k_nope: Any, k_pe: Any) -> Any:
    """Return keys [tokens, heads, 192]: each head's part and the part that all heads share."""
    return torch.cat([k_nope, k_pe[:, None].expand(-1, k_nope.shape[1], -1).to(k_nope.dtype)], -1)


def _rotations(probe: Probe, tokens: int) -> Any:
    """Yield the arguments and the table of no rotation, and of one."""
    yield (), None
    table = cos_sin(probe, 512, 64, torch.float32)
    positions = torch.randint(0, 512, (tokens,), device=probe.device)
    yield (positions, table), table[positions]


def _cache(probe: Probe, dtype: Any, width: int = 576) -> Any:
    return torch.zeros(BLOCKS, BLOCK, width, dtype=torch.uint8 if dtype == FP8 else dtype, device=probe.device).view(
        dtype
    )


def ds_mla(probe: Probe, rows: Any, latent: Any, rope: Any) -> None:
    """Compare rows of 656 bytes: fp8 by 128, four scales that are powers of two, and a 16-bit part."""
    blocks = latent.double().view(len(rows), 4, 128)
    scales = rows[:, 512:528].contiguous().view(torch.float32)
    want = (blocks.abs().amax(-1) / FP8_MAX).log2().ceil().exp2()
    probe.close(scales, want, dtype="scales")
    probe.codes(rows[:, :512].contiguous().view(FP8).view_as(blocks), blocks / scales.double()[..., None], dtype="fp8")
    probe.close(rows[:, 528:].contiguous().view(latent.dtype), rope)


@check("cache", "_C::fused_kimi_k3_mla_key_concat_kv_cache_insert")
def key_concat_kv_cache_insert(probe: Probe) -> None:
    """Whole keys, the latent cache, and the query rotated in place."""
    for dtype in HALVES:
        for tokens, heads in SIZES:
            for given, table in _rotations(probe, tokens):
                q, k_nope = (randn(probe, tokens, heads, size, dtype=dtype) for size in (192, 128))
                k_pe, latent = (randn(probe, tokens, size, dtype=dtype) for size in (64, 512))
                want, slots = turned(q, table), slots_of(probe, tokens, BLOCK)
                keys, cache = poisoned(probe, tokens, heads, 192, dtype=dtype), _cache(probe, dtype)
                torch.ops._C.fused_kimi_k3_mla_key_concat_kv_cache_insert(
                    q, k_nope, k_pe, latent, keys, cache, slots, BLOCK, *given
                )
                probe.close(q, want)
                probe.close(keys, turned(with_head(k_nope, k_pe), table))
                probe.close(cache.view(-1, 576)[slots], turned(torch.cat([latent, k_pe], -1), table))


@check("cache", "_C::fused_kimi_k3_mla_key_concat_ds_mla_insert")
def key_concat_ds_mla_insert(probe: Probe) -> None:
    """The same with DeepSeek's rows of 656 bytes."""
    for tokens, heads in SIZES:
        for given, table in _rotations(probe, tokens):
            dtype = torch.bfloat16
            q, k_nope = (randn(probe, tokens, heads, size, dtype=dtype) for size in (192, 128))
            k_pe, latent = (randn(probe, tokens, size, dtype=dtype) for size in (64, 512))
            want, slots = turned(q, table), slots_of(probe, tokens, BLOCK)
            keys, cache = poisoned(probe, tokens, heads, 192, dtype=dtype), _cache(probe, torch.uint8, 656)
            torch.ops._C.fused_kimi_k3_mla_key_concat_ds_mla_insert(
                q, k_nope, k_pe, latent, keys, cache, slots, BLOCK, *given
            )
            probe.close(q, want)
            probe.close(keys, turned(with_head(k_nope, k_pe), table))
            ds_mla(probe, cache.view(-1, 656)[slots], latent, turned(k_pe, table))


@check("cache", "_C::fused_kimi_k3_mla_kv_concat")
def kv_concat(probe: Probe) -> None:
    """Whole keys from parts of wider tensors."""
    for dtype in HALVES:
        for tokens, heads in SIZES:
            both = randn(probe, tokens, heads, 256, dtype=dtype)
            k_nope, k_pe = both[..., :128], randn(probe, tokens, 576, dtype=dtype)[:, 512:]
            keys = poisoned(probe, tokens, heads, 192, dtype=dtype)
            torch.ops._C.fused_kimi_k3_mla_kv_concat(k_nope, k_pe, keys)
            probe.exact(keys, with_head(k_nope, k_pe))


@check("cache", "_C::fused_kimi_k3_mla_kv_concat_quant_fp8")
def kv_concat_quant_fp8(probe: Probe) -> None:
    """The same to fp8 without a scale, values too; the shared part may be fp8 already."""
    for dtype in HALVES:
        for tokens, heads in SIZES:
            for ready in (False, True):
                both = randn(probe, tokens, heads, 256, dtype=dtype)
                k_nope, v = both[..., :128], both[..., 128:]
                k_pe = randn(probe, tokens, 576, dtype=FP8 if ready else dtype)[:, 512:]
                keys, values = (poisoned(probe, tokens, heads, size, dtype=FP8) for size in (192, 128))
                torch.ops._C.fused_kimi_k3_mla_kv_concat_quant_fp8(k_nope, k_pe, v, keys, values)
                name = f"fp8 of {dtype_name(dtype)}"
                probe.codes(keys, with_head(k_nope.double(), k_pe.double()), dtype=name)
                probe.codes(values, v.double(), dtype=name)


@check("cache", "_C::fused_kimi_k3_mla_qkv_quant_kv_cache_fp8_insert")
def qkv_quant_kv_cache_fp8_insert(probe: Probe) -> None:
    """Query, keys, values and cache as fp8, each with its own scale, given as its inverse."""
    for dtype in HALVES:
        for tokens, heads in SIZES:
            for given, table in _rotations(probe, tokens):
                q, k_nope, v = (randn(probe, tokens, heads, size, dtype=dtype) for size in (192, 128, 128))
                k_pe, latent = (randn(probe, tokens, size, dtype=dtype) for size in (64, 512))
                inverse = [1 / some_scale(probe) for _ in range(4)]
                outs = [poisoned(probe, tokens, heads, size, dtype=FP8) for size in (192, 192, 128)]
                cache, slots = _cache(probe, FP8), slots_of(probe, tokens, BLOCK)
                torch.ops._C.fused_kimi_k3_mla_qkv_quant_kv_cache_fp8_insert(
                    q, k_nope, k_pe, latent, v, *outs, cache, slots, *inverse, BLOCK, *given
                )
                wants = turned(q, table), turned(with_head(k_nope, k_pe), table), v.double()
                rows = turned(torch.cat([latent, k_pe], -1), table)
                gots = (*outs, cache.view(-1, 576)[slots])
                for got, want, factor in zip(gots, (*wants, rows), inverse, strict=True):
                    probe.codes(got, want * factor.double(), dtype=f"fp8 of {dtype_name(dtype)}")


def _decode(probe: Probe, tokens: int, heads: int, dtype: Any) -> list[Any]:
    """Return the query's two parts, the latent rows and the shared part of the key."""
    query = [randn(probe, tokens, heads, size, dtype=dtype) for size in (512, 64)]
    return [*query, *(randn(probe, tokens, size, dtype=dtype) for size in (512, 64))]


@check("cache", "_C::fused_kimi_k3_mla_decode_q_concat_kv_cache_insert")
def decode_q_concat_kv_cache_insert(probe: Probe) -> None:
    """Decoding: whole queries and the latent cache."""
    for dtype in HALVES:
        for tokens, heads in SIZES:
            for given, table in _rotations(probe, tokens):
                parts, slots = _decode(probe, tokens, heads, dtype), slots_of(probe, tokens, BLOCK)
                query, cache = poisoned(probe, tokens, heads, 576, dtype=dtype), _cache(probe, dtype)
                torch.ops._C.fused_kimi_k3_mla_decode_q_concat_kv_cache_insert(
                    *parts, query, cache, slots, BLOCK, *given
                )
                probe.close(query, turned(torch.cat(parts[:2], -1), table))
                probe.close(cache.view(-1, 576)[slots], turned(torch.cat(parts[2:], -1), table))


@check("cache", "_C::fused_kimi_k3_mla_decode_q_concat_kv_cache_fp8_insert")
def decode_q_concat_kv_cache_fp8_insert(probe: Probe) -> None:
    """The same as fp8."""
    for dtype in HALVES:
        for tokens, heads in SIZES:
            for given, table in _rotations(probe, tokens):
                parts, slots = _decode(probe, tokens, heads, dtype), slots_of(probe, tokens, BLOCK)
                query, cache = poisoned(probe, tokens, heads, 576, dtype=FP8), _cache(probe, FP8)
                inverse = [1 / some_scale(probe) for _ in range(2)]
                torch.ops._C.fused_kimi_k3_mla_decode_q_concat_kv_cache_fp8_insert(
                    *parts, query, cache, slots, *inverse, BLOCK, *given
                )
                wants = turned(torch.cat(parts[:2], -1), table), turned(torch.cat(parts[2:], -1), table)
                gots = query, cache.view(-1, 576)[slots]
                for got, want, factor in zip(gots, wants, inverse, strict=True):
                    probe.codes(got, want * factor.double(), dtype=f"fp8 of {dtype_name(dtype)}")


@check("cache", "_C::fused_kimi_k3_mla_decode_q_concat_ds_mla_insert")
def decode_q_concat_ds_mla_insert(probe: Probe) -> None:
    """The same with DeepSeek's rows of 656 bytes."""
    for tokens, heads in SIZES:
        for given, table in _rotations(probe, tokens):
            parts, slots = _decode(probe, tokens, heads, torch.bfloat16), slots_of(probe, tokens, BLOCK)
            query, cache = poisoned(probe, tokens, heads, 576, dtype=torch.bfloat16), _cache(probe, torch.uint8, 656)
            torch.ops._C.fused_kimi_k3_mla_decode_q_concat_ds_mla_insert(*parts, query, cache, slots, BLOCK, *given)
            probe.close(query, turned(torch.cat(parts[:2], -1), table))
            ds_mla(probe, cache.view(-1, 656)[slots], parts[2], turned(parts[3], table))
