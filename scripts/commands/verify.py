"""nox -s verify: check a wheel, its provenance and its SBOM. See docs/publishing.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.commands.cli import Parser, run, user_path
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.core.files import file_sha256, write_json
from scripts.formats.wheel import open_wheel
from scripts.index.provenance import SUFFIX, check, load_key
from scripts.index.verify import check_record, check_sbom, find_provenance, read_provenance

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
    command.add_argument("wheel", type=user_path, metavar="WHEEL", help="to be checked")
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
    key = load_key(options.key) if options.key else None
    sha256 = file_sha256(options.wheel)
    rows.append(("sha256", sha256))
    if key:
        path = options.provenance or find_provenance(options.wheel)
        rows += _claimed(check(read_provenance(path), key, name=options.wheel.name, sha256=sha256))
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
