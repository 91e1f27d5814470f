"""Whether a wheel tagged abi3 keeps to Python's stable ABI, as abi3audit sees its libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.formats.wheel import open_wheel

NEWEST = 40  # minor versions of Python 3 that are tried


def oldest_python(wheel: Path) -> Version:
    """Return the first Python 3.x that the wheel's Requires-Python admits; 3.2, where abi3 began, without one."""
    with open_wheel(wheel) as opened:
        wanted = SpecifierSet(opened.message("METADATA").get("Requires-Python") or "")
    minors = (Version(f"3.{minor}") for minor in range(2, NEWEST))
    # "3.11.5" is of 3.11: a later release of the same minor version may be wanted
    return next((version for version in minors if wanted.contains(f"{version}.99")), Version("3.2"))


def abi3_problems(report: str, oldest: Version) -> Iterator[str]:
    """Yield what is wrong in abi3audit's JSON report of a wheel.

    The tag says which stable ABI a library keeps to, and Requires-Python on which Python it is ever loaded: upstream
    tags vLLM 0.33 cp38-abi3, asks for Python 3.11 and uses functions of 3.11's stable ABI. Raises ValueError for what
    is no report.
    """
    for name, result in _results(report):
        strange = sorted(map(str, result["non_abi3_symbols"]))
        if strange:
            yield f"{name} uses {', '.join(strange[:5])}, which no stable ABI has"
        needed = Version(result["computed"])
        if needed > max(oldest, Version(result["baseline"])):
            newer = ", ".join(f"{symbol} ({since})" for symbol, since in sorted(result["future_abi3_objects"].items()))
            yield f"{name} needs Python {needed}, the wheel is for {oldest} and later: {newer}"


def _results(report: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        for spec in json.loads(report)["specs"].values():
            for item in spec["wheel"]:
                yield item["name"], item["result"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"abi3audit's report has another form: {error!r}") from error
