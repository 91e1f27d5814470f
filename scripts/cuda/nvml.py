"""The GPUs of this machine, as the driver's own library (NVML) names them: for `--arch native` and `--target native`.

Bindings: nvidia-ml-py, NVIDIA's own; the library itself (libnvidia-ml.so.1) comes with the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scripts.core.errors import UsageError


@dataclass(frozen=True)
class LocalGpu:
    """A GPU of this machine."""

    name: str
    """As nvidia-smi shows it: `NVIDIA H100 80GB HBM3`."""
    number: str
    """Compute capability: `9.0`."""
    driver: str
    """Version of the driver: `580.159.04`."""


def local_gpus() -> tuple[LocalGpu, ...]:
    """Return the GPUs of this machine. Raises UsageError when there is no driver or no GPU."""
    import pynvml  # noqa: PLC0415  (18 MB of memory that only `native` needs)

    try:
        pynvml.nvmlInit()
        try:
            driver = str(pynvml.nvmlSystemGetDriverVersion())
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            found = tuple(_gpu(pynvml, handle, driver) for handle in handles)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise _none(f"NVIDIA's driver says: {error}") from error
    if not found:
        raise _none("its driver sees no GPU")
    return found


def _gpu(nvml: Any, handle: Any, driver: str) -> LocalGpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return LocalGpu(str(nvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", driver)


def _none(why: str) -> UsageError:
    return UsageError(
        "'native' is the GPU of this machine, and none was found",
        why=why,
        fix="name the GPU it is for: --arch 9.0, or --arch H100",
    )
