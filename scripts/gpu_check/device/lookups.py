"""Looking up and choosing by index: operators that came after vLLM 0.20.1."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu_check.device.attention import best_of
from scripts.gpu_check.device.probe import DTYPES, Probe, check, poisoned, randn

TIE_ROOM = 2048 * 8  # bytes of workspace per row of cooperative_topk (csrc/cooperative_topk.cuh)


@check("sampling", "_C::vocab_parallel_embedding")
def vocab_parallel_embedding(probe: Probe) -> None:
    """The rows of tokens that this part of the vocabulary holds, its own and added ones; zeros for all others."""
    begin, end, padding, added_begin, added_end = 1000, 1600, 40, 5000, 5012
    local = (end - begin) + padding + (added_end - added_begin)
    for dtype in DTYPES:
        for width in (128, 1000, 33):  # 16 bytes at a time, 8, and the size of one value
            weight = randn(probe, local, width, dtype=dtype)
            for kind in (torch.int32, torch.int64):
                ids = torch.cat([torch.randint(0, 2000, (300,)), torch.randint(4990, 5030, (50,))])
                ids = ids.to(probe.device)
                out = poisoned(probe, len(ids), width, dtype=dtype)
                torch.ops._C.vocab_parallel_embedding(
                    out, ids.to(kind), weight, begin, end, padding, added_begin, added_end
                )
                own, added = (ids >= begin) & (ids < end), (ids >= added_begin) & (ids < added_end)
                row = torch.where(own, ids - begin, ids - added_begin + end - begin + padding)
                here = own | added
                want = torch.where(here[:, None], weight[torch.where(here, row, 0)], 0)
                probe.exact(out, want)


def _n_gram_ids(table: Any, row: int, column: int, n: int, weights: Any, mod: int, start: int) -> int:
    """Return one n-gram's number: hashed tokens back to the row's begin or an ignored one, each below `mod`."""
    total = 0
    for back in range(n):
        if column < back or int(table[row][column - back]) < 0:
            break
        total += int(table[row][column - back]) * int(weights[back]) % mod
    return total % mod + start


@check("sampling", "_C::ngram_compute_n_gram_ids")
def ngram_compute_n_gram_ids(probe: Probe) -> None:
    """LongCat's n-gram numbers of ragged requests; -1 in the table ends an n-gram."""
    longest, per, room = 4, 2, 64
    lengths, starts, rows = [1, 17, 40], [0, 5, 20], [2, 0, 4]
    configurations = (longest - 1) * per
    weights = torch.randint(1, 2**31 - 1, (longest - 1, per, longest), dtype=torch.int32)
    mods = torch.randint(1000, 100_000, (longest - 1, per), dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1), mods.flatten().cumsum(0)]).int()
    table = torch.randint(0, 150_000, (5, room), dtype=torch.int32)
    table[torch.rand(5, room) < 0.1] = -1
    total = torch.tensor([0, *lengths]).cumsum(0).int()
    want = torch.empty(sum(lengths), configurations, dtype=torch.int32)
    for request, length in enumerate(lengths):
        for token in range(length):
            for which in range(configurations):
                n, k = divmod(which, per)
                want[int(total[request]) + token, which] = _n_gram_ids(
                    table, rows[request], starts[request] + token, n + 2, weights[n, k], int(mods[n, k]),
                    int(offsets[which]),
                )  # fmt: skip
    out = torch.full_like(want, -7, device=probe.device)
    given = (weights, mods, offsets, total, table, torch.tensor(rows), torch.tensor(starts, dtype=torch.int32))
    torch.ops._C.ngram_compute_n_gram_ids(longest, per, *(x.to(probe.device) for x in given), out)
    probe.exact(out.cpu(), want)


@check("sampling", "_C::cooperative_topk", arch=lambda capability: capability[0] in (9, 10))
def cooperative_topk(probe: Probe) -> None:
    """The 512, 1024 or 2048 best of each row, one row per cluster of 2, 4 or 8 blocks."""
    width = 9000
    for k in (512, 1024, 2048):
        for rows in (1, 20, 64):
            logits = randn(probe, rows, width)
            ends = torch.randint(1, width + 1, (rows,), dtype=torch.int32, device=probe.device)
            indices = torch.full((rows, k), -7, dtype=torch.int32, device=probe.device)
            workspace = torch.zeros(rows * TIE_ROOM, dtype=torch.uint8, device=probe.device)
            torch.ops._C.cooperative_topk(logits, ends, indices, workspace, k, int(ends.max()))
            best_of(probe, logits, ends, indices, k)
