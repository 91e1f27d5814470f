"""What an image weighs and holds and where its time went: the tables and the report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.core.console import Console, human_bytes, human_seconds
from scripts.image.checks import Facts, Result
from scripts.image.context import WheelFacts
from scripts.image.engine import Layer


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the work."""

    name: str
    seconds: float
    """By the clock."""
    cpu: float
    """CPU seconds of this process and of what it ran."""


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """All that is known of an image that was built."""

    tag: str
    target: str
    base: str
    base_digest: str
    engine: str
    wheel: WheelFacts
    facts: Facts
    layers: Sequence[Layer]
    checks: Sequence[Result]
    seconds: float
    timestamp: int
    phases: Sequence[Phase] = ()
    steps: Sequence[tuple[str, float]] = ()
    """Steps of the build as the engine names them, with their seconds."""
    hazards: str = ""
    """What is known to go wrong, with the compute capabilities: the label wheelsmith.hazards."""
    image_id: str = ""
    """sha256 of the image's configuration."""

    @property
    def total(self) -> int:
        """Bytes of all layers, unpacked."""
        return sum(layer.size for layer in self.layers)

    @property
    def packages(self) -> int:
        """Bytes that the installed wheels hold, by their RECORDs."""
        return sum(package.size for package in self.facts.python_packages)

    @property
    def ratio(self) -> float:
        """Image over wheels: 1 would be nothing but the wheels."""
        return self.total / max(self.packages, 1)


def show(report: ImageReport, console: Console) -> None:
    """Print the sizes by layer and by package, and the checks."""
    console.grid(["layer", "size"], [(_words(layer.made_by), human_bytes(layer.size)) for layer in report.layers])
    largest = sorted(report.facts.python_packages, key=lambda item: -item.size)[:12]
    debian = sum(item.size for item in report.facts.debian_packages)
    rows = [(f"{item.name} {item.version}", human_bytes(item.size)) for item in largest]
    rest = report.packages - sum(item.size for item in largest)
    rows += [
        (f"{len(report.facts.python_packages) - len(largest)} other wheels", human_bytes(rest)),
        (f"{len(report.facts.debian_packages)} Debian packages", human_bytes(debian)),
    ]
    console.grid(["package", "size"], rows)
    console.grid(["phase", "time", "CPU"], [_phase(item) for item in report.phases])
    console.grid(["check", "", "found"], [_row(result) for result in report.checks])
    console.table(
        "runtime image",
        [
            ("image", report.tag),
            ("base", f"{report.base} {report.base_digest}".strip()),
            ("wheel", f"{report.wheel.path.name} {report.wheel.sha256[:12]}"),
            ("hazards", report.hazards),
            ("driver", f"CUDA {report.wheel.cuda} ({report.wheel.driver}) or later"),
            ("size", f"{human_bytes(report.total)}, {report.ratio:.3f} of its wheels' {human_bytes(report.packages)}"),
            ("checks", f"{sum(item.ok for item in report.checks)} of {len(report.checks)} passed"),
        ],
    )


def _phase(phase: Phase) -> tuple[str, str, str]:
    return phase.name, human_seconds(phase.seconds), human_seconds(phase.cpu)


def _row(result: Result) -> tuple[str, str, str]:
    return result.check, "ok" if result.ok else "FAILED", (result.said.strip().splitlines() or [""])[0][:70]


def _words(made_by: str) -> str:
    text = re.sub(r"^/bin/sh -c |#\(nop\)|--mount=\S+|\|\d+ .*?/bin/sh -c ", "", made_by)
    return " ".join(text.split())[:70] or "base"


def as_json(report: ImageReport) -> dict[str, Any]:
    """Return the report as JSON-able data."""
    data = dataclasses.asdict(report)
    data["wheel"]["path"] = report.wheel.path.name
    return {
        "schema_version": 2,
        **data,
        "total": report.total,
        "packages": report.packages,
        "ratio": round(report.ratio, 4),
    }


def file_stem(tag: str) -> Path:
    """Return a file name for what belongs to a tag: `localhost/vllm:1` gives `localhost_vllm_1`."""
    return Path(re.sub(r"[^\w.+-]+", "_", tag))
