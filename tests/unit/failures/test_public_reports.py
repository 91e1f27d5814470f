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
    ("thread", "name", "words"),
    [
        # an RTX 5090 is told the same as an old GPU
        ("Dao-AILab/flash-attention/issues/1540", "flash-attn-needs-ampere", ["2.7.4", "12.0"]),
        # torch's backend does not choose vLLM: not only torch can be changed
        ("vllm-project/vllm/issues/44335", "libcudart-soname-missing", ["--extra-index-url", "cu129", "cu130"]),
        # plain archs are what failed; that ptxas gave up is no failure of its own
        ("13-49-tok-s-with-qwen3-5-35b-native-sm121-kernel-build-guide/365083", "wgmma-needs-90a", ["12.1a", "guard"]),
        # the library need not be vLLM
        ("facebookresearch/xformers/issues/1329", "no-kernel-image", ["XFORMERS_DISABLE_FLASH_ATTN", "library"]),
    ],
)
def test_a_report_that_got_a_wrong_remedy_gets_the_one_that_helps_and_no_other(
    thread: str, name: str, words: list[str]
) -> None:
    [log] = [case["log"] for case in CASES if case["url"].endswith(thread)]
    assert [item.id for item in diagnose_text(log).findings] == [name]
    assert [word for word in words if word not in catalogue()[name].fix] == []


def test_an_unknown_error_of_ptxas_is_shown_in_place_of_its_last_words() -> None:
    said = "ptxas /tmp/tmpxft_1_2-7_a.ptx, line 811; error   : Unknown modifier '.foo'"
    seen = diagnose_text(f"{said}\nptxas fatal   : Ptx assembly aborted due to errors\n")
    assert seen.findings == ()
    assert seen.error is not None
    assert seen.error.text == said
