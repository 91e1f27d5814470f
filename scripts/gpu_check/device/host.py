"""The wheel's Python modules that run on the processor: files of cache blocks, and waiting for shared memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from scripts.gpu_check.device import coverage
from scripts.gpu_check.device.probe import Probe, check


@check("memory", "fs_io_C")
def fs_io(probe: Probe) -> None:
    """Blocks to files and back; what is there; a file that is too short is refused and removed."""
    module = coverage.module("fs_io_C")
    blocks = [torch.randint(0, 256, (4096,), dtype=torch.uint8) for _ in range(3)]
    with tempfile.TemporaryDirectory() as name:
        paths = [str(Path(name, "deep", str(i))) for i in range(3)]
        module.batch_store_block([f"{path}.tmp" for path in paths], paths, [b.numpy() for b in blocks], False)
        probe.true(module.batch_lookup([*paths, f"{name}/none"]) == [True, True, True, False], "what is there")
        back = [torch.zeros_like(block) for block in blocks]
        module.batch_load_block(paths, [b.numpy() for b in back], False)
        probe.exact(torch.stack(back), torch.stack(blocks))
        Path(paths[1]).write_bytes(b"short")
        try:
            module.batch_load_block(paths, [b.numpy() for b in back], False)
            refused = False
        except OSError as error:
            refused = getattr(error, "num_succeeded", None) == 1
        probe.true(refused and not Path(paths[1]).exists(), "a short file is refused after one good one, and removed")


@check("memory", "spinloop")
def spinloop(probe: Probe) -> None:
    """Waits until a function says True, gives up in time, and passes an exception on."""
    wait = coverage.module("spinloop").spinloop
    buffer, asked = bytearray(64), iter([False, False, True])
    probe.true(wait(buffer, lambda: next(asked)) is True, "True ends the wait")
    started = time.monotonic()
    probe.true(wait(buffer, lambda: False, timeout=0.05) is False, "the time limit ends the wait")
    probe.true(0.04 < time.monotonic() - started < 5, "after about the time asked for")
    try:
        wait(buffer, lambda: 1 // 0)
        passed = False
    except ZeroDivisionError:
        passed = True
    probe.true(passed, "an exception comes through")
