"""Rows of key-value caches moved between host and GPU (HiSparse), and one write for all layers of a draft model."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.kv_cache import BLOCKS, slots_of
from scripts.gpu_check.device.probe import FP8, Probe, check, randn

BLOCK, WIDTH = 64, 656  # DeepSeek's rows of bytes
HOST_ROWS = 500


def _bytes(*shape: int) -> Any:
    return torch.randint(1, 256, shape, dtype=torch.uint8)


def _plan(probe: Probe, rows: int, k: int) -> tuple[Any, Any, Any]:
    """Return host rows (some that do not exist), a place in the GPU's cache for each, and what the cache gets."""
    host = _bytes(HOST_ROWS, WIDTH).pin_memory()
    sources = torch.randint(-1, HOST_ROWS + 20, (rows, k), dtype=torch.int32)
    places = torch.randperm(BLOCKS * BLOCK)[: rows * k].view(rows, k).int()
    places[:, 0] = -1
    return host, sources.to(probe.device), places.to(probe.device)


def _filled(host: Any, hot: Any, sources: Any, places: Any, wanted: Any) -> Any:
    """Return the cache with the wanted rows copied; rows that the host has not are zeros."""
    result = hot.clone().view(-1, WIDTH)
    there = wanted & (sources >= 0) & (places >= 0)
    rows = host.to(hot.device)[sources.clamp(0, HOST_ROWS - 1).long()]
    rows[sources >= HOST_ROWS] = 0
    result[places[there].long()] = rows[there]
    return result.view(hot.shape)


@check("cache", "_C_cache_ops::hisparse_gather_plan")
def hisparse_gather_plan(probe: Probe) -> None:
    """Missed rows from pinned memory into the GPU's cache, and the places as attention counts them."""
    for rows, k in ((1, 200), (7, 64)):
        host, sources, places = _plan(probe, rows, k)
        hot = _bytes(BLOCKS, BLOCK, WIDTH).to(probe.device)
        missed = torch.rand(rows, k, device=probe.device) < 0.5
        states = torch.arange(rows, dtype=torch.int32, device=probe.device)
        states[rows // 2 + 1 :] = -1  # padding
        used = (states >= 0)[:, None]
        want = _filled(host, hot, sources, places, missed & used)
        counted = torch.full_like(places, -7)
        torch.ops._C_cache_ops.hisparse_gather_plan(host, hot, sources, places, missed.int(), states, counted, 100)
        probe.exact(hot, want)
        place = places // BLOCK * 100 + places % BLOCK
        probe.exact(counted, torch.where(used & (places >= 0), place, -1))


@check("cache", "_C_cache_ops::hisparse_gather_compact")
def hisparse_gather_compact(probe: Probe) -> None:
    """The first rows of each list, as many as its count says."""
    for rows, k in ((1, 200), (7, 64)):
        host, sources, places = _plan(probe, rows, k)
        hot = _bytes(BLOCKS, BLOCK, WIDTH).to(probe.device)
        counts = torch.randint(0, k + 1, (rows,), dtype=torch.int32, device=probe.device)
        wanted = torch.arange(k, device=probe.device) < counts[:, None]
        want = _filled(host, hot, sources, places, wanted)
        torch.ops._C_cache_ops.hisparse_gather_compact(host, hot, sources, places, counts)
        probe.exact(hot, want)


@check("cache", "_C_cache_ops::hisparse_invalidate_written_slots")
def hisparse_invalidate_written_slots(probe: Probe) -> None:
    """A slot written anew is forgotten in its request's region, and in no other."""
    kept = torch.randint(0, 40, (5, 300), dtype=torch.int32, device=probe.device)
    states = torch.tensor([3, 0, -1, 4], dtype=torch.int32, device=probe.device)
    requests = torch.tensor([0, 0, 1, 2, 3, -1, 9], dtype=torch.int32, device=probe.device)
    written = torch.tensor([5, 6, 7, 8, -1, 9, 10], device=probe.device)
    want = kept.clone()
    for state, slot in ((3, 5), (3, 6), (0, 7)):
        want[state][want[state] == slot] = -1
    torch.ops._C_cache_ops.hisparse_invalidate_written_slots(kept, states, requests, written)
    probe.exact(kept, want)


@check("cache", "_C_cache_ops::concat_and_cache_mla_grouped")
def concat_and_cache_mla_grouped(probe: Probe) -> None:
    """Each layer's rows into its own cache by one launch, as they are and as fp8 with a scale per layer."""
    layers, tokens, block = 3, 83, 16
    parts = [randn(probe, layers, tokens, size, dtype=torch.bfloat16) for size in (512, 64)]
    slots = torch.stack([slots_of(probe, tokens, block) for _ in range(layers)])
    slots[:, 5] = -1  # padding
    rows, written = torch.cat(parts, -1), slots >= 0
    scales = torch.rand(layers, device=probe.device) * 0.02 + 0.01
    for dtype, name in ((torch.bfloat16, "auto"), (torch.uint8, "fp8")):
        caches = torch.zeros(layers, BLOCKS, block, 576, dtype=dtype, device=probe.device)
        pointers = torch.tensor([cache.data_ptr() for cache in caches], device=probe.device)
        given = None if name == "auto" else scales
        torch.ops._C_cache_ops.concat_and_cache_mla_grouped(
            *parts, pointers, slots, block, block * 576, 576, given, name
        )
        for layer in range(layers):
            got, mine = caches[layer].view(-1, 576), written[layer]
            if name == "auto":
                want = torch.zeros_like(got)
                want[slots[layer][mine]] = rows[layer][mine]
                probe.exact(got, want)
            else:
                values = rows[layer][mine].double() / scales[layer].double()
                probe.codes(got[slots[layer][mine]].view(FP8), values, dtype="fp8 of bfloat16")
                probe.true(int((got != 0).any(-1).sum()) == int(mine.sum()), "no other row was written")
