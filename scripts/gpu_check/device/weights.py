"""Products with quantised weights: Marlin, Machete, GPTQ, AWQ, GGUF, dense and for experts.

The layouts are written here from their definitions; products are compared with the dequantised weights in float64.
"""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.gemms import pack_rows
from scripts.gpu_check.device.moe import aligned
from scripts.gpu_check.device.probe import FP8, HALVES, Probe, call, check, dtype_name, randn

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def scalar_id(mantissa: int, bias: int = 0, *, exponent: int = 0, signed: bool = False, finite: bool = False) -> int:
    """Return vLLM's number for a type (csrc/core/scalar_type.hpp): bit fields from the lowest bit up."""
    nan = 2 if finite else 1
    return exponent | mantissa << 8 | int(signed) << 16 | bias << 17 | int(finite) << 49 | nan << 50


UINT4, UINT4B8, UINT8B128 = scalar_id(4), scalar_id(4, 8), scalar_id(8, 128)


def _hopper(capability: tuple[int, int]) -> bool:
    return capability == (9, 0)


def pack_columns(codes: Any, bits: int) -> Any:
    """Pack [k, n] codes, 32/bits along n to an int32, lowest first."""
    return pack_rows(codes.t().contiguous(), bits).t().contiguous()


def marlin_scales(scales: Any, *, single: bool) -> Any:
    """Return scales in the order in which Marlin's threads read them."""
    many = [i + 8 * j for i in range(8) for j in range(8)]
    one = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    order = one if single else many
    return scales.reshape(-1, len(order))[:, order].reshape(scales.shape).contiguous()


def _workspace(probe: Probe) -> Any:
    count = torch.cuda.get_device_properties(probe.device).multi_processor_count
    return torch.zeros(count * 4, dtype=torch.int, device=probe.device)


def _weights(probe: Probe, k: int, n: int, bits: int, group: int, dtype: Any) -> tuple[Any, Any]:
    codes = torch.randint(0, 2**bits, (k, n), device=probe.device)
    scales = (torch.rand(k // group, n, device=probe.device) * 0.02 + 0.005).to(dtype)
    return codes, scales


def _dequantised(codes: Any, scales: Any, zero: Any) -> Any:
    group = codes.shape[0] // scales.shape[0]
    shift = zero.double().repeat_interleave(group, 0) if isinstance(zero, torch.Tensor) else zero
    return (codes.double() - shift) * scales.double().repeat_interleave(group, 0)


def _marlin(probe: Probe, a: Any, weight: Any, scales: Any, zeros: Any, kind: int, n: int) -> Any:
    m, k = a.shape
    return call(
        torch.ops._C.marlin_gemm, a, None, weight, None, scales, None, None, zeros,
        workspace=_workspace(probe), b_type_id=kind, size_m=m, size_n=n, size_k=k,
        use_atomic_add=False, use_fp32_reduce=True, is_zp_float=False,
        neutral={"g_idx_or_none": None, "perm_or_none": None, "is_k_full": True},
    )  # fmt: skip


def _repacked(packed: Any, k: int, n: int, bits: int) -> Any:
    """Return a weight [k * bits / 32, n] in Marlin's order; its rows keep their places."""
    same = torch.empty(0, dtype=torch.int, device=packed.device)
    return call(
        torch.ops._C.gptq_marlin_repack, packed, size_k=k, size_n=n, num_bits=bits, is_a_8bit=False,
        neutral={"perm": same},
    )  # fmt: skip


@check("marlin", "_C::marlin_gemm", "_C::gptq_marlin_repack")
def marlin_gemm(probe: Probe) -> None:
    """Symmetric 4 and 8 bit weights, a scale per 128 of k or per column, few and many rows."""
    for dtype in HALVES:
        for bits, kind in ((4, UINT4B8), (8, UINT8B128)):
            for m, n, k, grouped in ((1, 256, 512, True), (33, 1024, 1024, True), (257, 4096, 2048, False)):
                codes, scales = _weights(probe, k, n, bits, 128 if grouped else k, dtype)
                weight = _repacked(pack_rows(codes, bits), k, n, bits)
                a = randn(probe, m, k, dtype=dtype)
                out = _marlin(probe, a, weight, marlin_scales(scales, single=not grouped), None, kind, n)
                want = a.double() @ _dequantised(codes, scales, 2 ** (bits - 1))
                probe.close(out, want, limit=1e-2, dtype=f"{dtype_name(dtype)}, {bits} bit")


@check("marlin", "_C::awq_marlin_repack", "_C::marlin_gemm")
def awq_marlin(probe: Probe) -> None:
    """4 bit weights with zero points, from AWQ's layout."""
    for dtype in HALVES:
        for m, n, k in ((1, 256, 512), (65, 2048, 1024)):
            codes, scales = _weights(probe, k, n, 4, 128, dtype)
            zeros = torch.randint(0, 16, scales.shape, device=probe.device)
            weight = torch.ops._C.awq_marlin_repack(_awq_packed(codes), k, n, 4, False)
            order = marlin_scales(zeros, single=False).reshape(-1, 8)[:, list(AWQ_ORDER)].reshape(zeros.shape)
            a = randn(probe, m, k, dtype=dtype)
            packed = pack_columns(order, 4)
            out = _marlin(probe, a, weight, marlin_scales(scales, single=False), packed, UINT4, n)
            want = a.double() @ _dequantised(codes, scales, zeros)
            probe.close(out, want, limit=1e-2, dtype=f"{dtype_name(dtype)}, 4 bit with zeros")


@check("marlin", "_C::marlin_gemm")
def marlin_fp8(probe: Probe) -> None:
    """fp8 weights with 16 bit activations: what a GPU without fp8 units uses."""
    kind = scalar_id(3, exponent=4, signed=True, finite=True)
    for m, n, k in ((1, 256, 512), (65, 1024, 1024)):
        w = randn(probe, k, n, scale=0.5).to(FP8)
        scales = (torch.rand(1, n, device=probe.device) * 0.02 + 0.005).half()
        weight = _repacked(pack_rows(w.view(torch.uint8), 8), k, n, 8)
        a = randn(probe, m, k, dtype=torch.float16)
        shifted = marlin_scales(scales, single=True) * 2**8  # the kernel leaves the difference of exponent biases out
        out = _marlin(probe, a, weight, shifted, None, kind, n)
        probe.close(out, a.double() @ (w.double() * scales.double()), limit=1e-2, dtype="float16, fp8 weights")


@check("marlin", "_C::marlin_int4_fp8_preprocess")
def marlin_int4_fp8_preprocess(probe: Probe) -> None:
    """Codes with bias 8 become sign and magnitude."""
    codes = torch.randint(0, 16, (128, 256), device=probe.device)
    got = torch.ops._C.marlin_int4_fp8_preprocess(pack_rows(codes, 4), None, False)
    want = torch.where(codes >= 8, codes - 8, 15 - codes)
    probe.exact(got, pack_rows(want, 4))


def _moe_marlin(probe: Probe, dtype: Any, bits: int, kind: int) -> None:
    """Marlin for experts; weights repacked with the dense operator when it is there."""
    if not hasattr(torch.ops._C, "gptq_marlin_repack"):
        probe.notes.append("needs _C::gptq_marlin_repack, which this wheel does not hold")
        return
    tokens, k_best, experts, n, k = 33, 2, 8, 512, 1024
    pairs = [_weights(probe, k, n, bits, 128, dtype) for _ in range(experts)]
    weight = torch.stack([_repacked(pack_rows(c, bits), k, n, bits) for c, _ in pairs])
    scales = torch.stack([marlin_scales(s, single=False) for _, s in pairs])
    a = randn(probe, tokens, k, dtype=dtype)
    ids = torch.rand(tokens, experts, device=probe.device).topk(k_best).indices.int()
    ones = torch.ones(tokens, k_best, device=probe.device)
    rows, owners, count = aligned(probe, ids, experts, 16)
    out = call(
        torch.ops._moe_C.moe_wna16_marlin_gemm, a, None, weight, None, scales, None, None, None,
        workspace=_workspace(probe), sorted_token_ids=rows, expert_ids=owners, num_tokens_past_padded=count,
        topk_weights=ones, moe_block_size=16, top_k=k_best, mul_topk_weights=False, b_type_id=kind,
        size_m=tokens, size_n=n, size_k=k, use_atomic_add=False, use_fp32_reduce=True, is_zp_float=False,
        thread_k=-1, thread_n=-1, blocks_per_sm=-1,
        neutral={"g_idx_or_none": None, "perm_or_none": None, "is_full_k": True},
    )  # fmt: skip
    dense = torch.stack([_dequantised(c, s, 2 ** (bits - 1)) for c, s in pairs])
    want = torch.einsum("tk,tjkn->tjn", a.double(), dense[ids.long()]).reshape(-1, n)
    probe.close(out, want, limit=1e-2, dtype=f"{dtype_name(dtype)}, {bits} bit")


# A check each: a GPU of 9.0 gets these kernels as PTX, which the driver compiles for a minute per type.
@check("marlin", "_moe_C::moe_wna16_marlin_gemm")
def moe_marlin_bfloat16_4(probe: Probe) -> None:
    """bfloat16, 4 bit."""
    _moe_marlin(probe, torch.bfloat16, 4, UINT4B8)


@check("marlin", "_moe_C::moe_wna16_marlin_gemm")
def moe_marlin_bfloat16_8(probe: Probe) -> None:
    """bfloat16, 8 bit."""
    _moe_marlin(probe, torch.bfloat16, 8, UINT8B128)


@check("marlin", "_moe_C::moe_wna16_marlin_gemm")
def moe_marlin_float16_4(probe: Probe) -> None:
    """float16, 4 bit."""
    _moe_marlin(probe, torch.float16, 4, UINT4B8)


@check("marlin", "_moe_C::moe_wna16_marlin_gemm")
def moe_marlin_float16_8(probe: Probe) -> None:
    """float16, 8 bit."""
    _moe_marlin(probe, torch.float16, 8, UINT8B128)


@check("machete", "_C::machete_mm", "_C::machete_prepack_B", "_C::machete_supported_schedules", arch=_hopper)
def machete(probe: Probe) -> None:
    """4 and 8 bit weights on Hopper's matrix units, with and without zero points."""
    ops = torch.ops._C
    for dtype in HALVES:
        for bits, kind, zero in ((4, UINT4B8, 8), (8, UINT8B128, 128), (4, UINT4, None)):
            if zero is None:
                schedules = ops.machete_supported_schedules(dtype, kind, dtype, dtype, None, None, None)
            else:
                schedules = ops.machete_supported_schedules(dtype, kind, dtype, None, None, None, None)
            probe.true(schedules, "a schedule for every type")
            for m, n, k in ((1, 256, 512), (33, 1024, 1024), (257, 4096, 2048)):
                codes, scales = _weights(probe, k, n, bits, 128, dtype)
                packed = pack_rows(codes, bits).t().contiguous().t()
                weight = ops.machete_prepack_B(packed, dtype, kind, dtype)
                zeros = torch.randint(0, 16, scales.shape, device=probe.device)
                # Zero points are added after scaling.
                shift = None if zero is not None else -(scales * zeros.to(dtype))
                a = randn(probe, m, k, dtype=dtype)
                out = ops.machete_mm(a, weight, kind, None, scales, shift, 128, None, None, None)
                plain = _dequantised(codes, scales, zero or 0)
                dense = plain if shift is None else plain + shift.double().repeat_interleave(128, 0)
                name = f"{dtype_name(dtype)}, {bits} bit{'' if zero else ' with zeros'}"
                # The dequantised weights are rounded to the activations' type.
                probe.close(out, a.double() @ dense, limit=2e-2, dtype=name)


@check("gptq", "_C::gptq_gemm", "_C::gptq_shuffle")
def gptq(probe: Probe) -> None:
    """GPTQ with zero points stored less one, 4 and 8 bit, few rows (fused) and many (dequantised)."""
    empty = torch.empty(0, dtype=torch.int, device=probe.device)
    for bits in (4, 8):
        for m, n, k in ((1, 256, 512), (33, 1024, 1024), (130, 2048, 512)):
            codes, scales = _weights(probe, k, n, bits, 128, torch.float16)
            zeros = torch.randint(0, 2**bits - 1, scales.shape, device=probe.device)
            weight = pack_rows(codes, bits)
            call(torch.ops._C.gptq_shuffle, weight, bit=bits, neutral={"q_perm": empty})
            a = randn(probe, m, k, dtype=torch.float16)
            out = call(
                torch.ops._C.gptq_gemm, a, weight, pack_columns(zeros, bits), scales,
                use_exllama=True, use_v2_format=False, bit=bits, neutral={"b_g_idx": empty},
            )  # fmt: skip
            want = a.double() @ _dequantised(codes, scales, zeros + 1)
            # Partial sums are added up in half precision, in any order.
            probe.close(out, want, limit=2e-2, dtype=f"float16, {bits} bit")


def _awq_packed(codes: Any) -> Any:
    k, n = codes.shape
    return pack_columns(codes.reshape(k, -1, 8)[:, :, list(AWQ_ORDER)].reshape(k, n), 4)


@check("gptq", "_C::awq_gemm", "_C::awq_dequantize")
def awq(probe: Probe) -> None:
    """AWQ's interleaved 4 bit weights with zero points."""
    for m, n, k in ((1, 256, 512), (33, 1024, 1024), (130, 2048, 512)):
        codes, scales = _weights(probe, k, n, 4, 128, torch.float16)
        zeros = torch.randint(0, 16, scales.shape, device=probe.device)
        weight, packed = _awq_packed(codes), _awq_packed(zeros)
        want = _dequantised(codes, scales, zeros)
        probe.close(torch.ops._C.awq_dequantize(weight, scales, packed, 0, 0, 0), want, limit=2e-3)
        a = randn(probe, m, k, dtype=torch.float16)
        out = torch.ops._C.awq_gemm(a, weight, scales, packed, 8)
        probe.close(out, a.double() @ want, limit=5e-3, dtype="float16 product")


def _gguf(probe: Probe, kind: int, rows: int, columns: int) -> tuple[Any, Any]:
    """Return packed rows of type Q4_0 (2) or Q8_0 (8) and their values: blocks of 32 with one half scale."""
    scales = (torch.rand(rows, columns // 32, 1, device=probe.device) * 0.02 + 0.005).half()
    shape = (rows, columns // 32, 32)
    if kind == 8:
        codes = torch.randint(-127, 128, shape, device=probe.device)
        packed = codes.to(torch.int8).view(torch.uint8)
    else:
        codes = torch.randint(-8, 8, shape, device=probe.device)
        packed = ((codes[..., :16] + 8) | (codes[..., 16:] + 8) << 4).to(torch.uint8)
    data = torch.cat([scales.view(torch.uint8), packed], -1).reshape(rows, -1).contiguous()
    return data, (codes.double() * scales.double()).reshape(rows, columns)


@check("gguf", "_C::ggml_dequantize", "_C::ggml_mul_mat_vec_a8", "_C::ggml_mul_mat_a8")
def gguf(probe: Probe) -> None:
    """Q4_0 and Q8_0: values, and products with activations quantised to 8 bits on the way."""
    for kind, name in ((2, "Q4_0"), (8, "Q8_0")):
        for rows, columns in ((256, 512), (1024, 2048)):
            data, values = _gguf(probe, kind, rows, columns)
            out = torch.ops._C.ggml_dequantize(data, kind, rows, columns, torch.float16)
            probe.close(out, values, dtype=f"float16 of {name}")
            for tokens, operator in ((1, torch.ops._C.ggml_mul_mat_vec_a8), (33, torch.ops._C.ggml_mul_mat_a8)):
                x = randn(probe, tokens, columns, dtype=torch.float16)
                got = operator(data, x, kind, rows)
                probe.close(got, x.double() @ values.T, limit=2e-2, dtype=f"float16 x {name}")


def _gguf_experts(probe: Probe, kind: int, tokens: int) -> tuple[Any, ...]:
    """Return activations, packed weights of 8 experts, each token's two experts, and the float64 result."""
    experts, rows, columns = 8, 256, 512
    pairs = [_gguf(probe, kind, rows, columns) for _ in range(experts)]
    data, values = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
    x = randn(probe, tokens, columns, dtype=torch.float16)
    ids = torch.rand(tokens, experts, device=probe.device).topk(2).indices.int()
    want = torch.einsum("td,tkrd->tkr", x.double(), values[ids.long()]).reshape(tokens * 2, rows)
    return x, data, ids, want


@check("gguf", "_C::ggml_moe_a8_vec")
def gguf_moe_vec(probe: Probe) -> None:
    """Experts with Q4_0 and Q8_0 weights, few tokens."""
    for kind, name in ((2, "Q4_0"), (8, "Q8_0")):
        x, data, ids, want = _gguf_experts(probe, kind, 17)
        out = torch.ops._C.ggml_moe_a8_vec(x, data, ids, 2, kind, 256, 17)
        probe.close(out, want, limit=2e-2, dtype=f"float16 x {name}")


@check("gguf", "_C::ggml_moe_a8", "_C::ggml_moe_get_block_size")
def gguf_moe(probe: Probe) -> None:
    """The same for many tokens, sorted by expert."""
    for kind, name in ((2, "Q4_0"), (8, "Q8_0")):
        x, data, ids, want = _gguf_experts(probe, kind, 70)
        block = torch.ops._C.ggml_moe_get_block_size(kind)
        out = torch.ops._C.ggml_moe_a8(x, data, *aligned(probe, ids, 8, block), kind, 256, 2, 70)
        probe.close(out, want, limit=2e-2, dtype=f"float16 x {name}")
