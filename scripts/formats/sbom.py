"""The SBOM inside a wheel, as text: where it lies, what a renamed wheel's says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packageurl import PackageURL

FOLDER = "sboms"
NAME = "wheelsmith.cdx.json"


def _text(bom: dict[str, Any]) -> bytes:
    bom.pop("serialNumber", None)
    bom["metadata"].pop("timestamp", None)
    return (json.dumps(bom, indent=1, sort_keys=True) + "\n").encode()


def renamed(sbom: bytes, version: str) -> bytes:
    """Return the SBOM of a wheel that was cut out of another: its own version, the old one as ancestor."""
    bom = json.loads(sbom)
    wheel = bom["metadata"]["component"]
    old, name = wheel["bom-ref"], wheel["name"]
    ancestor = {key: wheel[key] for key in ("type", "name", "version", "purl") if key in wheel}
    wheel.update({"version": version, "bom-ref": f"{name}@{version}"})
    wheel["purl"] = PackageURL("pypi", None, name, version).to_string()
    wheel.setdefault("pedigree", {}).setdefault("ancestors", []).insert(0, ancestor)
    for row in bom.get("dependencies", []):
        row["ref"] = wheel["bom-ref"] if row["ref"] == old else row["ref"]
    return _text(bom)


def sbom_members(names: Iterable[str]) -> list[str]:
    """Return which members of a wheel are SBOMs."""
    return [name for name in names if re.fullmatch(rf"[^/]+\.dist-info/{FOLDER}/.+\.json", name)]


@dataclass(frozen=True)
class Original:
    """The wheel that another one was cut out of."""

    filename: str
    sha256: str
    name: str
    """Normalised project name."""
    version: str
    archs: str
    """What it was cut to: `8.6;9.0`."""


def cut_sbom(sbom: bytes | None, version: str, original: Original) -> bytes:
    """Return the SBOM of a wheel that was cut out of another: its own version, the old wheel with its hash as ancestor.

    A wheel without an SBOM, as upstream's have none, gets one that says this and nothing that is not known.
    """
    bom = json.loads(renamed(sbom or _bare(original), version))
    wheel = bom["metadata"]["component"]
    wheel["pedigree"]["ancestors"][0]["hashes"] = [{"alg": "SHA-256", "content": original.sha256}]
    said = [row for row in wheel.get("properties", []) if not row["name"].startswith("wheelsmith:slim-")]
    said.append({"name": "wheelsmith:slim-archs", "value": original.archs})
    said.append({"name": "wheelsmith:slim-of", "value": original.filename})
    wheel["properties"] = sorted(said, key=lambda row: (row["name"], row["value"]))
    return _text(bom)


def _bare(original: Original) -> bytes:
    ref = f"{original.name}@{original.version}"
    component = {
        "bom-ref": ref,
        "type": "library",
        "name": original.name,
        "version": original.version,
        "purl": PackageURL("pypi", None, original.name, original.version).to_string(),
    }
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component},
        "dependencies": [{"ref": ref}],
    }
    return json.dumps(bom).encode()
