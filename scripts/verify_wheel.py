"""nox -s verify: check a wheel, its provenance and its SBOM. See docs/publishing.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.version import Version

from scripts.audit.contents import record_findings
from scripts.cli import Parser, run, user_path
from scripts.core.console import Console
from scripts.core.errors import AuditError, UsageError
from scripts.core.files import file_sha256, write_json
from scripts.formats.sbom import FOLDER, NAME
from scripts.formats.wheel import WheelFile, open_wheel, wheel_name
from scripts.provenance import MAX_SIZE, SUFFIX, check, load_key

DESCRIPTION = """\
Check that a wheel is what its builder signed, and that its SBOM is about it.

Checked are: every file against RECORD, the signature and the statement of NAME.whl.intoto.jsonl with the public key,
the wheel's sha256 against the statement, the SBOM against the CycloneDX schema and the wheel's own version. Envelopes
of other tools are taken too: any in-toto statement in DSSE, Sigstore bundles, PEP 740 attestations; with the key alone.
Example: nox -s verify -- wheelhouse/vllm-0.15.1+cu128-....whl --key pub.pem
"""


def parser() -> Parser:
    """Return the command line of `nox -s verify`."""
    command = Parser("verify", DESCRIPTION)
    command.add_argument("wheel", type=user_path, metavar="WHEEL")
    command.add_argument("--key", type=user_path, metavar="PUB", help="public key (PEM); else nothing is verified")
    command.add_argument("--provenance", type=user_path, metavar="FILE", help=f"default: WHEEL{SUFFIX}")
    command.add_argument("--no-sbom", action="store_true", help="do not ask for an SBOM inside the wheel")
    command.add_argument("--json", type=user_path, metavar="FILE", help="write what was found to a file")
    return command


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code. Raises AuditError for the first thing that is wrong."""
    options = parser().parse_args(arguments)
    if not options.wheel.is_file():
        raise UsageError(f"{options.wheel} is not there", fix="name a wheel")
    rows = [("wheel", options.wheel.name)]
    sha256 = file_sha256(options.wheel)
    rows.append(("sha256", sha256))
    if options.key:
        path = options.provenance or options.wheel.with_name(options.wheel.name + SUFFIX)
        claim = check(read_provenance(path), load_key(options.key), name=options.wheel.name, sha256=sha256)
        rows += _claimed(claim)
    else:
        console.warn("no --key: who built this wheel is not verified; RECORD and SBOM can be made by anyone")
    with open_wheel(options.wheel) as wheel:
        rows.append(("RECORD", f"{check_record(wheel)} files as they should be"))
        if not options.no_sbom:
            rows.append(("SBOM", f"{len(check_sbom(wheel)['components'])} components"))
    if options.json:
        write_json(options.json, {**dict(rows), "verified": bool(options.key)})
    console.table("verified" if options.key else "looked at, NOT verified: there is no --key", rows)
    return 0


def read_provenance(path: Path) -> bytes:
    """Return an envelope's bytes. Raises AuditError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise AuditError(
            f"the provenance {path} cannot be read",
            why=error.strerror or str(error),
            fix="fetch it from the index: it lies beside the wheel; or name it: --provenance FILE",
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
        raise wheel.error("it has no SBOM", f"{place} is missing; --no-sbom does without")
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
    try:
        found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode())
    except (ValueError, RecursionError) as error:
        return str(error)
    return str(found).splitlines()[0][:300] if found else ""


def _claimed(claim: dict[str, Any]) -> list[tuple[str, str]]:
    """Tell what a statement says, as far as it is SLSA's; another tool's may hold anything."""
    rows = [("signature", "right"), ("statement", str(claim["predicateType"]))]
    predicate = claim.get("predicate")
    build = predicate.get("buildDefinition") if isinstance(predicate, dict) else None
    if not isinstance(build, dict):
        return rows
    asked, sources = build.get("externalParameters"), build.get("resolvedDependencies")
    for key, value in asked.items() if isinstance(asked, dict) else ():
        rows.append((str(key), str(value)[:200]))
    for item in sources if isinstance(sources, list) else ():
        if isinstance(item, dict):
            digest = next(iter(item["digest"].values()), "") if isinstance(item.get("digest"), dict) else ""
            rows.append(("source", f"{item.get('name') or ''} {item.get('uri') or digest}".strip()))
    return rows


if __name__ == "__main__":
    run(main)
