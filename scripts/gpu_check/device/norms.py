"""Normalisation, alone and fused with residuals, rotary embedding and quantisation."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.probe import DTYPES, FP8, FP8_MAX, HALVES, Probe, check, dtype_name, poisoned, randn

EPS = 1e-6
SHAPES = ((1, 128), (7, 4096), (83, 5120), (4, 8192), (33, 2880))


def rms(x: Any, weight: Any, eps: float = EPS) -> Any:
    """Return x / sqrt(mean(x^2) + eps) * weight in float64."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()


def _inputs(probe: Probe, shape: tuple[int, int], dtype: Any) -> tuple[Any, Any]:
    return randn(probe, *shape, dtype=dtype), randn(probe, shape[1], dtype=dtype) * 0.2 + 1


@check("norm", "_C::rms_norm")
def rms_norm(probe: Probe) -> None:
    """Every type and shape, contiguous and strided."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x, weight = _inputs(probe, shape, dtype)
            out = poisoned(probe, *shape, dtype=dtype)
            torch.ops._C.rms_norm(out, x, weight, EPS)
            probe.close(out, rms(x, weight))
        wide = randn(probe, 17, 3 * 1024, dtype=dtype)[:, :1024]
        weight = randn(probe, 1024, dtype=dtype)
        out = poisoned(probe, 17, 1024, dtype=dtype)
        torch.ops._C.rms_norm(out, wide, weight, EPS)
        probe.close(out, rms(wide, weight))


@check("norm", "_C::fused_add_rms_norm")
def fused_add_rms_norm(probe: Probe) -> None:
    """X := norm(x + residual), residual := x + residual."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x, weight = _inputs(probe, shape, dtype)
            residual = randn(probe, *shape, dtype=dtype)
            total = x.double() + residual.double()
            torch.ops._C.fused_add_rms_norm(x, residual, weight, EPS)
            probe.close(residual, total)
            probe.close(x, rms(total, weight), limit=1e-2 if dtype is torch.bfloat16 else None)


@check("norm", "_C::rms_norm_static_fp8_quant")
def rms_norm_static_fp8_quant(probe: Probe) -> None:
    """fp8(norm(x) / scale)."""
    for dtype in HALVES:
        for shape in SHAPES:
            x, weight = _inputs(probe, shape, dtype)
            scale = torch.rand(1, device=probe.device) * 0.02 + 0.01
            out = poisoned(probe, *shape, dtype=FP8)
            torch.ops._C.rms_norm_static_fp8_quant(out, x, weight, scale, EPS)
            want = (rms(x, weight) / scale).clamp(-FP8_MAX, FP8_MAX) * scale
            probe.close(out.double() * scale, want, limit=0.04, dtype=f"fp8 of {dtype_name(dtype)}")


@check("norm", "_C::fused_add_rms_norm_static_fp8_quant")
def fused_add_rms_norm_static_fp8_quant(probe: Probe) -> None:
    """fp8(norm(x + residual) / scale)."""
    for dtype in HALVES:
        for shape in SHAPES:
            x, weight = _inputs(probe, shape, dtype)
            residual = randn(probe, *shape, dtype=dtype)
            total = x.double() + residual.double()
            scale = torch.rand(1, device=probe.device) * 0.02 + 0.01
            out = poisoned(probe, *shape, dtype=FP8)
            torch.ops._C.fused_add_rms_norm_static_fp8_quant(out, x, residual, weight, scale, EPS)
            probe.close(residual, total)
            want = (rms(total, weight) / scale).clamp(-FP8_MAX, FP8_MAX) * scale
            probe.close(out.double() * scale, want, limit=0.04, dtype=f"fp8 of {dtype_name(dtype)}")


@check("norm", "_C::rms_norm_dynamic_per_token_quant")
def rms_norm_dynamic_per_token_quant(probe: Probe) -> None:
    """Quantised norm with a scale per token, fp8 and int8."""
    for dtype in HALVES:
        for quantised, top, limit in ((FP8, FP8_MAX, 0.04), (torch.int8, 127.0, 0.02)):
            for shape in SHAPES:
                x, weight = _inputs(probe, shape, dtype)
                out = poisoned(probe, *shape, dtype=quantised)
                scales = poisoned(probe, shape[0], 1, dtype=torch.float32)
                torch.ops._C.rms_norm_dynamic_per_token_quant(out, x, weight, scales, EPS, None, None)
                want = rms(x, weight)
                probe.close(scales, want.abs().amax(-1, keepdim=True) / top, limit=8e-3, dtype="scales")
                probe.close(out.double() * scales, want, limit=limit, dtype=f"{dtype_name(quantised)} output")


@check("norm", "_C::rms_norm_per_block_quant")
def rms_norm_per_block_quant(probe: Probe) -> None:
    """Quantised norm with a scale per 64 or 128 columns."""
    for group in (64, 128):
        for quantised, top, limit in ((FP8, FP8_MAX, 0.04), (torch.int8, 127.0, 0.02)):
            for shape in ((1, 128), (7, 4096), (83, 5120)):
                x, weight = _inputs(probe, shape, torch.bfloat16)
                out = poisoned(probe, *shape, dtype=quantised)
                scales = poisoned(probe, shape[0], shape[1] // group, dtype=torch.float32)
                torch.ops._C.rms_norm_per_block_quant(out, x, weight, scales, EPS, None, None, group, False)
                want = rms(x, weight)
                blocks = want.view(shape[0], -1, group)
                probe.close(scales, blocks.abs().amax(-1) / top, limit=8e-3, dtype="scales")
                back = out.double().view_as(blocks) * scales[..., None]
                probe.close(back, blocks, limit=limit, dtype=f"{dtype_name(quantised)} output")


def cos_sin(probe: Probe, positions: int, dim: int, dtype: Any) -> Any:
    """Return a cache [positions, dim]: cosines, then sines."""
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=probe.device).double() / dim)
    angle = torch.arange(positions, device=probe.device).double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1).to(dtype)


def rotated(x: Any, cache: Any, *, neox: bool) -> Any:
    """Rotate the first `cache.shape[-1]` of the last dimension of x [tokens, heads, size], in float64."""
    cos, sin = cache.double()[:, None].chunk(2, -1)
    dim = cache.shape[-1]
    head, rest = x.double()[..., :dim], x.double()[..., dim:]
    first, second = head.chunk(2, -1) if neox else (head[..., ::2], head[..., 1::2])
    parts = first * cos - second * sin, second * cos + first * sin
    mixed = torch.cat(parts, -1) if neox else torch.stack(parts, -1).flatten(-2)
    return torch.cat([mixed, rest], -1)


@check("norm", "_C::rotary_embedding")
def rotary_embedding(probe: Probe) -> None:
    """NeoX and GPT-J style, whole and part heads, with and without key."""
    for dtype in DTYPES:
        for neox in (True, False):
            for tokens, heads, kv_heads, size, dim in ((1, 4, 1, 64, 64), (37, 8, 2, 128, 128), (11, 3, 3, 80, 32)):
                cache = cos_sin(probe, 512, dim, dtype)
                positions = torch.randint(0, 512, (tokens,), device=probe.device)
                query = randn(probe, tokens, heads, size, dtype=dtype)
                key = randn(probe, tokens, kv_heads, size, dtype=dtype)
                want = [rotated(x, cache[positions], neox=neox) for x in (query, key)]
                flat = query.view(tokens, -1), key.view(tokens, -1)
                torch.ops._C.rotary_embedding(positions, *flat, size, cache, neox)
                probe.close(query, want[0])
                probe.close(key, want[1])


@check("norm", "_C::fused_qk_norm_rope")
def fused_qk_norm_rope(probe: Probe) -> None:
    """Norm of every query and key head, then rotation; values stay."""
    for neox in (True, False):
        for tokens, heads, kv_heads, size in ((1, 4, 1, 64), (37, 16, 4, 128), (130, 8, 8, 256)):
            dtype = torch.bfloat16
            qkv = randn(probe, tokens, (heads + 2 * kv_heads) * size, dtype=dtype)
            weights = [randn(probe, size, dtype=dtype) * 0.2 + 1 for _ in range(2)]
            cache = cos_sin(probe, 512, size, dtype)
            positions = torch.randint(0, 512, (tokens,), device=probe.device)
            parts = qkv.view(tokens, -1, size).split([heads, kv_heads, kv_heads], 1)
            want = [
                *(rotated(rms(x, w), cache[positions], neox=neox) for x, w in zip(parts, weights, strict=False)),
                parts[2].double(),
            ]
            wanted = torch.cat(want, 1).flatten(1)
            torch.ops._C.fused_qk_norm_rope(
                qkv, heads, kv_heads, kv_heads, size, EPS, *weights, cache, neox, positions, -1
            )
            probe.close(qkv, wanted)
