"""The SBOM inside a wheel, as text: where it lies, what a renamed wheel's says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
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


def cut_out_sbom(name: str, version: str, *, source: str, source_version: str, sha256: str, archs: str) -> bytes:
    """Return the SBOM of a wheel that was cut out of somebody else's: all that is known is that wheel's digest."""
    ref, ancestor = f"{name}@{version}", f"{name}@{source_version}#wheel"
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "bom-ref": ref,
                "type": "library",
                "name": name,
                "version": version,
                "purl": PackageURL("pypi", None, name, version).to_string(),
                "properties": [
                    {"name": "wheelsmith:slim-of", "value": source},
                    {"name": "wheelsmith:slim-archs", "value": archs},
                ],
                "pedigree": {
                    "ancestors": [
                        {
                            "bom-ref": ancestor,
                            "type": "library",
                            "name": name,
                            "version": source_version,
                            "purl": PackageURL("pypi", None, name, source_version).to_string(),
                            "hashes": [{"alg": "SHA-256", "content": sha256}],
                        }
                    ]
                },
            }
        },
        "dependencies": [{"ref": ref}],
    }
    return _text(bom)
