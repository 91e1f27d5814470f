"""What gpt-oss needs beyond vLLM's defaults: tool calls, and memory that fits the GPU."""

from __future__ import annotations

from .settings import Settings

WEIGHTS_GB = {"20b": 16.0, "120b": 60.0}
"""GPU memory that the MXFP4 weights need, in GB (OpenAI's model cards: 16 GB, and one 80 GB GPU)."""


def size_of(model: str) -> str | None:
    """Return "20b" or "120b" for a gpt-oss model's name or path, None for other models."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    if "gpt-oss" not in name:
        return None
    return "120b" if "120b" in name else "20b"


def defaults(settings: Settings, gpu_memory_gb: float | None) -> dict[str, object]:
    """Return defaults by setting for gpt-oss on GPUs of `gpu_memory_gb` GB; {} for other models.

    Raises ValueError when the weights cannot fit: better now than after a download of 60 GB.
    """
    size = size_of(settings.model_name) or size_of(settings.model)
    if size is None:
        return {}
    found: dict[str, object] = {"tool_call_parser": "openai", "enable_auto_tool_choice": True}
    if gpu_memory_gb is None:
        return found
    gpus = (settings.tensor_parallel_size or 1) * (settings.pipeline_parallel_size or 1)
    if gpu_memory_gb * gpus < WEIGHTS_GB[size]:
        raise ValueError(
            f"gpt-oss-{size} needs {WEIGHTS_GB[size]:.0f} GB of GPU memory and has {gpus} x {gpu_memory_gb:.0f} GB:"
            " take larger GPUs or more of them (TENSOR_PARALLEL_SIZE)"
        )
    if size == "120b" and gpu_memory_gb * gpus < 100:
        # One H100: out of memory at vLLM's defaults (vLLM's recipe for gpt-oss).
        found |= {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}
    elif size == "20b" and gpu_memory_gb * gpus < 26:
        found |= {"gpu_memory_utilization": 0.92, "max_num_batched_tokens": 2048, "max_model_len": 32768}
    return found
