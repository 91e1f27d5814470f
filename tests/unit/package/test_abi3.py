"""abi3audit's report against the Python that a wheel asks for; the real tool runs on every miniature wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from scripts.package.abi3 import abi3_problems, oldest_python
from tests.wheels import make_wheel

METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"


def report(*, computed: str = "3.8", strange: tuple[str, ...] = (), **newer: str) -> str:
    """What abi3audit 0.0.26 wrote for spinloop of vLLM 0.33.0, with other values."""
    result: dict[str, Any] = {
        "is_abi3": not strange,
        "is_abi3_baseline_compatible": computed == "3.8",
        "baseline": "3.8",
        "computed": computed,
        "non_abi3_symbols": list(strange),
        "future_abi3_objects": newer,
    }
    return json.dumps(
        {"specs": {"a.whl": {"kind": "wheel", "wheel": [{"name": "spinloop.abi3.so", "result": result}]}}}
    )


def test_functions_of_the_oldest_python_that_the_wheel_asks_for_are_right() -> None:
    newer = report(computed="3.11", PyBuffer_Release="3.11", PyObject_CallNoArgs="3.10")
    assert abi3_problems(newer, Version("3.11")) == []
    [problem] = abi3_problems(newer, Version("3.10"))
    assert problem.startswith("spinloop.abi3.so needs Python 3.11, the wheel is for 3.10 and later: ")
    assert problem.endswith("PyBuffer_Release (3.11), PyObject_CallNoArgs (3.10)")


def test_what_the_tag_promises_is_right_whatever_the_wheel_asks_for() -> None:
    assert abi3_problems(report(), Version("3.2")) == []


def test_a_symbol_of_no_stable_abi_is_named() -> None:
    [problem] = abi3_problems(report(strange=("_PyGen_Send",)), Version("3.12"))
    assert problem == "spinloop.abi3.so uses _PyGen_Send, which no stable ABI has"


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"specs": {"a": {"wheel": [{}]}}}', '{"specs": []}'),
        report().replace('"computed": "3.8"', '"computed": null'),
        report().replace('"computed": "3.8"', '"computed": "new"'),
    ],
)
def test_what_is_no_report_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"validation error|Invalid version"):
        abi3_problems(text, Version("3.11"))


@pytest.mark.parametrize(
    ("wanted", "oldest"),
    [("<3.15,>=3.11", "3.11"), (">=3.10.2", "3.10"), ("", "3.2"), (">=9", "3.2"), (">3.9.1", "3.9")],
)
def test_the_oldest_python_is_read_from_the_metadata(wanted: str, oldest: str, tmp_path: Path) -> None:
    line = f"Requires-Python: {wanted}\n" if wanted else ""
    wheel = make_wheel(tmp_path, {"vllm/__init__.py": b""}, metadata=METADATA + line + "\n")
    assert oldest_python(wheel) == Version(oldest)
