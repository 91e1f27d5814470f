"""What a signature of ours claims of a wheel: how it was built, what it was cut out of, or where it was taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.core.errors import PublishError
from scripts.formats.sbom import FOLDER, NAME
from scripts.formats.wheel import open_wheel
from scripts.index.entry import Origin
from scripts.report.models import BuildReport, GitPin, IndexPin

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILDER = "urn:wheelsmith:builder:local"
BUILD, SLIM, MIRROR = (f"urn:wheelsmith:{kind}:v1" for kind in ("build", "slim", "mirror"))


def built(name: str, sha256: str, report: BuildReport | None, *, report_sha256: str) -> dict[str, Any]:
    """Return the statement about a wheel that `nox -s wheel` made. Raises PublishError without such a report."""
    if report is None or report.toolchain is None or report.torch is None or not report.sources:
        raise PublishError(
            f"the report of {name} does not say how it was built",
            why="it is not a report of `nox -s wheel`, and the wheel has no SBOM that names what it was cut out of",
            fix="publish it without --sign-key",
        )
    definition = {
        "buildType": BUILD,
        "externalParameters": {"recipe": report.recipe.name, "archs": report.archs},
        "internalParameters": {
            "recipe_digest": report.recipe.digest,
            "torch": report.torch.model_dump(),
            "toolchain": report.toolchain.model_dump(),
            "patches": [patch.model_dump() for patch in report.patches],
        },
        "resolvedDependencies": [_material(row) for row in report.sources],
    }
    details = {
        "builder": _builder(report),
        "metadata": {"invocationId": report.build},
        "byproducts": [_byproduct(name, report_sha256)],
    }
    return _statement(name, sha256, definition, details)


def slimmed(wheel: Path, sha256: str, report: BuildReport | None, *, report_sha256: str = "") -> dict[str, Any] | None:
    """Return the statement about a wheel that was cut out of another, None for one without an SBOM that says so.

    `report` is what lies beside it; of a wheel that was built here it has the sources.
    """
    with open_wheel(wheel) as opened:
        data = opened.read(f"{opened.dist_info}/{FOLDER}/{NAME}")
    try:
        component = json.loads(data or b"{}")["metadata"]["component"]
        kept = {row["name"]: row["value"] for row in component.get("properties", [])}
        original = component["pedigree"]["ancestors"][0]
        digest = next(row["content"] for row in original["hashes"] if row["alg"] == "SHA-256")
        archs = kept["wheelsmith:slim-archs"]
    except (ValueError, KeyError, IndexError, TypeError, StopIteration):
        return None
    definition = {
        "buildType": SLIM,
        "externalParameters": {"archs": archs},
        "resolvedDependencies": [
            {"name": kept["wheelsmith:slim-of"], "digest": {"sha256": digest}},
            *(_material(row) for row in (report.sources if report else ())),
        ],
    }
    details: dict[str, Any] = {"builder": {"id": BUILDER}}
    if report_sha256:
        details["byproducts"] = [_byproduct(wheel.name, report_sha256)]
    return _statement(wheel.name, sha256, definition, details)


def mirrored(name: str, sha256: str, origin: Origin) -> dict[str, Any]:
    """Return the statement that a wheel was taken from another index as it is."""
    definition = {
        "buildType": MIRROR,
        "externalParameters": {"index": origin.index},
        "resolvedDependencies": [{"name": name, "uri": origin.url, "digest": {"sha256": sha256}}],
    }
    return _statement(name, sha256, definition, {"builder": {"id": BUILDER}})


def _builder(report: BuildReport) -> dict[str, Any]:
    """Return who built a wheel; reports of older versions do not say which wheelsmith it was."""
    found = {"wheelsmith": report.wheelsmith.version, "commit": report.wheelsmith.commit} if report.wheelsmith else {}
    known = {name: text for name, text in found.items() if text}
    return {"id": BUILDER, **({"version": known} if known else {})}


def _byproduct(wheel: str, sha256: str) -> dict[str, Any]:
    return {"name": f"{wheel}.report.json", "digest": {"sha256": sha256}}


def _statement(name: str, sha256: str, definition: dict[str, Any], details: dict[str, Any]) -> dict[str, Any]:
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }


def _material(row: GitPin | IndexPin) -> dict[str, Any]:
    if isinstance(row, GitPin):
        uri = f"git+{row.repository}@{row.commit}"
        return {"name": row.name, "uri": uri, "digest": {"gitCommit": row.commit}}
    project, _, version = row.project.partition(" ")
    return {"name": row.name, "uri": f"pkg:pypi/{project}@{version}", "digest": {"sha256": row.sha256}}
