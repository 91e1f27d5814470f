"""CUTLASS products of quantised matrices and the helpers around them."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from scripts.gpu_check.device.probe import FP8, FP8_MAX, HALVES, Probe, check, dtype_name, poisoned, randn

SHAPES = ((1, 256, 128), (16, 256, 496), (32, 8192, 4096), (100, 1024, 1024), (512, 24576, 128), (257, 4096, 4096))


def _fp8(x: Any) -> Any:
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def _int8(x: Any) -> Any:
    return x.round().clamp(-128, 127).to(torch.int8)


def _product(a: Any, b: Any) -> Any:
    return a.double() @ b.double()


def _hopper(capability: tuple[int, int]) -> bool:
    return capability[0] == 9


@check("gemm", "_C::cutlass_scaled_mm")
def cutlass_scaled_mm(probe: Probe) -> None:
    """fp8 and int8, scales per tensor and per row and column, with and without bias."""
    for quantise, out_dtype in itertools.product((_fp8, _int8), HALVES):
        for (m, n, k), per_row, biased in itertools.product(SHAPES, (False, True), (False, True)):
            a, b = quantise(randn(probe, m, k, scale=5)), quantise(randn(probe, n, k, scale=5)).t()
            scale_a = torch.rand(m if per_row else 1, 1, device=probe.device) * 0.1
            scale_b = torch.rand(1, n if per_row else 1, device=probe.device) * 0.1
            bias = randn(probe, n, dtype=out_dtype) if biased else None
            out = poisoned(probe, m, n, dtype=out_dtype)
            torch.ops._C.cutlass_scaled_mm(out, a, b, scale_a, scale_b, bias)
            want = _product(a, b) * scale_a * scale_b + (0.0 if bias is None else bias.double())
            # Hopper's fp8 units add with about 14 bits: 1.3e-3 was seen for float16, where rounding alone gives 3e-4.
            limit = 5e-3 if a.dtype == FP8 else None
            probe.close(out, want, limit=limit, dtype=f"{dtype_name(a.dtype)} to {dtype_name(out_dtype)}")


@check("gemm", "_C::cutlass_scaled_mm", arch=_hopper)
def cutlass_scaled_mm_blocks(probe: Probe) -> None:
    """fp8 with a scale per 1x128 of a and 128x128 of b (DeepSeek-V3)."""
    for m, n, k in ((4, 512, 512), (64, 1536, 7168), (256, 2048, 4096)):
        a, b = _fp8(randn(probe, m, k, scale=5)), _fp8(randn(probe, n, k, scale=5)).t()
        scale_a = torch.rand(k // 128, m, device=probe.device).t() * 0.1
        scale_b = (torch.rand(n // 128, k // 128, device=probe.device) * 0.1).t()
        out = poisoned(probe, m, n, dtype=torch.bfloat16)
        torch.ops._C.cutlass_scaled_mm(out, a, b, scale_a, scale_b, None)
        left = a.double() * scale_a.double().repeat_interleave(128, 1)
        right = b.double() * scale_b.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        probe.close(out, left @ right, dtype="float8_e4m3fn by blocks to bfloat16")


@check("gemm", "_C::cutlass_scaled_mm_azp")
def cutlass_scaled_mm_azp(probe: Probe) -> None:
    """int8 with zero points per tensor and per row."""
    for out_dtype, per_row, (m, n, k) in itertools.product(HALVES, (False, True), ((32, 256, 496), (512, 1024, 512))):
        a, b = _int8(randn(probe, m, k, scale=30)), _int8(randn(probe, n, k, scale=30)).t()
        scale_a = torch.rand(m if per_row else 1, 1, device=probe.device) * 0.1
        scale_b = torch.rand(1, n, device=probe.device) * 0.1
        azp = torch.randint(-30, 30, (m if per_row else 1, 1), device=probe.device, dtype=torch.int32)
        columns = b.int().sum(0, keepdim=True, dtype=torch.int32)
        bias = randn(probe, n, dtype=out_dtype)
        out = poisoned(probe, m, n, dtype=out_dtype)
        given = (columns, azp) if per_row else (azp * columns, None)
        torch.ops._C.cutlass_scaled_mm_azp(out, a, b, scale_a, scale_b, *given, bias)
        want = (a.double() - azp.double()) @ b.double() * scale_a * scale_b + bias.double()
        probe.close(out, want, dtype=f"int8 to {dtype_name(out_dtype)}")


@check(
    "gemm",
    "_C::cutlass_scaled_mm_supports_fp8",
    "_C::cutlass_group_gemm_supported",
    "_C::cutlass_scaled_mm_supports_block_fp8",
    "_C::cutlass_scaled_mm_supports_fp4",
)
def supports(probe: Probe) -> None:
    """What the library says of this GPU: fp8 from 8.9, blocks and groups from 9.0, fp4 from 10.0."""
    major, minor = torch.cuda.get_device_capability()
    number = major * 10 + minor
    ops = torch.ops._C
    probe.true(ops.cutlass_scaled_mm_supports_fp8(number) == (number >= 89), "fp8 from 8.9")
    probe.true(ops.cutlass_scaled_mm_supports_block_fp8(number) == (number >= 90), "blocks from 9.0")
    probe.true(number != 90 or ops.cutlass_group_gemm_supported(number), "groups on 9.0")
    probe.true(number >= 100 or not ops.cutlass_scaled_mm_supports_fp4(number), "no fp4 before 10.0")


@check("gemm", "_C::mxfp4_experts_quant_supported")
def supports_mxfp4(probe: Probe) -> None:
    """What the library says of this GPU: nothing before 10.0."""
    major, minor = torch.cuda.get_device_capability()
    number = major * 10 + minor
    probe.true(number >= 100 or not torch.ops._C.mxfp4_experts_quant_supported(number), "no mxfp4 before 10.0")


def _expert_data(probe: Probe, ids: Any, experts: int, n: int, k: int) -> tuple[Any, ...]:
    rows = ids.numel()
    offsets = torch.full((experts + 1,), -7, dtype=torch.int32, device=probe.device)
    sizes = [torch.full((experts, 3), -7, dtype=torch.int32, device=probe.device) for _ in range(2)]
    maps = [torch.full((rows,), -7, dtype=torch.int32, device=probe.device) for _ in range(2)]
    torch.ops._C.get_cutlass_moe_mm_data(ids, offsets, *sizes, *maps, experts, n, k, None, True)
    return offsets, *sizes, *maps


def _sizes(counts: Any, first: int, second: int, *, swapped: bool) -> Any:
    fixed = torch.full_like(counts, first), torch.full_like(counts, second)
    return torch.stack([fixed[0], counts, fixed[1]] if swapped else [counts, fixed[0], fixed[1]], 1).int()


@check(
    "gemm",
    "_C::get_cutlass_moe_mm_data",
    "_C::get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
    "_C::get_cutlass_batched_moe_mm_data",
    arch=_hopper,
)
def cutlass_moe_data(probe: Probe) -> None:
    """Where each expert's rows begin and how large its products are."""
    for tokens, k, experts, n, width in ((7, 2, 8, 256, 512), (129, 6, 60, 1408, 2048)):
        ids = torch.rand(tokens, experts, device=probe.device).topk(k).indices.int()
        offsets, sizes1, sizes2, inputs, outputs = _expert_data(probe, ids, experts, n, width)
        counts = torch.bincount(ids.flatten().long(), minlength=experts)
        probe.exact(offsets[1:], counts.cumsum(0))
        plain = _sizes(counts, 2 * n, width, swapped=False), _sizes(counts, width, n, swapped=False)
        swap = not bool((sizes1 == plain[0]).all())  # the kernel swaps A and B for few tokens
        want = (_sizes(counts, 2 * n, width, swapped=swap), _sizes(counts, width, n, swapped=swap))
        probe.exact(sizes1, want[0])
        probe.exact(sizes2, want[1])
        by_expert = ids.flatten()[outputs.long().argsort()]
        probe.exact(by_expert, ids.flatten().sort().values)
        probe.exact(inputs[outputs.long()], torch.arange(tokens, device=probe.device).repeat_interleave(k))
        first = torch.cat([torch.zeros(1, device=probe.device), counts.cumsum(0)]).long()
        for swapped in (False, True):
            got = [torch.full_like(sizes1, -7) for _ in range(2)]
            torch.ops._C.get_cutlass_moe_mm_problem_sizes_from_expert_offsets(first, *got, n, width, swapped)
            probe.exact(got[0], _sizes(counts, 2 * n, width, swapped=swapped))
            probe.exact(got[1], _sizes(counts, width, n, swapped=swapped))
        got = [torch.full_like(sizes1, -7) for _ in range(2)]
        starts = torch.full((experts,), -7, dtype=torch.int32, device=probe.device)
        torch.ops._C.get_cutlass_batched_moe_mm_data(starts, *got, counts.int(), experts, 64, n, width)
        probe.exact(starts, torch.arange(experts, device=probe.device) * 64)
        probe.exact(got[0], _sizes(counts, 2 * n, width, swapped=False))


@check("gemm", "_C::cutlass_moe_mm", arch=_hopper)
def cutlass_moe_mm(probe: Probe) -> None:
    """One fp8 product per expert over stacked rows."""
    for experts, n, k, per_row, per_column in ((8, 256, 512, False, False), (40, 1408, 1024, True, True)):
        counts = torch.randint(1, 20, (experts,)) * 16
        first = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).to(probe.device)
        rows = int(counts.sum())
        a = _fp8(randn(probe, rows, k))
        b = _fp8(randn(probe, experts, n, k)).transpose(1, 2)
        scale_a = randn(probe, rows if per_row else 1, 1)
        scale_b = randn(probe, experts, n if per_column else 1)
        sizes = _sizes(counts, n, k, swapped=False).to(probe.device)
        out = poisoned(probe, rows, n, dtype=torch.float16)
        stride = torch.full((experts,), k, device=probe.device, dtype=torch.int64)
        wide = torch.full((experts,), n, device=probe.device, dtype=torch.int64)
        torch.ops._C.cutlass_moe_mm(
            out, a, b, scale_a, scale_b, first[:-1], sizes, stride, stride, wide, per_row, per_column
        )
        want = torch.empty(rows, n, device=probe.device, dtype=torch.float64)
        for expert in range(experts):
            part = slice(int(first[expert]), int(first[expert + 1]))
            scale = scale_a[part] if per_row else scale_a
            want[part] = _product(a[part], b[expert]) * scale.double() * scale_b[expert].double()
        probe.close(out, want, dtype="float8_e4m3fn to float16")


def pack_rows(codes: Any, bits: int) -> Any:
    """Pack [k, n] codes, 32/bits along k to an int32, lowest first."""
    per = 32 // bits
    parts = codes.view(-1, per, codes.shape[1]).long()
    packed = sum((parts[:, i] & (2**bits - 1)) << (bits * i) for i in range(per))
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


@check(
    "gemm", "_C::cutlass_w4a8_mm", "_C::cutlass_pack_scale_fp8", "_C::cutlass_encode_and_reorder_int4b", arch=_hopper
)
def cutlass_w4a8_mm(probe: Probe) -> None:
    """fp8 activations, int4 weights with fp8 scales per 128 of k and float scales per row and column."""
    for m, n, k in ((1, 512, 1024), (64, 1024, 1024), (257, 4096, 4096)):
        a = _fp8(randn(probe, m, k))
        codes = torch.randint(-8, 8, (k, n), device=probe.device)
        scales = (torch.rand(k // 128, n, device=probe.device) * 0.2 + 0.05).to(FP8)
        packed = pack_rows(codes, 4).t().contiguous().t()
        weight = torch.ops._C.cutlass_encode_and_reorder_int4b(packed)
        packed_scales = torch.ops._C.cutlass_pack_scale_fp8(scales)
        columns, rows = torch.rand(n, device=probe.device), torch.rand(m, device=probe.device)
        out = torch.ops._C.cutlass_w4a8_mm(a, weight, packed_scales, 128, columns, rows, torch.bfloat16, None)
        # The kernel multiplies code and scale in fp8.
        product = _fp8(codes.float() * scales.float().repeat_interleave(128, 0))
        want = _product(a, product) * rows.double()[:, None] * columns.double()
        probe.close(out, want, limit=1e-2, dtype="fp8 x int4 to bfloat16")


@check("gemm", "_C::dsv3_fused_a_gemm", arch=lambda capability: capability >= (9, 0))
def dsv3_fused_a_gemm(probe: Probe) -> None:
    """DeepSeek-V3's query and key-value compression, 1 to 16 tokens."""
    for tokens in (1, 8, 16):
        x = randn(probe, tokens, 7168, dtype=torch.bfloat16)
        w = randn(probe, 2112, 7168, dtype=torch.bfloat16).t()
        out = poisoned(probe, tokens, 2112, dtype=torch.bfloat16)
        torch.ops._C.dsv3_fused_a_gemm(out, x, w)
        probe.close(out, _product(x, w))


@check("gemm", "_C::permute_cols")
def permute_cols(probe: Probe) -> None:
    """A gather of columns."""
    for dtype in HALVES:
        for rows, columns in ((1, 512), (33, 544), (1, 7168), (130, 3424)):
            x = randn(probe, rows, columns, dtype=dtype)
            order = torch.randperm(columns, device=probe.device).int()
            probe.exact(torch.ops._C.permute_cols(x, order), x[:, order.long()])
