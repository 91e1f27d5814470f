"""Quantisation of activations to fp8 and int8."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.probe import DTYPES, FP8, FP8_MAX, Probe, check, poisoned, randn

SHAPES = ((1, 128), (7, 2048), (83, 5120), (300, 14336))


def _top(x: Any, dims: Any = -1) -> Any:
    return x.double().abs().amax(dims, keepdim=True)


@check("quant", "_C::static_scaled_fp8_quant")
def static_scaled_fp8_quant(probe: Probe) -> None:
    """One given scale."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x = randn(probe, *shape, dtype=dtype)
            scale = torch.rand(1, device=probe.device) * 0.01 + 0.005
            out = poisoned(probe, *shape, dtype=FP8)
            torch.ops._C.static_scaled_fp8_quant(out, x, scale, None)
            probe.codes(out, x.double() / scale.double())


@check("quant", "_C::dynamic_scaled_fp8_quant")
def dynamic_scaled_fp8_quant(probe: Probe) -> None:
    """One scale found in the data."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x = randn(probe, *shape, dtype=dtype)
            out = poisoned(probe, *shape, dtype=FP8)
            scale = torch.zeros(1, device=probe.device)
            torch.ops._C.dynamic_scaled_fp8_quant(out, x, scale)
            probe.close(scale, _top(x, (0, 1)).view(1) / FP8_MAX, dtype="scale")
            probe.codes(out, x.double() / scale.double())


@check("quant", "_C::dynamic_per_token_scaled_fp8_quant")
def dynamic_per_token_scaled_fp8_quant(probe: Probe) -> None:
    """A scale per row."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x = randn(probe, *shape, dtype=dtype)
            out = poisoned(probe, *shape, dtype=FP8)
            scales = poisoned(probe, shape[0], 1, dtype=torch.float32)
            torch.ops._C.dynamic_per_token_scaled_fp8_quant(out, x, scales, None)
            probe.close(scales, _top(x) / FP8_MAX, dtype="scales")
            probe.codes(out, x.double() / scales.double())


@check("quant", "_C::static_scaled_int8_quant")
def static_scaled_int8_quant(probe: Probe) -> None:
    """One given scale, with and without zero point."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x = randn(probe, *shape, dtype=dtype)
            scale = torch.rand(1, device=probe.device) * 0.01 + 0.02
            for azp in (None, torch.tensor([-23], dtype=torch.int32, device=probe.device)):
                out = poisoned(probe, *shape, dtype=torch.int8)
                torch.ops._C.static_scaled_int8_quant(out, x, scale, azp)
                shift = 0.0 if azp is None else azp.double()
                probe.codes(out, x.double() / scale.double() + shift)


@check("quant", "_C::dynamic_scaled_int8_quant")
def dynamic_scaled_int8_quant(probe: Probe) -> None:
    """A scale per row; with zero points, scale and zero point per row."""
    for dtype in DTYPES:
        for shape in SHAPES:
            x = randn(probe, *shape, dtype=dtype)
            out = poisoned(probe, *shape, dtype=torch.int8)
            scales = poisoned(probe, shape[0], 1, dtype=torch.float32)
            torch.ops._C.dynamic_scaled_int8_quant(out, x, scales, None)
            probe.close(scales, _top(x) / 127, dtype="scales")
            probe.codes(out, x.double() / scales.double())
            azp = torch.full_like(scales, -7777, dtype=torch.int32)
            out = poisoned(probe, *shape, dtype=torch.int8)
            torch.ops._C.dynamic_scaled_int8_quant(out, x, scales, azp)
            exact = x.double()
            width = exact.amax(-1, keepdim=True) - exact.amin(-1, keepdim=True)
            probe.close(scales, width / 255, dtype="scales")
            probe.codes(out, exact / scales.double() + azp.double())


def _groups(x: Any, size: int) -> Any:
    return x.double().view(x.shape[0], -1, size)


@check("quant", "_C::per_token_group_fp8_quant", "_C::per_token_group_quant_int8")
def per_token_group_quant(probe: Probe) -> None:
    """A scale per 64 or 128 columns of a row, fp8 and int8; fp8 scales also as powers of two."""
    for group in (64, 128):
        for rows, width in ((1, 128), (7, 1024), (83, 5120)):
            x = randn(probe, rows, width, dtype=torch.bfloat16)
            exact = _groups(x, group)
            for power in (False, True):
                out = poisoned(probe, rows, width, dtype=FP8)
                scales = poisoned(probe, rows, width // group, dtype=torch.float32)
                torch.ops._C.per_token_group_fp8_quant(
                    x, out, scales, group, 1e-10, -FP8_MAX, FP8_MAX, power, False, False
                )
                want = exact.abs().amax(-1) / FP8_MAX
                probe.close(scales, want.log2().ceil().exp2() if power else want, dtype="scales")
                probe.codes(_groups8(out, group), exact / scales.double()[..., None])
            out = poisoned(probe, rows, width, dtype=torch.int8)
            scales = poisoned(probe, rows, width // group, dtype=torch.float32)
            torch.ops._C.per_token_group_quant_int8(x, out, scales, group, 1e-10, -128.0, 127.0)
            probe.close(scales, exact.abs().amax(-1) / 127, dtype="scales")
            # The kernel cuts towards zero where the reference rounds: the value is within one step.
            error = (_groups8(out, group).double() * scales[..., None] - exact).abs() / scales[..., None]
            probe.true(float(error.max()) <= 1.001, "int8 values within one step")


def _groups8(x: Any, size: int) -> Any:
    return x.view(x.shape[0], -1, size)
