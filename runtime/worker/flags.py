"""Settings as flags of `vllm serve`, held against the real parser: `python -m worker.flags` fails on drift."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from .settings import Settings


class Kind(Enum):
    """How a flag takes its value."""

    VALUE = "value"
    """`--flag VALUE`"""
    TOGGLE = "toggle"
    """`--flag` or `--no-flag`"""
    SWITCH = "switch"
    """`--flag`, or nothing"""


@dataclass(frozen=True)
class Flag:
    """One row of the table."""

    setting: str
    kind: Kind
    name: str = ""

    @property
    def option(self) -> str:
        """The option as the command line has it."""
        return "--" + (self.name or self.setting).replace("_", "-")


TABLE = (
    Flag("model_revision", Kind.VALUE, "revision"),
    Flag("served_model_name", Kind.VALUE),
    Flag("max_model_len", Kind.VALUE),
    Flag("gpu_memory_utilization", Kind.VALUE),
    Flag("max_num_seqs", Kind.VALUE),
    Flag("max_num_batched_tokens", Kind.VALUE),
    Flag("tensor_parallel_size", Kind.VALUE),
    Flag("pipeline_parallel_size", Kind.VALUE),
    Flag("quantization", Kind.VALUE),
    Flag("dtype", Kind.VALUE),
    Flag("kv_cache_dtype", Kind.VALUE),
    Flag("attention_backend", Kind.VALUE),
    Flag("tool_call_parser", Kind.VALUE),
    Flag("reasoning_parser", Kind.VALUE),
    Flag("enable_auto_tool_choice", Kind.TOGGLE),
    Flag("trust_remote_code", Kind.TOGGLE),
    Flag("enforce_eager", Kind.TOGGLE),
    Flag("enable_prefix_caching", Kind.TOGGLE),
    Flag("async_scheduling", Kind.TOGGLE),
    Flag("enable_expert_parallel", Kind.TOGGLE),
    Flag("cpu_offload_gb", Kind.VALUE),
    Flag("chat_template", Kind.VALUE),
    Flag("load_format", Kind.VALUE),
    Flag("generation_config", Kind.VALUE),
    Flag("hf_overrides", Kind.VALUE),
    Flag("seed", Kind.VALUE),
    Flag("disable_log_stats", Kind.SWITCH),
    Flag("enable_log_requests", Kind.TOGGLE),
)
ALWAYS = ("--host", "--port", "--tokenizer-revision", "--code-revision")
"""Flags that the worker gives itself."""


def serve_command(settings: Settings, defaults: Mapping[str, object], *, program: str = "vllm") -> list[str]:
    """Return the engine's command line: what is set, else `defaults` (by setting), else vLLM's own defaults."""
    command = [program, "serve", settings.model, "--host", "127.0.0.1", "--port", str(settings.engine_port)]
    for flag in TABLE:
        value = getattr(settings, flag.setting)
        if value is None:
            value = defaults.get(flag.setting)
        if value is not None:
            command += _words(flag, value)
    if settings.model_revision and not settings.is_local:
        command += ["--tokenizer-revision", settings.model_revision, "--code-revision", settings.model_revision]
    return command + settings.extra_args


def _words(flag: Flag, value: object) -> list[str]:
    if flag.kind is Kind.VALUE:
        return [flag.option, str(value)]
    if value:
        return [flag.option]
    return [f"--no-{flag.option[2:]}"] if flag.kind is Kind.TOGGLE else []


def drift(parser: argparse.ArgumentParser) -> list[str]:
    """Return what in the table the parser of `vllm serve` does not have, or takes otherwise."""
    actions = {option: action for action in parser._actions for option in action.option_strings}  # noqa: SLF001
    wrong = [f"{option}: no such flag" for option in ALWAYS if option not in actions]
    for flag in TABLE:
        action = actions.get(flag.option)
        if action is None:
            wrong.append(f"{flag.option}: no such flag")
        elif (found := _kind(action)) is not flag.kind:
            wrong.append(f"{flag.option}: is a {found.value}, the table says {flag.kind.value}")
    return wrong


def _kind(action: argparse.Action) -> Kind:
    if action.nargs != 0:
        return Kind.VALUE
    return Kind.TOGGLE if any(option.startswith("--no-") for option in action.option_strings) else Kind.SWITCH


def vllm_parser() -> argparse.ArgumentParser:
    """Return the parser of the installed vLLM's `serve`, also where there is no GPU (libcuda must be loadable)."""
    from vllm import platforms  # noqa: PLC0415
    from vllm.platforms.cuda import NonNvmlCudaPlatform  # noqa: PLC0415

    platforms._current_platform = NonNvmlCudaPlatform()  # noqa: SLF001
    from vllm.entrypoints.openai.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return parser


def main() -> int:
    """Compare the table with the installed vLLM; return 0, or 11 when they differ."""
    wrong = drift(vllm_parser())
    for line in wrong:
        sys.stderr.write(f"error: flag table: {line}\n")
    sys.stdout.write(f"{len(TABLE) + len(ALWAYS)} flags checked, {len(wrong)} wrong\n")
    return 11 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
