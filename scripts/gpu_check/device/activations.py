"""Activation functions, gated and plain, alone and fused with quantisation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from scripts.gpu_check.device.probe import DTYPES, FP8, FP8_MAX, HALVES, Probe, check, dtype_name, poisoned, randn

SHAPES = ((1, 128), (7, 512), (83, 2880), (300, 14336), (5, 1000))


def tanh_gelu(x: Any) -> Any:
    """Return gelu by its tanh formula."""
    return F.gelu(x, approximate="tanh")


def gated(probe: Probe, operator: Any, reference: Any, *arguments: float) -> None:
    """Compare an operator that makes width columns of twice as many, in every type and shape."""
    for dtype in DTYPES:
        for rows, width in SHAPES:
            x = randn(probe, rows, 2 * width, dtype=dtype)
            out = poisoned(probe, rows, width, dtype=dtype)
            operator(out, x, *arguments)
            probe.close(out, reference(x.double()), limit=8e-3 if dtype is torch.bfloat16 else None)


def halves(x: Any) -> tuple[Any, Any]:
    """Return the first and the second half of the columns."""
    first, second = x.chunk(2, -1)
    return first, second


@check("activation", "_C::silu_and_mul")
def silu_and_mul(probe: Probe) -> None:
    """silu(first half) * second half."""
    gated(probe, torch.ops._C.silu_and_mul, lambda x: F.silu(halves(x)[0]) * halves(x)[1])


@check("activation", "_C::mul_and_silu")
def mul_and_silu(probe: Probe) -> None:
    """First half * silu(second half)."""
    gated(probe, torch.ops._C.mul_and_silu, lambda x: halves(x)[0] * F.silu(halves(x)[1]))


@check("activation", "_C::gelu_and_mul")
def gelu_and_mul(probe: Probe) -> None:
    """gelu(first half) * second half."""
    gated(probe, torch.ops._C.gelu_and_mul, lambda x: F.gelu(halves(x)[0]) * halves(x)[1])


@check("activation", "_C::gelu_tanh_and_mul")
def gelu_tanh_and_mul(probe: Probe) -> None:
    """Gelu by tanh."""
    gated(probe, torch.ops._C.gelu_tanh_and_mul, lambda x: tanh_gelu(halves(x)[0]) * halves(x)[1])


@check("activation", "_C::fatrelu_and_mul")
def fatrelu_and_mul(probe: Probe) -> None:
    """First half where above a threshold, else 0, times second half."""

    def reference(x: Any) -> Any:
        first, second = halves(x)
        return torch.where(first > 0.5, first, 0.0) * second

    gated(probe, torch.ops._C.fatrelu_and_mul, reference, 0.5)


@check("activation", "_C::swigluoai_and_mul")
def swigluoai_and_mul(probe: Probe) -> None:
    """gpt-oss's gate: interleaved halves, clamped at 7, (up + 1) * gate * sigmoid(1.702 gate)."""

    def reference(x: Any) -> Any:
        gate, up = x[..., ::2].clamp(max=7.0), x[..., 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)

    gated(probe, torch.ops._C.swigluoai_and_mul, reference, 1.702, 7.0)


@check("activation", "_C::silu_and_mul_with_clamp")
def silu_and_mul_with_clamp(probe: Probe) -> None:
    """silu(min(first half, limit)) * clamp(second half)."""

    def reference(x: Any) -> Any:
        gate, up = halves(x)
        return F.silu(gate.clamp(max=1.0)) * up.clamp(-1.0, 1.0)

    gated(probe, torch.ops._C.silu_and_mul_with_clamp, reference, 1.0)


def _plain(probe: Probe, operator: Any, reference: Any) -> None:
    for dtype in DTYPES:
        for shape in SHAPES:
            x = randn(probe, *shape, dtype=dtype)
            out = poisoned(probe, *shape, dtype=dtype)
            operator(out, x)
            # The kernels round between their steps, in the type of the input.
            limit = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype)
            probe.close(out, reference(x.double()), limit=limit)


@check("activation", "_C::gelu_new")
def gelu_new(probe: Probe) -> None:
    """Gelu by tanh, GPT-2's."""
    _plain(probe, torch.ops._C.gelu_new, tanh_gelu)


@check("activation", "_C::gelu_fast")
def gelu_fast(probe: Probe) -> None:
    """Gelu by tanh, the other order of operations."""
    root = math.sqrt(2 / math.pi)
    _plain(probe, torch.ops._C.gelu_fast, lambda x: 0.5 * x * (1 + torch.tanh(root * x * (1 + 0.044715 * x * x))))


@check("activation", "_C::gelu_quick")
def gelu_quick(probe: Probe) -> None:
    """X * sigmoid(1.702 x)."""
    _plain(probe, torch.ops._C.gelu_quick, lambda x: x * torch.sigmoid(1.702 * x))


@check("activation", "_C::relu_squared")
def relu_squared(probe: Probe) -> None:
    """The square of what is above 0."""
    _plain(probe, torch.ops._C.relu_squared, lambda x: F.relu(x).square())


@check("activation", "_C::silu_and_mul_quant")
def silu_and_mul_quant(probe: Probe) -> None:
    """fp8(silu(a) * b / scale)."""
    for dtype in HALVES:
        for rows, width in ((1, 128), (7, 512), (83, 2880), (300, 14336)):
            x = randn(probe, rows, 2 * width, dtype=dtype)
            scale = torch.rand(1, device=probe.device) * 0.02 + 0.01
            out = poisoned(probe, rows, width, dtype=FP8)
            torch.ops._C.silu_and_mul_quant(out, x, scale)
            first, second = halves(x.double())
            want = (F.silu(first) * second / scale).clamp(-FP8_MAX, FP8_MAX) * scale
            probe.close(out.double() * scale, want, limit=0.04, dtype=f"fp8 of {dtype_name(dtype)}")


@check("activation", "_C::silu_and_mul_per_block_quant")
def silu_and_mul_per_block_quant(probe: Probe) -> None:
    """Gate, then a scale per 64 or 128 columns; scales row by row and transposed."""
    for group in (64, 128):
        for quantised, top, limit in ((FP8, FP8_MAX, 0.04), (torch.int8, 127.0, 0.02)):
            for rows, width in ((1, 128), (7, 1024), (83, 2944)):
                if width % group:
                    continue
                x = randn(probe, rows, 2 * width, dtype=torch.bfloat16)
                out = poisoned(probe, rows, width, dtype=quantised)
                scales = poisoned(probe, rows, width // group, dtype=torch.float32)
                torch.ops._C.silu_and_mul_per_block_quant(out, x, scales, group, None, False)
                first, second = halves(x.double())
                want = (F.silu(first) * second).view(rows, -1, group)
                probe.close(scales, want.abs().amax(-1) / top, limit=8e-3, dtype="scales")
                back = out.double().view_as(want) * scales[..., None]
                probe.close(back, want, limit=limit, dtype=f"{dtype_name(quantised)} output")
