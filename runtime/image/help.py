#!/usr/bin/env python3
"""`vllm … --help` where there is no GPU: vLLM itself fails there ("Failed to infer device type")."""

import os
import sys
from pathlib import Path

STUB = Path(__file__).parent / "stub"  # a libcuda whose functions answer an error (runtime/build/stub.py)


def main() -> None:
    """Tell vLLM that its platform is CUDA, then run its own command line."""
    from vllm import platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Cuda(NonNvmlCudaPlatform):  # type: ignore[misc]
        """A GPU that nobody has: its compute capability only chooses what the help calls a default."""

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(8, 0)

    platforms._current_platform = Cuda()
    from vllm.entrypoints.cli.main import main as command_line

    sys.argv = sys.argv[1:]
    command_line()


if os.environ.get("LD_LIBRARY_PATH") != str(STUB):  # the loader reads it once, when a program starts
    os.environ["LD_LIBRARY_PATH"] = str(STUB)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")  # warnings about the GPU that is not there
    os.execv(sys.executable, [sys.executable, *sys.argv])
main()
