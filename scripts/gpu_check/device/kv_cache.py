"""Writing to and reading from paged caches of keys and values, plain and for multi-head latent attention (MLA)."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.norms import cos_sin, rotated
from scripts.gpu_check.device.probe import DTYPES, FP8, HALVES, Probe, call, check, dtype_name, poisoned, randn

BLOCKS = 24


def slots_of(probe: Probe, tokens: int, block: int) -> Any:
    """Return a slot of BLOCKS * block for each token, none twice."""
    return torch.randperm(BLOCKS * block, device=probe.device)[:tokens]


def unit(probe: Probe) -> Any:
    """Return a scale of 1."""
    return torch.ones(1, device=probe.device)


def some_scale(probe: Probe) -> Any:
    """Return a scale that is not 1."""
    return torch.rand(1, device=probe.device) * 0.02 + 0.01


@check("cache", "_C_cache_ops::reshape_and_cache")
def reshape_and_cache(probe: Probe) -> None:
    """Keys in parts of 16 bytes, values transposed."""
    for dtype in DTYPES:
        for tokens, heads, size, block in ((1, 1, 64, 16), (42, 8, 128, 16), (83, 4, 80, 32)):
            key, value = (randn(probe, tokens, heads, size, dtype=dtype) for _ in range(2))
            x = 16 // dtype.itemsize
            keys = torch.zeros(BLOCKS, heads, size // x, block, x, dtype=dtype, device=probe.device)
            values = torch.zeros(BLOCKS, heads, size, block, dtype=dtype, device=probe.device)
            want_keys, want_values = keys.clone(), values.clone()
            slots = slots_of(probe, tokens, block)
            torch.ops._C_cache_ops.reshape_and_cache(key, value, keys, values, slots, "auto", unit(probe), unit(probe))
            page, place = slots // block, slots % block
            want_keys[page, :, :, place] = key.view(tokens, heads, -1, x)
            want_values[page, :, :, place] = value
            probe.exact(keys, want_keys)
            probe.exact(values, want_values)


@check("cache", "_C_cache_ops::reshape_and_cache_flash")
def reshape_and_cache_flash(probe: Probe) -> None:
    """The layout of FlashAttention and Triton, as it is and as fp8."""
    for dtype in HALVES:
        for tokens, heads, size, block in ((1, 1, 64, 16), (42, 8, 128, 16), (83, 4, 80, 32)):
            pair = [randn(probe, tokens, heads, size, dtype=dtype) for _ in range(2)]
            slots = slots_of(probe, tokens, block)
            page, place = slots // block, slots % block
            caches = [torch.zeros(BLOCKS, block, heads, size, dtype=dtype, device=probe.device) for _ in range(2)]
            torch.ops._C_cache_ops.reshape_and_cache_flash(*pair, *caches, slots, "auto", unit(probe), unit(probe))
            for cache, x in zip(caches, pair, strict=True):
                want = torch.zeros_like(cache)
                want[page, place] = x
                probe.exact(cache, want)
            caches = [torch.zeros(BLOCKS, block, heads, size, dtype=torch.uint8, device=probe.device) for _ in range(2)]
            scales = [some_scale(probe), some_scale(probe)]
            torch.ops._C_cache_ops.reshape_and_cache_flash(*pair, *caches, slots, "fp8", *scales)
            for cache, x, scale in zip(caches, pair, scales, strict=True):
                probe.codes(
                    cache[page, place].view(FP8), x.double() / scale.double(), dtype=f"fp8 of {dtype_name(dtype)}"
                )


@check("cache", "_C_cache_ops::convert_fp8")
def convert_fp8(probe: Probe) -> None:
    """A cache to fp8 and back."""
    for dtype in DTYPES:
        x = randn(probe, BLOCKS, 8, 16, 64, dtype=dtype)
        packed = torch.zeros(x.shape, dtype=torch.uint8, device=probe.device)
        torch.ops._C_cache_ops.convert_fp8(packed, x, 0.02, "fp8")
        probe.codes(packed.view(FP8), x.double() / 0.02, dtype=f"fp8 of {dtype_name(dtype)}")
        back = poisoned(probe, *x.shape, dtype=dtype)
        torch.ops._C_cache_ops.convert_fp8(back, packed, 0.02, "fp8")
        probe.close(back, packed.view(FP8).double() * 0.02)


@check("cache", "_C_cache_ops::swap_blocks", "_C_cache_ops::swap_blocks_batch")
def swap_blocks(probe: Probe) -> None:
    """Copies of blocks, within the GPU and to the host."""
    for pinned in (False, True):
        source = randn(probe, BLOCKS, 16, 4, 64, dtype=torch.bfloat16)
        target = torch.zeros_like(source, device="cpu").pin_memory() if pinned else torch.zeros_like(source)
        pairs = torch.stack([torch.randperm(BLOCKS)[:10], torch.randperm(BLOCKS)[:10]], 1)
        size = source[0].numel() * source.element_size()
        torch.ops._C_cache_ops.swap_blocks(source, target, size, pairs)
        torch.cuda.synchronize()
        probe.exact(target[pairs[:, 1]].to(probe.device), source[pairs[:, 0].to(probe.device)])
    source = randn(probe, BLOCKS, 1024)
    target = torch.zeros_like(source)
    order = torch.randperm(BLOCKS)
    starts = [x.data_ptr() + (order if i else torch.arange(BLOCKS)) * 4096 for i, x in enumerate((source, target))]
    stream = torch.cuda.Stream()  # the driver's batched copy refuses the default stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.ops._C_cache_ops.swap_blocks_batch(*starts, torch.full((BLOCKS,), 4096, dtype=torch.int64))
    torch.cuda.synchronize()
    probe.exact(target[order.to(probe.device)], source)


@check("cache", "_C_cache_ops::concat_and_cache_mla")
def concat_and_cache_mla(probe: Probe) -> None:
    """Compressed keys and values beside the rotated part, as they are and as fp8."""
    for tokens, rank, rotary, block in ((1, 512, 64, 16), (83, 512, 64, 64), (42, 256, 64, 16)):
        latent, rope = (
            randn(probe, tokens, rank, dtype=torch.bfloat16),
            randn(probe, tokens, rotary, dtype=torch.bfloat16),
        )
        slots = slots_of(probe, tokens, block)
        rows = torch.cat([latent, rope], -1)
        cache = torch.zeros(BLOCKS, block, rank + rotary, dtype=torch.bfloat16, device=probe.device)
        torch.ops._C_cache_ops.concat_and_cache_mla(latent, rope, cache, slots, "auto", unit(probe))
        probe.exact(cache.view(-1, rank + rotary)[slots], rows)
        packed = torch.zeros(cache.shape, dtype=torch.uint8, device=probe.device)
        scale = some_scale(probe)
        torch.ops._C_cache_ops.concat_and_cache_mla(latent, rope, packed, slots, "fp8", scale)
        got = packed.view(-1, rank + rotary)[slots].view(FP8)
        probe.codes(got, rows.double() / scale.double(), dtype="fp8 of bfloat16")


@check("cache", "_C_cache_ops::concat_and_cache_mla_rope_fused")
def concat_and_cache_mla_rope_fused(probe: Probe) -> None:
    """Rotation of query and key parts, then the same."""
    for tokens, heads, block in ((1, 16, 16), (83, 128, 64)):
        dtype = torch.bfloat16
        latent = randn(probe, tokens, 512, dtype=dtype)
        query, key = randn(probe, tokens, heads, 64, dtype=dtype), randn(probe, tokens, 64, dtype=dtype)
        table = cos_sin(probe, 512, 64, dtype)
        positions = torch.randint(0, 512, (tokens,), device=probe.device)
        slots = slots_of(probe, tokens, block)
        want_query = rotated(query, table[positions], neox=False)
        want_key = rotated(key[:, None], table[positions], neox=False)[:, 0]
        cache = torch.zeros(BLOCKS, block, 576, dtype=dtype, device=probe.device)
        torch.ops._C_cache_ops.concat_and_cache_mla_rope_fused(
            positions,
            query,
            key,
            latent,
            table,
            False,
            slots,
            cache,
            "auto",
            unit(probe),
        )
        probe.close(query, want_query)
        probe.close(cache.view(-1, 576)[slots], torch.cat([latent.double(), want_key], -1))


@check("cache", "_C_cache_ops::concat_mla_q")
def concat_mla_q(probe: Probe) -> None:
    """Two parts of the query side by side."""
    for tokens, heads in ((1, 16), (83, 128)):
        parts = [randn(probe, tokens, heads, size, dtype=torch.bfloat16) for size in (512, 64)]
        out = poisoned(probe, tokens, heads, 576, dtype=torch.bfloat16)
        torch.ops._C_cache_ops.concat_mla_q(*parts, out)
        probe.exact(out, torch.cat(parts, -1))


def _ragged(probe: Probe, lengths: list[int], block: int) -> tuple[Any, Any, Any]:
    """Return block table, cumulative lengths and the cache row of every token."""
    widest = max((length + block - 1) // block for length in lengths)
    table = torch.stack([torch.randperm(BLOCKS)[:widest] for _ in lengths]).int()
    total = torch.tensor([0, *lengths]).cumsum(0).int()
    rows = [int(table[i, t // block]) * block + t % block for i, length in enumerate(lengths) for t in range(length)]
    return table.to(probe.device), total.to(probe.device), torch.tensor(rows, device=probe.device)


@check("cache", "_C_cache_ops::gather_and_maybe_dequant_cache", "_C_cache_ops::cp_gather_cache")
def gather_cache(probe: Probe) -> None:
    """Rows of several sequences collected from their blocks, as they are and from fp8."""
    block, lengths = 64, [1, 200, 65, 700]
    table, total, rows = _ragged(probe, lengths, block)
    cache = randn(probe, BLOCKS, block, 576, dtype=torch.bfloat16)
    count = sum(lengths)
    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)], dtype=torch.int32, device=probe.device)
    for dtype, source in (("auto", cache), ("fp8", cache.to(FP8).view(torch.uint8))):
        out = poisoned(probe, count, 576, dtype=torch.bfloat16)
        scale = unit(probe) if dtype == "auto" else some_scale(probe)
        torch.ops._C_cache_ops.gather_and_maybe_dequant_cache(
            source, out, table, total, owner, count, dtype, scale, None
        )
        values = cache.double() if dtype == "auto" else cache.to(FP8).double() * scale.double()
        probe.close(out, values.view(-1, 576)[rows])
    out = poisoned(probe, count, 576, dtype=torch.bfloat16)
    torch.ops._C_cache_ops.cp_gather_cache(cache, out, table, total, len(lengths), None)
    probe.exact(out, cache.view(-1, 576)[rows])


@check("cache", "_C_cache_ops::cp_gather_and_upconvert_fp8_kv_cache", "_C_cache_ops::concat_and_cache_mla")
def upconvert(probe: Probe) -> None:
    """DeepSeek's 656-byte rows: fp8 by 128 with their scales and a bfloat16 part, written and read back."""
    block, lengths = 64, [1, 200, 65, 700]
    table = torch.arange(BLOCKS, device=probe.device).int()[: 4 * 5 + 4].view(-1)
    widest = max((length + block - 1) // block for length in lengths)
    starts, pages = 0, torch.zeros(len(lengths), widest, dtype=torch.int32, device=probe.device)
    for i, length in enumerate(lengths):
        used = (length + block - 1) // block
        pages[i, :used] = table[starts : starts + used]
        starts += used
    rows = [int(pages[i, t // block]) * block + t % block for i, n in enumerate(lengths) for t in range(n)]
    slots = torch.tensor(rows, device=probe.device)
    latent, rope = (randn(probe, len(rows), size, dtype=torch.bfloat16) for size in (512, 64))
    cache = torch.zeros(BLOCKS, block, 656, dtype=torch.uint8, device=probe.device)
    torch.ops._C_cache_ops.concat_and_cache_mla(latent, rope, cache, slots, "fp8_ds_mla", unit(probe))
    out = poisoned(probe, len(rows), 576, dtype=torch.bfloat16)
    sizes = torch.tensor(lengths, dtype=torch.int32, device=probe.device)
    begin = (sizes.cumsum(0) - sizes).int()
    call(
        torch.ops._C_cache_ops.cp_gather_and_upconvert_fp8_kv_cache, cache, out, pages,
        workspace_starts=begin, batch_size=len(lengths), neutral={"seq_lens": sizes, "seq_starts": None},
    )  # fmt: skip
    probe.close(out, torch.cat([latent, rope], -1), limit=0.04, dtype="bfloat16 by way of fp8")
    probe.exact(out[:, 512:], rope)


@check("cache", "_C_cache_ops::indexer_k_quant_and_cache", "_C_cache_ops::cp_gather_indexer_k_quant_cache")
def indexer(probe: Probe) -> None:
    """The sparse-attention indexer's keys as fp8 with a scale per 128, written and read back."""
    block, lengths = 64, [1, 200, 65]
    widest = max((length + block - 1) // block for length in lengths)
    pages = torch.arange(len(lengths) * widest, device=probe.device).int().view(len(lengths), widest)
    rows = [int(pages[i, t // block]) * block + t % block for i, n in enumerate(lengths) for t in range(n)]
    key = randn(probe, len(rows), 128, dtype=torch.bfloat16)
    cache = torch.zeros(BLOCKS, block, 132, dtype=torch.uint8, device=probe.device)
    slots = torch.tensor(rows, device=probe.device)
    torch.ops._C_cache_ops.indexer_k_quant_and_cache(key, cache, slots, 128, "fp8")
    out = torch.zeros(len(rows), 128, dtype=torch.uint8, device=probe.device).view(FP8)
    scale = torch.zeros(len(rows), 4, dtype=torch.uint8, device=probe.device)
    total = torch.tensor([0, *lengths], device=probe.device).cumsum(0).int()
    torch.ops._C_cache_ops.cp_gather_indexer_k_quant_cache(cache, out, scale, pages, total)
    probe.close(out.double() * scale.view(torch.float32).double(), key, limit=0.04, dtype="fp8 of bfloat16")
