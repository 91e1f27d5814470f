"""What the audit says of a wheel per GPU, as a table for the image: its entry point holds the GPU at hand against it.

runtime/image/gpu.py reads it inside the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.audit.models import TargetVerdict
from scripts.audit.subject import AuditSubject
from scripts.audit.targets import judge
from scripts.cuda.archs import TABLE, Arch
from scripts.cuda.drivers import RELEASES, Target, numbers, parse_target

NAME = "gpus.json"
NO_HAZARDS = "none known"
FIRST = (7, 0)  # compute capability: vLLM supports none below
OLDEST = (12, 0)  # CUDA version whose drivers are still met


def gpu_targets(subject: AuditSubject) -> Iterator[Target]:
    """Yield each GPU without a driver, and with each that is too old for some of the code: that may be a hazard."""
    for number in _archs():
        target = parse_target(number)
        yield target
        lowest = judge(target, subject.libraries, subject.optional).lowest_cuda
        for release in RELEASES:
            if lowest and OLDEST <= numbers(release.cuda) < numbers(lowest):
                yield parse_target(f"{number}@{release.cuda}")


def gpu_table(
    wheel: str, verdicts: Sequence[TargetVerdict], *, version: str, torch: str, cuda: str, driver: str
) -> dict[str, Any]:
    """Return the verdicts of `gpu_targets` by compute capability, and the hazards with their drivers.

    `wheel` is a file name; `cuda` and `driver` are the lowest that run the wheel's own targets. A hazard that only
    drivers below some CUDA version meet has that version as `below_cuda`.
    """
    by_arch = {number: [item for item in verdicts if item.arch == _sm(number)] for number in _archs()}
    return {
        "schema_version": 1,
        "wheel": wheel,
        "version": version,
        "torch": torch,
        "cuda": cuda,
        "driver": driver,
        "gpus": {number: _row(items) for number, items in by_arch.items()},
    }


def _archs() -> list[str]:
    return [row.number for row in TABLE if _pair(row.number) >= FIRST]


def _row(verdicts: Sequence[TargetVerdict]) -> dict[str, Any]:
    lowest = next(item for item in verdicts if not item.driver)
    found: dict[str, dict[str, str]] = {}
    for hazard in lowest.hazards:
        found[hazard.id] = _hazard(hazard, below="")
    later = [release.cuda for release in RELEASES]
    for verdict in verdicts:
        for hazard in verdict.hazards if verdict.driver else ():
            row = found.get(hazard.id)
            after = later[later.index(verdict.driver_cuda or "") + 1 :]
            if row is None or row["below_cuda"]:
                found[hazard.id] = _hazard(hazard, below=after[0] if after else "99.0")
    return {
        "ok": lowest.ok,
        "cuda": lowest.lowest_cuda or "",
        "driver": lowest.lowest_driver or "",
        "why": "; ".join(lowest.reasons),
        "hazards": list(found.values()),
    }


def _hazard(hazard: Any, *, below: str) -> dict[str, str]:
    return {
        "id": hazard.id,
        "level": hazard.level.value,
        "text": hazard.text,
        "remedy": hazard.remedy,
        "source": hazard.source,
        "below_cuda": below,
    }


def hazard_label(table: Mapping[str, Any]) -> str:
    """Return the table's hazards as one label: `marlin-moe-jit: 12.0, 12.1; other: 9.0 below CUDA 12.9`."""
    found: dict[str, list[str]] = {}
    for number, row in table["gpus"].items():
        for hazard in row["hazards"]:
            below = f" below CUDA {hazard['below_cuda']}" if hazard["below_cuda"] else ""
            found.setdefault(hazard["id"], []).append(number + below)
    return "; ".join(f"{name}: {', '.join(numbers)}" for name, numbers in found.items()) or NO_HAZARDS


def _pair(number: str) -> tuple[int, int]:
    major, minor = numbers(number)
    return major, minor


def _sm(number: str) -> str:
    return Arch(*_pair(number)).sm
