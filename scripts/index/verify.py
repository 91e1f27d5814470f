"""Check a wheel: its RECORD, its SBOM, its provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packaging.version import Version

from scripts.audit.contents import record_findings
from scripts.core.errors import AuditError
from scripts.formats.sbom import FOLDER, NAME
from scripts.formats.wheel import WheelFile, wheel_name
from scripts.index.attestations import SUFFIX as PROVENANCE
from scripts.index.provenance import MAX_SIZE, SUFFIX

_OTHERS = (PROVENANCE, ".publish.attestation", ".sigstore.json", ".sigstore")  # envelopes of other tools


def find_provenance(wheel: Path) -> Path:
    """Return the envelope beside a wheel. Raises AuditError when it has none: it was never signed, or not fetched."""
    path = wheel.with_name(wheel.name + SUFFIX)
    if path.is_file():
        return path
    others = [other for suffix in _OTHERS if (other := wheel.with_name(wheel.name + suffix)).is_file()]
    raise AuditError(
        f"{wheel.name} has no signature here",
        why=f"there is no {path.name} beside it: it was not fetched, or the wheel was never signed",
        fix=[
            *(f"take what is there: --provenance {other}" for other in others),
            "another's wheel: fetch that file from its index, or ask the publisher to sign the wheel",
            f"your own: nox -s publish -- --to INDEX --sign-key PEM {wheel}",
        ],
    )


def read_provenance(path: Path) -> bytes:
    """Return an envelope's bytes. Raises AuditError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise AuditError(
            f"the provenance {path} cannot be read",
            why=error.strerror or str(error),
            fix="name a file that is there: --provenance FILE; without it the one beside the wheel is taken",
        ) from error
    if len(data) > MAX_SIZE:
        raise AuditError(f"{path} is too large for a provenance", fix="get it again from who built the wheel")
    return data


def check_record(wheel: WheelFile) -> int:
    """Compare every file with RECORD; return how many there are. Raises AuditError."""
    digests = {member.filename: wheel.digest(member) for member in wheel.members}
    problems = [f"{item.where} {item.text}".strip() for item in record_findings(wheel, digests)]
    if problems:
        raise wheel.error("its contents are not what RECORD says", "; ".join(problems[:5]))
    return len(digests)


def check_sbom(wheel: WheelFile) -> dict[str, Any]:
    """Return the SBOM after checking it. Raises AuditError when it is missing, no CycloneDX, or of another wheel."""
    place = f"{wheel.dist_info}/{FOLDER}/{NAME}"
    data = wheel.read(place)
    if data is None:
        raise AuditError(
            f"{wheel.path.name}: it has no SBOM",
            why=f"{place} is missing: wheels that wheelsmith did not make have none",
            fix=["check the rest: --no-sbom", "nox -s slim puts one into the wheels that it cuts out of others"],
        )
    problem = schema_problem(data)
    if problem:
        raise wheel.error("its SBOM is not CycloneDX 1.6", problem)
    bom: dict[str, Any] = json.loads(data)
    about, name = bom.get("metadata", {}).get("component", {}), wheel_name(wheel.path)
    try:
        same = about.get("name") == name.name and Version(about.get("version", "")) == Version(name.version)
    except ValueError:
        same = False
    if not same:
        raise wheel.error("its SBOM is of another wheel", f"of {about.get('name')} {about.get('version')}")
    return {"components": [], **bom}


def schema_problem(data: bytes) -> str:
    """Return why bytes are not a CycloneDX 1.6 SBOM, "" when they are."""
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415  (2 s: only who checks an SBOM loads them)
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    try:
        found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode())
    except (ValueError, RecursionError) as error:
        return str(error)
    return str(found).splitlines()[0][:300] if found else ""
