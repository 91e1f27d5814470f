"""What an image weighs and holds: the size table, the report, the CycloneDX SBOM."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL

from scripts.console import Console, human_bytes
from scripts.image_checks import Facts, Result
from scripts.image_context import WheelFacts
from scripts.image_engine import Layer


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

    @property
    def total(self) -> int:
        """Bytes of all layers, unpacked."""
        return sum(layer.size for layer in self.layers)

    @property
    def packages(self) -> int:
        """Bytes that the installed wheels hold, by their RECORDs."""
        return sum(size for _, _, size in self.facts.python_packages)

    @property
    def ratio(self) -> float:
        """Image over wheels: 1 would be nothing but the wheels."""
        return self.total / max(self.packages, 1)


def show(report: ImageReport, console: Console) -> None:
    """Print the sizes by layer and by package, and the checks."""
    console.grid(["layer", "size"], [(_words(layer.made_by), human_bytes(layer.size)) for layer in report.layers])
    largest = sorted(report.facts.python_packages, key=lambda item: -item[2])[:12]
    debian = sum(item[3] for item in report.facts.debian_packages)
    rows = [(f"{name} {version}", human_bytes(size)) for name, version, size in largest]
    rest = report.packages - sum(item[2] for item in largest)
    rows += [
        (f"{len(report.facts.python_packages) - len(largest)} other wheels", human_bytes(rest)),
        (f"{len(report.facts.debian_packages)} Debian packages", human_bytes(debian)),
    ]
    console.grid(["package", "size"], rows)
    console.grid(["check", "", "found"], [_row(result) for result in report.checks])
    console.table(
        "runtime image",
        [
            ("image", report.tag),
            ("base", f"{report.base} {report.base_digest}".strip()),
            ("wheel", f"{report.wheel.path.name} {report.wheel.sha256[:12]}"),
            ("driver", f"CUDA {report.wheel.cuda} ({report.wheel.driver}) or later"),
            ("size", f"{human_bytes(report.total)}, {report.ratio:.3f} of its wheels' {human_bytes(report.packages)}"),
            ("checks", f"{sum(item.ok for item in report.checks)} of {len(report.checks)} passed"),
        ],
    )


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
        "schema_version": 1,
        **data,
        "total": report.total,
        "packages": report.packages,
        "ratio": round(report.ratio, 4),
    }


def sbom(report: ImageReport, *, distribution: str = "debian") -> str:
    """Return the image's software bill of materials as CycloneDX 1.5 JSON, with syft's names for what is what.

    The same image gives the same bytes: serial number and time come from its contents.
    """
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"{report.tag}#{report.wheel.sha256}#{report.total}"))
    bom.metadata.timestamp = datetime.fromtimestamp(report.timestamp, tz=timezone.utc)
    bom.metadata.component = Component(name=report.tag, type=ComponentType.CONTAINER, bom_ref=report.tag)
    for name, version, _ in report.facts.python_packages:
        url = PackageURL("pypi", name=name.lower().replace("_", "-"), version=version)
        bom.components.add(_component(name, version, url, "python"))
    for name, version, architecture, _ in report.facts.debian_packages:
        url = PackageURL("deb", distribution, name, version, {"arch": architecture})
        bom.components.add(_component(name, version, url, "deb"))
    bom.register_dependency(bom.metadata.component, bom.components)
    return json.dumps(json.loads(JsonV1Dot5(bom).output_as_string()), indent=2) + "\n"


def _component(name: str, version: str, url: PackageURL, kind: str) -> Component:
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=url,
        bom_ref=str(url),
        properties=[Property(name="syft:package:type", value=kind)],
    )


def file_stem(tag: str) -> Path:
    """Return a file name for what belongs to a tag: `localhost/vllm:1` gives `localhost_vllm_1`."""
    return Path(re.sub(r"[^\w.+-]+", "_", tag))
