"""PEP 740: attestations that lie beside a wheel become the provenance object that the simple API names.

They are Sigstore's: made where a workflow has an identity (`pypi-attestations sign`, publishing actions), never by us.
A signature with a key file has neither the certificate nor the log entry that PEP 740 asks for, so it is not dressed
up as one; it stays `NAME.whl.intoto.jsonl`. Whether Sigstore believes an attestation, `pypi-attestations verify` says.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from scripts.core.errors import PublishError
from scripts.index.entry import same_wheel
from scripts.index.provenance import MAX_SIZE, signatures

SUFFIX = ".provenance"
FILES = "*.attestation"  # `NAME.whl.publish.attestation`, as PyPI's tools name them
_ISSUER, _SOURCE, _CONFIG = (x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}") for number in (8, 12, 18))
_PUBLISHERS = {
    "https://token.actions.githubusercontent.com": ("GitHub", "workflow"),
    "https://gitlab.com": ("GitLab", "workflow_filepath"),
}  # OIDC issuers that Sigstore's public instance certifies, and what PyPI's publishers call the workflow


def provenance_of(wheel: Path, sha256: str) -> bytes | None:
    """Return the provenance object of the attestations beside a wheel; None without. Raises PublishError for others."""
    paths = sorted(wheel.parent.glob(f"{_literal(wheel.name)}.{FILES}"))
    ready = wheel.with_name(wheel.name + SUFFIX)
    if ready.is_file():
        data = _bounded(ready)
        check_provenance(data, wheel.name, sha256)
        return data
    return bundle([_bounded(path) for path in paths], wheel.name, sha256) if paths else None


def _literal(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise PublishError(f"{path} is too large for an attestation", fix="make it again")
    return data


def bundle(attestations: Sequence[bytes], name: str, sha256: str) -> bytes:
    """Return attestations as one provenance object, a bundle per publisher. Raises PublishError for what is none."""
    bundles: dict[str, dict[str, Any]] = {}
    for data in attestations:
        check_attestation(data, name, sha256)
        row = json.loads(data)
        publisher = _publisher(row, name)
        key = json.dumps(publisher, sort_keys=True)
        bundles.setdefault(key, {"publisher": publisher, "attestations": []})["attestations"].append(row)
    whole = {"version": 1, "attestation_bundles": [bundles[key] for key in sorted(bundles)]}
    return (json.dumps(whole, sort_keys=True) + "\n").encode()


def check_provenance(data: bytes, name: str, sha256: str) -> None:
    """Raise PublishError for what is no PEP 740 provenance about a wheel; nothing is said about who signed it."""
    try:
        row = json.loads(data)
        inside = [
            item for one in row["attestation_bundles"] for item in one["attestations"] if one["publisher"]["kind"]
        ]
        whole = row["version"] == 1 and bool(inside)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(name, f"{type(error).__name__}: {error}") from error
    if not whole:
        raise _bad(name, "there is no attestation in it")
    for item in inside:
        check_attestation(json.dumps(item).encode(), name, sha256)


def check_attestation(data: bytes, name: str, sha256: str) -> None:
    """Raise PublishError for what is no PEP 740 attestation about a wheel."""
    try:
        row = json.loads(data)
        material = row["verification_material"]
        whole = row["version"] == 1 and material["certificate"] and material["transparency_entries"]
        subjects = [item for one in signatures(data, name) for item in json.loads(one.payload)["subject"]]
        about = any(item["digest"]["sha256"] == sha256 and same_wheel(item["name"], name) for item in subjects)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(name, f"{type(error).__name__}: {error}") from error
    if not whole:
        raise _bad(name, "it has no certificate or no log entry")
    if not about:
        raise _bad(name, "it is about another wheel")


def _publisher(row: dict[str, Any], name: str) -> dict[str, str]:
    """Return who signed, as PyPI's publishers are written, from the certificate that Sigstore issued."""
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(row["verification_material"]["certificate"]))
        issuer, source, config = (_claim(certificate, oid) for oid in (_ISSUER, _SOURCE, _CONFIG))
        kind, field = _PUBLISHERS[issuer]
    except (ValueError, TypeError, KeyError, binascii.Error, x509.ExtensionNotFound) as error:
        raise _bad(name, f"its certificate names no publisher that PyPI's tools know: {error}") from error
    repository = source.split("//", 1)[-1].partition("/")[2]
    workflow = config.partition("@")[0].removeprefix(f"{source}/").removeprefix("/")
    workflow = workflow.rsplit("/", 1)[-1] if kind == "GitHub" else workflow
    return {"kind": kind, "repository": repository, field: workflow}


def _claim(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    value = certificate.extensions.get_extension_for_oid(oid).value
    raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    return raw[2:].decode() if raw[:1] == b"\x0c" and raw[1:2] < b"\x80" else raw.decode()  # DER UTF8String


def _bad(name: str, why: str) -> PublishError:
    return PublishError(
        f"an attestation of {name} cannot be published",
        why=why,
        fix="make it again with pypi-attestations, or move it away from the wheel",
    )
