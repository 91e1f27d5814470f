"""Activation functions that came after vLLM 0.20.1: SITU, a soft cap, and gates for the filled rows of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from scripts.gpu_check.device.activations import gated, halves, tanh_gelu
from scripts.gpu_check.device.probe import DTYPES, FP8, FP8_MAX, HALVES, Probe, check, dtype_name, poisoned, randn

KIMI = (4.0, 25.0)  # the two constants of Kimi K3, for which a kernel of its own is compiled
UNTOUCHED = 7.0


def situ(x: Any, beta: float, linear_beta: float) -> Any:
    """Return beta * tanh(gate / beta) * sigmoid(gate) * up, up bent in the same way where linear_beta is above 0."""
    gate, up = halves(x)
    bent = linear_beta * torch.tanh(up / linear_beta) if linear_beta > 0 else up
    return beta * torch.tanh(gate / beta) * torch.sigmoid(gate) * bent


@check("activation", "_C::situ_and_mul")
def situ_and_mul(probe: Probe) -> None:
    """Kimi's gate, with and without a bound for the second half."""
    for beta, linear_beta in ((1.0, -1.0), KIMI, (2.0, 1.5)):
        gated(
            probe,
            torch.ops._C.situ_and_mul,
            lambda x, b=beta, linear=linear_beta: situ(x, b, linear),
            beta,
            linear_beta,
        )


@check("activation", "_C::situ_and_mul_quant")
def situ_and_mul_quant(probe: Probe) -> None:
    """The same to fp8 with a scale per 128; rows behind the valid ones get a scale of 1 and no values."""
    for dtype in HALVES:
        for rows, width, constants, valid in (
            *((1, 128, (1.0, -1.0), None), (7, 1024, (2.0, 1.5), None)),
            *((300, 3072, KIMI, None), (301, 3072, KIMI, 100), (40, 256, KIMI, 13)),
        ):
            x = randn(probe, rows, 2 * width, dtype=dtype, scale=3.0)
            out = torch.full((rows, width), UNTOUCHED, device=probe.device).to(FP8)
            scales = poisoned(probe, rows, width // 128, dtype=torch.float32)
            count = None if valid is None else torch.tensor([valid], dtype=torch.int32, device=probe.device)
            torch.ops._C.situ_and_mul_quant(out, scales, x, *constants, 128, count, 2)
            used = rows if valid is None else 2 * valid
            want = situ(x.double(), *constants)[:used].view(used, -1, 128)
            probe.close(scales[:used], want.abs().amax(-1) / FP8_MAX, limit=8e-3, dtype="scales")
            back = out[:used].double().view_as(want) * scales[:used, :, None]
            probe.close(back, want, limit=0.04, dtype=f"fp8 of {dtype_name(dtype)}")
            probe.exact(scales[used:], torch.ones_like(scales[used:]), dtype="scales of no rows")
            probe.exact(out[used:].float(), torch.full_like(out[used:].float(), UNTOUCHED), dtype="no rows")


@check("activation", "_C::muse_spark_mul_tanh_soft_cap")
def muse_spark_mul_tanh_soft_cap(probe: Probe) -> None:
    """Logits to float32: cap * tanh(x * multiplier / cap)."""
    for dtype in DTYPES:
        for rows, width in ((1, 202048), (7, 1000), (83, 515)):
            x = randn(probe, rows, width, dtype=dtype)
            out = poisoned(probe, rows, width, dtype=torch.float32)
            torch.ops._C.muse_spark_mul_tanh_soft_cap(out, x, 3.0, 2.0)
            probe.close(out, 2 * torch.tanh(x.double() * 3.0 / 2.0), dtype=f"float32 of {dtype_name(dtype)}")


LIMIT, ALPHA, BETA = 2.0, 1.25, 0.5


def _clamped(x: Any) -> Any:
    gate, up = halves(x)
    gate = gate.clamp(max=LIMIT)
    return gate * torch.sigmoid(ALPHA * gate) * (up.clamp(-LIMIT, LIMIT) + BETA)


def _interleaved(x: Any) -> Any:
    gate, up = x[..., ::2].clamp(max=LIMIT), x[..., 1::2].clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


def _step(x: Any) -> Any:
    gate, up = halves(x)
    return F.silu(gate).clamp(max=LIMIT) * up.clamp(-LIMIT, LIMIT)


def _of_first(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: function(halves(x)[0]) * halves(x)[1]


GATED = {
    "silu": _of_first(F.silu),
    "gelu": _of_first(F.gelu),
    "gelu_tanh": _of_first(tanh_gelu),
    "silu_with_clamp": _clamped,
    "swigluoai_uninterleave": _clamped,
    "swigluoai": _interleaved,
    "swiglustep": _step,
    "situ": lambda x: situ(x, 3.0, 5.0),
}
PLAIN = {
    "silu_no_mul": F.silu,
    "gelu_no_mul": F.gelu,
    "gelu_tanh_no_mul": tanh_gelu,
    "relu2_no_mul": lambda x: F.relu(x).square(),
}


@check("activation", "_C::masked_moe_activation")
def masked_moe_activation(probe: Probe) -> None:
    """Every gate by its name, on the first rows of a batch and of each expert's batch; the rows behind stay."""
    for dtype in DTYPES:
        for lead, width in (((70,), 512), ((6, 33), 1000)):
            counts = torch.randint(0, lead[-1] + 1, lead[:-1] or (1,), dtype=torch.int32, device=probe.device)
            filled = torch.arange(lead[-1], device=probe.device) < counts[:, None]
            filled = filled.view(lead)
            for name, reference in (*GATED.items(), *PLAIN.items()):
                x = randn(probe, *lead, width * (2 if name in GATED else 1), dtype=dtype, scale=2.0)
                out = torch.full((*lead, width), UNTOUCHED, device=probe.device, dtype=dtype)
                torch.ops._C.masked_moe_activation(out, x, counts, name, LIMIT, ALPHA, BETA, 3.0, 5.0)
                limit = 8e-3 if dtype is torch.bfloat16 else None
                probe.close(out[filled], reference(x.double())[filled], limit=limit)
                probe.exact(out[~filled], torch.full_like(out[~filled], UNTOUCHED), dtype="rows behind")
