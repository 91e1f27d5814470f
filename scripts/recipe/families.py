"""Kernel families of vLLM: groups of sources that upstream compiles for some archs only, by the name recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

_SCALED = frozenset({"CUTLASS scaled_mm c2x", "CUTLASS scaled_mm sm90", "CUTLASS scaled_mm sm120"})
_STABLE = _SCALED | {"CUTLASS W4A8", "NVFP4"}  # in _C or in the stable ABI's library, by recipe
_CORE = frozenset({"AllSpark", "CUTLASS MLA", "Machete", "Marlin", "Marlin bf16", "Marlin fp8", "QuTLASS", "hadacore"})
_MOE = frozenset({"Marlin MoE", "Marlin MoE fp8"})

FAMILIES: Mapping[str, frozenset[str]] = {
    "_C": _STABLE | _CORE,
    "_C_stable_libtorch": _STABLE | _CORE | {"Beam", "DSV3 fused A GEMM", "FP32 router GEMM", "KDA decode", "top-k"},
    "_moe_C": _MOE | {"DSV3 router GEMM"},
    "_moe_C_stable_libtorch": _MOE,
    "_vllm_fa2_C": frozenset({"FlashAttention 2"}),
    "_vllm_fa3_C": frozenset({"FlashAttention 3"}),
    "_flashmla_C": frozenset({"FlashMLA"}),
    "_deep_gemm_C": frozenset({"DeepGEMM"}),
    "_deepselect_C": frozenset({"DeepSelect"}),
    "_flashkda_C": frozenset({"FlashKDA"}),
    "_qutlass_C": frozenset({"QuTLASS"}),
}
"""By component, the families that a recipe may name: those that our recipes name. A new one is entered here."""

# From CMakeLists.txt of 0.15.1, 0.20.1 and 0.33.0: the files for which upstream sets a family's archs. `*` takes "/"
# too; the first that fits counts. Entry points, which say at run time that there is no kernel, and Marlin's repacking
# are compiled for every arch.
_SOURCES: tuple[tuple[str, str], ...] = (
    ("_vllm_fa2_C/*", "FlashAttention 2"),
    ("_vllm_fa3_C/*", "FlashAttention 3"),
    ("_flashmla_C/*", "FlashMLA"),
    ("_deep_gemm_C/*", "DeepGEMM"),
    ("_deepselect_C/*", "DeepSelect"),
    ("_flashkda_C/*", "FlashKDA"),
    ("_qutlass_C/*", "QuTLASS"),
    ("*/quantization/machete/*", "Machete"),
    ("*/quantization/cutlass_w4a8/*", "CUTLASS W4A8"),
    ("*/cutlass/scaled_mm_c2x.cu", "CUTLASS scaled_mm c2x"),
    ("*/cutlass/*sm90*", "CUTLASS scaled_mm sm90"),
    ("*/cutlass/*sm120*", "CUTLASS scaled_mm sm120"),
    ("*/fp4/*_entry.cu", ""),
    ("*/fp4/*", "NVFP4"),
    ("*/nvfp4_kv_cache_kernels.cu", "NVFP4"),
    ("*/attention/mla/*", "CUTLASS MLA"),
    ("*/quantization/gptq_allspark/*", "AllSpark"),
    ("*/hadamard/hadacore/*", "hadacore"),
    ("*/marlin_moe_wna16/sm89_*", "Marlin MoE fp8"),
    ("*/marlin_moe_wna16/*", "Marlin MoE"),
    ("*/quantization/marlin/sm89_*", "Marlin fp8"),
    ("*/quantization/marlin/sm80_*_bfloat16.cu", "Marlin bf16"),
    ("*/quantization/marlin/sm80_*", "Marlin"),
    ("*/moe/dsv3_router_gemm_*", "DSV3 router GEMM"),
    ("*/dsv3_fused_a_gemm.cu", "DSV3 fused A GEMM"),
    ("*/fp32_router_gemm*", "FP32 router GEMM"),
    ("*/kimi_k3/fused_kda_decode_*", "KDA decode"),
    ("*/beam/*", "Beam"),
    ("*/cooperative_topk.cu", "top-k"),
)


def family_of(unit: str) -> str:
    """Return the kernel family that a unit (`_C/quantization/machete/x.cu`) is of; "" for one that all archs get."""
    return next((family for pattern, family in _SOURCES if fnmatchcase(unit, pattern)), "")
