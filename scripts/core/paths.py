"""Where the project's own folders are, from any module of it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
WHEELHOUSE = ROOT / "wheelhouse"
DEFAULT_RECIPE = "vllm-0.15.1-cu128"
