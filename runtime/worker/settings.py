"""What a deployment may set, as environment variables (MODEL, MAX_MODEL_LEN, ...), checked before anything starts."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from typing_extensions import Self

VOLUME = Path("/runpod-volume")  # where RunPod mounts a network volume on serverless workers
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Settings(BaseSettings):
    """The worker's settings. Each is an environment variable of its name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, populate_by_name=True)

    model: str = Field(validation_alias=AliasChoices("MODEL", "MODEL_NAME"))
    """Model to serve: a folder of the image or of a volume, or a Hugging Face repository with `model_revision`."""
    model_revision: str | None = None
    """Commit (40 hex digits) of the repository: what is served must not change between two cold starts."""
    allow_moving_revision: bool = False
    """Accept a branch or tag as `model_revision`, or none."""
    served_model_name: str | None = None
    """Name that requests use; default: `model`."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt and answer together, in tokens."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Part of the GPU's memory that the engine may use."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Requests that the engine computes at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens per engine step."""
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    """GPUs that share a layer."""
    pipeline_parallel_size: int | None = Field(default=None, ge=1)
    """GPUs that share the stack of layers."""
    quantization: str | None = None
    """Quantization method, where the model's own configuration does not say."""
    dtype: str | None = None
    """Type of weights and activations."""
    kv_cache_dtype: str | None = None
    """Type of the KV cache."""
    attention_backend: str | None = None
    """Attention kernels, such as TRITON_ATTN."""
    tool_call_parser: str | None = None
    """Parser of tool calls."""
    reasoning_parser: str | None = None
    """Parser of reasoning."""
    enable_auto_tool_choice: bool | None = None
    """Let the model decide to call tools."""
    trust_remote_code: bool | None = None
    """Run code out of the model's repository. Only with a pinned revision."""
    enforce_eager: bool | None = None
    """No CUDA graphs: a faster start, slower answers."""
    enable_prefix_caching: bool | None = None
    """Re-use the KV cache of common prefixes."""
    async_scheduling: bool | None = None
    """Schedule the next step while the GPU computes."""
    enable_expert_parallel: bool | None = None
    """Spread experts, not slices of them, over GPUs."""
    cpu_offload_gb: float | None = Field(default=None, ge=0)
    """Weights kept in host memory, in GiB."""
    chat_template: str | None = None
    """Path of a chat template."""
    load_format: str | None = None
    """How weights are read."""
    generation_config: str | None = None
    """Where default sampling parameters come from."""
    hf_overrides: str | None = None
    """JSON that overrides the model's configuration."""
    seed: int | None = None
    """Random seed."""
    disable_log_stats: bool | None = None
    """No statistics in the log."""
    enable_log_requests: bool | None = None
    """Requests in the log: off, because prompts are the users' own."""
    vllm_extra_args: str = ""
    """More flags of `vllm serve`, as in a shell; they come last and win."""

    gpu_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU in GB (10^9 bytes); default: asked of the driver."""
    engine_port: int = Field(default=8000, ge=1, le=65535, validation_alias=AliasChoices("VLLM_PORT", "ENGINE_PORT"))
    """Loopback port of the engine."""
    start_timeout: float = Field(default=1800, gt=0)
    """Seconds until the model must be ready; a download over a slow link needs more."""
    request_timeout: float = Field(default=600, gt=0)
    """Seconds that the engine may be silent within one request."""
    stop_timeout: float = Field(default=25, gt=0)
    """Seconds for requests in flight after SIGTERM, and again for the engine, before they are ended."""
    max_concurrency: int = Field(default=256, ge=1)
    """Most jobs taken at once, however large the KV cache is."""
    tokens_per_request: int = Field(default=4096, ge=1)
    """Tokens a request holds in the KV cache, prompt and answer: what the concurrency is computed from."""

    @field_validator("vllm_extra_args")
    @classmethod
    def _shell_words(cls, value: str) -> str:
        shlex.split(value)  # ValueError on unbalanced quotes
        return value

    @model_validator(mode="after")
    def _model_is_pinned(self) -> Self:
        if self.is_local:
            if not (Path(self.model) / "config.json").is_file():
                raise ValueError(f"MODEL={self.model} has no config.json: is the volume mounted, the model copied?")
            return self
        if not REPOSITORY.fullmatch(self.model):
            raise ValueError(f"MODEL={self.model} is neither an absolute path nor OWNER/NAME")
        if not COMMIT.fullmatch(self.model_revision or "") and not self.allow_moving_revision:
            raise ValueError(
                "MODEL_REVISION must be the commit of the model's repository (40 hex digits): what is served would "
                "change under you otherwise; ALLOW_MOVING_REVISION=true accepts that"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder of the image or a volume: nothing is downloaded then."""
        return self.model.startswith("/")

    @property
    def model_name(self) -> str:
        """The name that requests use."""
        return self.served_model_name or self.model

    @property
    def extra_args(self) -> list[str]:
        """`vllm_extra_args` as words."""
        return shlex.split(self.vllm_extra_args)


def settings_help() -> str:
    """Return what `--help` says: the settings with their defaults; docs/deploy-runpod.md explains them."""
    rows = ["The RunPod worker: starts `vllm serve` and takes jobs. Settings are environment variables:", ""]
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"default: {field.default!r}".replace("None", "vLLM's own")
        rows.append(f"  {name.upper():<26}{default}")
    return "\n".join(rows) + "\n"


def misspelt(environment: Iterable[str]) -> dict[str, str]:
    """Return variables that look like a setting but are none, with the setting that they resemble."""
    known = {name.upper() for name in Settings.model_fields} | {"MODEL_NAME", "VLLM_PORT"}
    found = {}
    for name in environment:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.88)
        if near and name not in known:
            found[name] = near[0]
    return found


def engine_environment(settings: Settings, base: dict[str, str], *, volume: Path = VOLUME) -> dict[str, str]:
    """Return the engine's environment: caches on a network volume where there is one, offline for local models.

    RunPod mounts models that it caches itself below `huggingface-cache` of the same volume.
    """
    environment = {**base, "VLLM_NO_USAGE_STATS": "1"}
    if settings.is_local:
        environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    elif volume.is_dir():
        environment.update(
            HF_HOME=str(volume / "huggingface-cache"), HF_HUB_CACHE=str(volume / "huggingface-cache/hub")
        )
    return environment
