"""Public reports, condensed to what their logs show: the failure is named, and with the advice that helped there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.failures.catalogue import catalogue
from scripts.failures.recognise import diagnose_text

CASES = json.loads((Path(__file__).parents[2] / "logs" / "reports.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=[case["url"].removeprefix("https://github.com/") for case in CASES])
def test_a_public_report_is_recognised_first_of_all(case: dict[str, str]) -> None:
    assert diagnose_text(case["log"]).findings[0].id == case["id"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flash-attn-needs-ampere", ["2.7.4", "12.0"]),  # an RTX 5090 is told the same as an old GPU
        ("libcudart-soname-missing", ["--extra-index-url", "cu130"]),  # not only torch can be changed
        ("wgmma-needs-90a", ["12.1a", "guard"]),  # plain archs are what failed
        ("no-kernel-image", ["XFORMERS_DISABLE_FLASH_ATTN", "library"]),  # it need not be vLLM's
    ],
)
def test_the_advice_fits_those_who_need_it(name: str, words: list[str]) -> None:
    assert all(word in catalogue()[name].fix for word in words)
