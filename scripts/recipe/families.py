"""Kernel families of vLLM: groups of sources that upstream compiles for some archs only, by the name recipes use."""

from __future__ import annotations

from collections.abc import Mapping

_SCALED = frozenset({"CUTLASS scaled_mm c2x", "CUTLASS scaled_mm sm90", "CUTLASS scaled_mm sm120"})
_STABLE = _SCALED | {"CUTLASS W4A8", "NVFP4"}  # in _C or in the stable ABI's library, by recipe

FAMILIES: Mapping[str, frozenset[str]] = {
    "_C": _STABLE
    | {"AllSpark", "CUTLASS MLA", "Machete", "Marlin", "Marlin bf16", "Marlin fp8", "QuTLASS", "hadacore"},
    "_C_stable_libtorch": _STABLE,
    "_moe_C": frozenset({"DSV3 router GEMM", "Marlin MoE", "Marlin MoE fp8"}),
    "_vllm_fa2_C": frozenset({"FlashAttention 2"}),
    "_vllm_fa3_C": frozenset({"FlashAttention 3"}),
    "_flashmla_C": frozenset({"FlashMLA"}),
}
"""By component, the families that a recipe may name: those that our recipes name. A new one is entered here."""
