"""What gpu-check compares: the audit's counts with what ran, and two wheels' results with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Which libraries register the operators whose names begin so: vLLM 0.20.1's, and later ones' for torch's stable ABI.
_LIBRARIES = {"_moe_C::": ("_moe_C", "_moe_C_stable_libtorch"), "_C": ("_C", "_C_stable_libtorch")}


def disagreements(said: dict[str, dict[str, int]], checks: dict[str, dict[str, Any]], *, ok: bool) -> list[str]:
    """Return where the audit's counts and the images that really ran contradict each other."""
    problems = []
    for namespace, stems in _LIBRARIES.items():
        mine = [v for k, v in said.items() if Path(k).name.split(".", 1)[0] in stems]
        ran = {
            str(value["image"])
            for value in checks.values()
            if "image" in value and any(str(name).startswith(namespace) for name in value["operators"])
        }
        if "JIT" in ran and not any(count["jit"] for count in mine):
            problems.append(f"{stems[0]}: operators were compiled from PTX, audit counts none")
        if "SASS" in ran and not any(count["native"] + count["compatible"] for count in mine):
            problems.append(f"{stems[0]}: native code ran, audit counts none")
    lost = sorted(name for name, value in checks.items() if "no kernel image" in str(value.get("reason", "")))
    if ok and lost:
        problems.append(f"audit is content, but there was no kernel image for {', '.join(lost)}")
    return problems


def compare_digests(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return which checks gave the same bytes; those that differ from themselves with one wheel are set aside."""
    result: dict[str, list[str]] = {"equal": [], "different": [], "not_comparable": []}
    for name, value in first.items():
        if value["state"] not in {"ok", "wrong"}:
            continue
        other = second.get(name, {})
        if other.get("sha256") == value["sha256"]:
            result["equal"].append(name)
        elif value["repeatable"] and other.get("repeatable", True):
            result["different"].append(name)
        else:
            result["not_comparable"].append(name)
    return result
