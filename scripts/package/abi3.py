"""Whether a wheel tagged abi3 keeps to Python's stable ABI, as abi3audit sees its libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from pydantic import BaseModel

from scripts.formats.wheel import open_wheel

NEWEST = 40  # minor versions of Python 3 that are tried


def oldest_python(wheel: Path) -> Version:
    """Return the first Python 3.x that the wheel's Requires-Python admits; 3.2, where abi3 began, without one."""
    with open_wheel(wheel) as opened:
        wanted = SpecifierSet(opened.message("METADATA").get("Requires-Python") or "")
    minors = (Version(f"3.{minor}") for minor in range(2, NEWEST))
    # "3.11.5" is of 3.11: a later release of the same minor version may be wanted
    return next((version for version in minors if wanted.contains(f"{version}.99")), Version("3.2"))


class _Result(BaseModel):
    """What abi3audit says of one library."""

    baseline: str
    """The stable ABI that its tag promises: `3.8`."""
    computed: str
    """The one that it needs."""
    non_abi3_symbols: list[str]
    future_abi3_objects: dict[str, str]


class _Library(BaseModel):
    name: str
    result: _Result


class _Spec(BaseModel):
    wheel: list[_Library]


class _Report(BaseModel):
    specs: dict[str, _Spec]


def abi3_problems(report: str, oldest: Version) -> list[str]:
    """Return what is wrong in abi3audit's JSON report of a wheel.

    The tag says which stable ABI a library keeps to, and Requires-Python on which Python it is ever loaded: upstream
    tags vLLM 0.33 cp38-abi3, asks for Python 3.11 and uses functions of 3.11's stable ABI. Raises ValueError for what
    is no report.
    """
    specs = _Report.model_validate_json(report).specs.values()
    return [problem for spec in specs for item in spec.wheel for problem in _problems(item, oldest)]


def _problems(library: _Library, oldest: Version) -> Iterator[str]:
    result = library.result
    if result.non_abi3_symbols:
        yield f"{library.name} uses {', '.join(sorted(result.non_abi3_symbols)[:5])}, which no stable ABI has"
    needed = Version(result.computed)
    if needed > max(oldest, Version(result.baseline)):
        newer = ", ".join(f"{symbol} ({since})" for symbol, since in sorted(result.future_abi3_objects.items()))
        yield f"{library.name} needs Python {needed}, the wheel is for {oldest} and later: {newer}"
