"""Which operators the loaded libraries register, and what the table says of each: none is left out silently."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from scripts.gpu_check.device.probe import TABLE

# vLLM 0.20.1 and later ones, in the order in which vLLM loads them; all others follow.
LIBRARIES = ("_C", "_C_stable_libtorch", "_moe_C", "_moe_C_stable_libtorch")
MODULES = ("cumem_allocator", "fs_io_C", "spinloop")  # Python modules, no sets of operators
_GROUP = "needs several GPUs"
_FP4 = "fp4 and mxfp8 units: GPUs of 10.0 and later"
# Why an operator has no check. A name that ends in * stands for all that begin so.
NOT_COVERED = {
    "_C::convert_vertical_slash_indexes*": "index lists for sparse attention; no reference written",
    "_C::fused_kda_*": "one model's recurrence, fused; no reference written",
    "_C::fused_gdn_*": "one model's recurrence, fused; no reference written",
    "_C::minimax_allreduce_rms*": _GROUP,
    "_C::beam_allreduce*": _GROUP,
    "_C::direct_dcp_*": _GROUP,
    "_C_cache_ops::hisparse_resolve_residency": "which rows stay on the GPU; no reference written",
    "_C_custom_ar::*": _GROUP,
    "_moe_C::moe_lora_align_block_size": "adapters (LoRA); no reference written",
    "_C::cutlass_w4a8_moe_mm": "grouped form of cutlass_w4a8_mm; no reference written",
    "_C::cutlass_encode_and_reorder_int4b_grouped": "only cutlass_w4a8_moe_mm reads its layout",
    "_C::per_token_group_fp8_quant_packed": "only DeepGEMM reads its layout; no reference written",
    "_vllm_fa*": "flash-attention; no check written",
    "_flash*": "attention of another project; no check written",
    "deep_select::*": "of another project; no check written",
    "_qutlass_C::*": "of another project; no check written",
}
OTHER_ARCH = {
    "_C::*fp4*": _FP4,
    "_C::*mxfp8*": _FP4,
    "_C_cache_ops::*nvfp4*": _FP4,
    "_C::sm100_*": "GPUs of 10.x",
    "_C::kimi_k3_attn_res": "GPUs of 10.x",
    "_C::allspark_w8a16_gemm": "GPUs of 8.x",
    "_C::rearrange_kn_weight_as_n32k16_order": "GPUs of 8.x",
}


PATHS: dict[str, str] = {}  # where each loaded library lies


@dataclass(frozen=True)
class Registered:
    """One registered operator and whether a kernel of it is in the library."""

    name: str
    kernel: bool


def load(folder: Path) -> tuple[list[Registered], dict[str, str]]:
    """Load the wheel's extension modules from its unpacked `vllm/`.

    Returns the operators they register, and per library "" or why it did not load.
    """
    before = set(torch._C._dispatch_get_all_op_names())
    loaded = {}
    for path in sorted((*folder.glob("*.abi3.so"), *folder.glob("*/*.abi3.so")), key=_order):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            loaded[path.name] = ""
            PATHS[_stem(path)] = str(path)
        except OSError as error:
            loaded[path.name] = str(error)
    new = sorted(set(torch._C._dispatch_get_all_op_names()) - before)
    operators = [Registered(name, _has_kernel(name)) for name in new]
    there = {name: f"{name}.abi3.so" for name in MODULES if f"{name}.abi3.so" in loaded}
    operators += [Registered(name, kernel=not loaded[file]) for name, file in there.items()]
    return operators, loaded


def _stem(path: Path) -> str:
    return path.name.split(".", 1)[0]


def _order(path: Path) -> tuple[int, str]:
    stem = _stem(path)
    return LIBRARIES.index(stem) if stem in LIBRARIES else len(LIBRARIES), stem


def module(name: str) -> Any:
    """Import one of MODULES from the wheel's own file, without the package around it. Raises ImportError."""
    spec = importlib.util.spec_from_file_location(name, PATHS[name])
    if spec is None or spec.loader is None:
        raise ImportError(PATHS[name])
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def _has_kernel(name: str) -> bool:
    keys = ("CUDA", "CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)


def checked() -> set[str]:
    """Return the names that some check of the table calls."""
    return {name for checks in TABLE.values() for check in checks for name in check.operators}


def verdict_without_check(operator: Registered) -> tuple[str, str]:
    """Return the state and the reason of an operator that no check calls."""
    base = operator.name.split(".", 1)[0]
    if reason := _reason(base, OTHER_ARCH):
        return "other arch", reason
    if not operator.kernel:
        return "not compiled", "declared, but this wheel holds no kernel of it"
    return "not covered", _reason(base, NOT_COVERED) or "no check written"


def _reason(name: str, table: dict[str, str]) -> str:
    return next((reason for pattern, reason in table.items() if matches(name, pattern)), "")


def matches(name: str, pattern: str) -> bool:
    """Tell whether a name fits a pattern of the tables above."""
    return fnmatchcase(name, pattern)


def missing(operators: Iterable[Registered], wanted: Sequence[str]) -> list[str]:
    """Return those of `wanted` that are not registered with a kernel."""
    there = {operator.name.split(".", 1)[0] for operator in operators if operator.kernel}
    return [name for name in wanted if name not in there]
