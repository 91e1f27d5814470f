"""Paged attention, merging of partial results, and the other operators of a model's step."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from scripts.gpu_check.device import coverage
from scripts.gpu_check.device.probe import FP8, FP8_MAX, HALVES, Probe, check, poisoned, randn


def _paged(probe: Probe, lengths: list[int], heads: int, kv_heads: int, size: int, block: int, dtype: Any) -> Any:
    """Return query, caches, block table, lengths and the float64 result."""
    pages = [(length + block - 1) // block for length in lengths]
    count, x = sum(pages), 16 // dtype.itemsize
    keys = randn(probe, count, kv_heads, size // x, block, x, dtype=dtype)
    values = randn(probe, count, kv_heads, size, block, dtype=dtype)
    query = randn(probe, len(lengths), heads, size, dtype=dtype)
    order = torch.randperm(count)
    table = torch.zeros(len(lengths), max(pages), dtype=torch.int32)
    wants, begin = [], 0
    for i, length in enumerate(lengths):
        mine = order[begin : begin + pages[i]]
        begin += pages[i]
        table[i, : pages[i]] = mine
        mine = mine.to(probe.device)
        k = keys[mine].permute(1, 0, 3, 2, 4).reshape(kv_heads, -1, size)[:, :length].double()
        v = values[mine].permute(1, 0, 3, 2).reshape(kv_heads, -1, size)[:, :length].double()
        k, v = (part.repeat_interleave(heads // kv_heads, 0) for part in (k, v))
        weight = torch.einsum("hd,hld->hl", query[i].double() / math.sqrt(size), k).softmax(-1)
        wants.append(torch.einsum("hl,hld->hd", weight, v))
    return query, keys, values, table.to(probe.device), torch.stack(wants)


@check("attention", "_C::paged_attention_v1", "_C::paged_attention_v2")
def paged_attention(probe: Probe) -> None:
    """Decoding with several heads per key, one pass and in partitions of 512."""
    one = torch.ones(1, device=probe.device)
    for dtype in HALVES:
        for heads, kv_heads, size, block in ((4, 4, 64, 16), (16, 2, 128, 16), (8, 8, 80, 32), (8, 1, 256, 16)):
            lengths = [1, 17, 400, 1500, 600]
            query, keys, values, table, want = _paged(probe, lengths, heads, kv_heads, size, block, dtype)
            sizes = torch.tensor(lengths, dtype=torch.int32, device=probe.device)
            rest = (
                query, keys, values, kv_heads, 1 / math.sqrt(size), table, sizes, block, max(lengths), None,
                "auto", one, one, 0, 0, 0, 64, 0,
            )  # fmt: skip
            out = poisoned(probe, *query.shape, dtype=dtype)
            torch.ops._C.paged_attention_v1(out, *rest)
            probe.close(out, want)
            parts = (max(lengths) + 511) // 512
            out = poisoned(probe, *query.shape, dtype=dtype)
            sums = torch.empty(len(lengths), heads, parts, device=probe.device)
            partial = torch.empty(len(lengths), heads, parts, size, dtype=dtype, device=probe.device)
            torch.ops._C.paged_attention_v2(out, sums, torch.empty_like(sums), partial, *rest)
            probe.close(out, want)


@check("attention", "_C::merge_attn_states")
def merge_attn_states(probe: Probe) -> None:
    """Two results over different keys joined by their log-sum-exps."""
    for dtype in HALVES:
        for tokens, heads, size in ((1, 4, 64), (83, 16, 128), (300, 8, 256)):
            parts = [randn(probe, tokens, heads, size, dtype=dtype) for _ in range(2)]
            logs = [randn(probe, heads, tokens) for _ in range(2)]
            out = poisoned(probe, tokens, heads, size, dtype=dtype)
            log = poisoned(probe, heads, tokens, dtype=torch.float32)
            torch.ops._C.merge_attn_states(out, log, parts[0], logs[0], parts[1], logs[1], None, None)
            both = torch.stack(logs).double()
            share = both.softmax(0).permute(0, 2, 1)[..., None]
            probe.close(out, share[0] * parts[0].double() + share[1] * parts[1].double())
            probe.close(log, both.logsumexp(0))


@check("scan", "_C::selective_scan_fwd")
def selective_scan(probe: Probe) -> None:
    """Mamba's recurrence with gate and softplus, against a loop over time in float64."""
    for dtype in (torch.float32, torch.bfloat16):
        for batch, dim, length, states, groups in ((2, 64, 128, 16, 1), (1, 128, 300, 64, 2)):
            u, gate = (randn(probe, batch, dim, length, dtype=dtype) for _ in range(2))
            delta = (torch.rand(batch, dim, length, device=probe.device) * 0.5).to(dtype)
            a = -torch.rand(dim, states, device=probe.device)
            b, c = (randn(probe, batch, groups, states, length, dtype=dtype) for _ in range(2))
            d, bias = randn(probe, dim), torch.rand(dim, device=probe.device) * 0.5
            step = F.softplus(delta.double() + bias.double()[:, None])
            state = torch.zeros(batch, dim, states, device=probe.device, dtype=torch.float64)
            per_group = dim // groups
            b64, c64 = (x.double().repeat_interleave(per_group, 1) for x in (b, c))
            outs = []
            for t in range(length):
                now = step[:, :, t, None]
                state = (now * a.double()).exp() * state + now * b64[..., t] * u[:, :, t, None].double()
                outs.append((state * c64[..., t]).sum(-1))
            want = (torch.stack(outs, -1) + d.double()[:, None] * u.double()) * F.silu(gate.double())
            final = torch.zeros(batch, dim, states, device=probe.device, dtype=torch.float32)
            torch.ops._C.selective_scan_fwd(
                u, delta, a, b, c, d, gate, bias, True, None, None, None, final, -1, 1024, *([None] * 5)
            )
            probe.close(gate, want, limit=1e-2 if dtype is torch.bfloat16 else 1e-4)
            probe.close(final, state, limit=1e-2 if dtype is torch.bfloat16 else 1e-4, dtype="state")


@check("scan", "_C::hadacore_transform")
def hadamard(probe: Probe) -> None:
    """Walsh-Hadamard transform of rows, divided by the root of their length."""
    for dtype in HALVES:
        for rows, size in ((1, 128), (32, 512), (65, 4096), (4, 16384)):
            x = randn(probe, rows, size, dtype=dtype)
            want = x.double()
            step = 1
            while step < size:
                pairs = want.view(rows, -1, 2, step)
                want = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
                step *= 2
            want = want.reshape(rows, size) / math.sqrt(size)
            # In place, as vLLM's wrapper always calls it: with False, 0.20.1 returns memory that nothing has written.
            out = torch.ops._C.hadacore_transform(x.clone(), True)
            probe.close(out, want, limit=1e-2 if dtype is torch.bfloat16 else 2e-3)


@check("sampling", "_C::apply_repetition_penalties_")
def repetition(probe: Probe) -> None:
    """Logits of tokens already seen are divided or multiplied."""
    for dtype in (torch.float32, torch.float16):
        for rows, words in ((1, 151936), (17, 32000)):
            logits = randn(probe, rows, words, dtype=dtype)
            masks = [torch.rand(rows, words, device=probe.device) < 0.1 for _ in range(2)]
            penalty = (torch.rand(rows, device=probe.device) + 1.1).to(dtype)
            strength = torch.where(masks[0] | masks[1], penalty.double()[:, None], 1.0)
            want = torch.where(logits > 0, logits.double() / strength, logits.double() * strength)
            torch.ops._C.apply_repetition_penalties_(logits, *masks, penalty)
            probe.close(logits, want)


def best_of(probe: Probe, logits: Any, ends: Any, indices: Any, k: int) -> None:
    """Compare the values found with the k largest; ties may be broken either way."""
    for row in range(0, logits.shape[0], max(1, logits.shape[0] // 16)):
        end = int(ends[row])
        take = min(k, end)
        picked = indices[row, :take].long()
        valid = bool(((picked >= 0) & (picked < end)).all()) and picked.unique().numel() == take
        probe.true(valid, "distinct indices within the row")
        if valid:
            probe.exact(logits[row, picked].sort().values, logits[row, :end].topk(take).values.sort().values)


@check("sampling", "_C::top_k_per_row_prefill", "_C::top_k_per_row_decode", "_C::persistent_topk")
def top_k(probe: Probe) -> None:
    """The 2048 best of each row, for growing rows, for decoding, and in one persistent kernel."""
    k, rows, width = 2048, 33, 9000
    logits = randn(probe, rows, width)
    starts = torch.zeros(rows, dtype=torch.int32, device=probe.device)
    ends = torch.randint(1, width + 1, (rows,), dtype=torch.int32, device=probe.device)
    indices = torch.full((rows, k), -7, dtype=torch.int32, device=probe.device)
    torch.ops._C.top_k_per_row_prefill(logits, starts, ends, indices, rows, width, 1, k)
    best_of(probe, logits, ends, indices, k)
    indices.fill_(-7)
    torch.ops._C.top_k_per_row_decode(logits, 1, ends, indices, rows, width, 1, k)
    best_of(probe, logits, ends, indices, k)
    indices.fill_(-7)
    workspace = torch.zeros(1024 * 1024, dtype=torch.uint8, device=probe.device)
    torch.ops._C.persistent_topk(logits, ends, indices, workspace, k, int(ends.max()))
    best_of(probe, logits, ends, indices, k)


@check("sampling", "_C::persistent_masked_m_silu_mul_quant", arch=lambda capability: capability >= (9, 0))
def masked_silu_quant(probe: Probe) -> None:
    """Gate and quantise the filled rows of each expert's batch, a scale per 128."""
    experts, tokens, hidden = 8, 64, 1024
    x = randn(probe, experts, tokens, 2 * hidden, dtype=torch.bfloat16)
    counts = torch.randint(1, tokens + 1, (experts,), dtype=torch.int32, device=probe.device)
    out = torch.zeros(experts, tokens, hidden, dtype=torch.uint8, device=probe.device).view(FP8)
    groups = hidden // 128
    scales = torch.empty_strided(
        (experts, tokens, groups), (tokens * groups, 1, tokens), dtype=torch.float32, device=probe.device
    )
    torch.ops._C.persistent_masked_m_silu_mul_quant(x, counts, out, scales, False)
    for expert in range(experts):
        used = int(counts[expert])
        first, second = x[expert, :used].double().chunk(2, -1)
        want = (F.silu(first) * second).view(used, groups, 128)
        probe.close(scales[expert, :used], want.abs().amax(-1) / FP8_MAX, limit=2e-2, dtype="scales")
        back = out[expert, :used].double().view_as(want) * scales[expert, :used].double()[..., None]
        probe.close(back, want, limit=0.05, dtype="fp8 of bfloat16")


@check("memory", "_C::weak_ref_tensor", "_C::get_cuda_view_from_cpu_tensor")
def views(probe: Probe) -> None:
    """A second tensor on the same memory; pinned host memory seen from the GPU."""
    x = randn(probe, 1000)
    other = torch.ops._C.weak_ref_tensor(x)
    probe.exact(other, x)
    probe.true(other.data_ptr() == x.data_ptr(), "the same memory")
    host = torch.randn(1000).pin_memory()
    probe.exact(torch.ops._C.get_cuda_view_from_cpu_tensor(host) * 2, (host * 2).to(probe.device))


@check(
    "memory",
    "_C_cuda_utils::get_device_attribute",
    "_C_cuda_utils::get_max_shared_memory_per_block_device_attribute",
    "_C_custom_ar::meta_size",
)
def attributes(probe: Probe) -> None:
    """Properties of the device as torch sees them."""
    known = torch.cuda.get_device_properties(0)
    utilities = torch.ops._C_cuda_utils
    # vLLM 0.20.1 keeps the first attribute asked for and answers every later question with it: ask for one only.
    shared = utilities.get_max_shared_memory_per_block_device_attribute(0)
    probe.true(shared == known.shared_memory_per_block_optin, "shared memory per block")
    probe.true(utilities.get_device_attribute(97, 0) == known.shared_memory_per_block_optin, "the same by number")
    probe.true(torch.ops._C_custom_ar.meta_size() > 0, "size of the all-reduce's signals")


@check("memory", "cumem_allocator")
def cumem(probe: Probe) -> None:
    """The sleep-mode allocator: memory is mapped, used, unmapped and mapped again at the same address."""
    cumem_allocator, path = coverage.module("cumem_allocator"), coverage.PATHS["cumem_allocator"]
    kept: dict[int, tuple[int, int, int, int]] = {}

    def allocated(handle: tuple[int, int, int, int]) -> None:
        kept[handle[2]] = handle

    def freed(pointer: int) -> tuple[int, int, int, int]:
        return kept.pop(pointer)

    cumem_allocator.init_module(allocated, freed)
    library = ctypes.CDLL(path)
    library.my_malloc.restype = ctypes.c_void_p
    library.my_malloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    library.my_free.restype = None
    library.my_free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    torch.zeros(1, device=probe.device)
    free = torch.cuda.mem_get_info()[0]
    size = 256 << 20
    address = library.my_malloc(size, 0, None)
    probe.true(address and address in kept, "memory was mapped and reported")
    probe.true(free - torch.cuda.mem_get_info()[0] >= size, "it counts as used")
    handle = kept[address]
    cumem_allocator.python_unmap_and_release(*handle)
    probe.true(free - torch.cuda.mem_get_info()[0] < size // 2, "sleeping gives it back")
    cumem_allocator.python_create_and_map(*handle)
    probe.true(free - torch.cuda.mem_get_info()[0] >= size, "waking takes it again")
    library.my_free(address, size, 0, None)
    probe.true(not kept, "freed")
