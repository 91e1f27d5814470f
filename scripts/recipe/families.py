"""Kernel families of vLLM: groups of sources that upstream compiles for some archs only, by the name recipes use."""

from __future__ import annotations

from collections.abc import Mapping

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
