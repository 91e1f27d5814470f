"""Provenance beside a wheel, `NAME.whl.intoto.jsonl`: an SLSA v1 statement in a DSSE envelope, signed with a key file.

No network and no service: who has the public key can check it for ever. See docs/publishing.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from scripts.errors import AuditError, PublishError, UsageError

SUFFIX = ".intoto.jsonl"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:wheelsmith:build:v1"
SLIM_TYPE = "urn:wheelsmith:slim:v1"
BUILDER = "urn:wheelsmith:builder:local"
MAX_SIZE = 16 << 20  # bytes of an envelope that is read into memory
_DIGEST = "payloadSha256"  # our addition: tells a changed statement from a changed signature; proves nothing


def load_signer(path: Path, password: str = "") -> CryptoSigner:
    """Read a private key (PEM: Ed25519, ECDSA, RSA). Raises UsageError; the key never leaves memory."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password.encode() or None)
    except TypeError as error:
        raise UsageError(
            f"the key {path} is encrypted, or is not and a password was given",
            fix="put its password into WHEELSMITH_KEY_PASSWORD",
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is not a private key that can be used",
            why=str(error).splitlines()[0],
            fix=["openssl genpkey -algorithm ed25519 -out key.pem", "openssl pkey -in key.pem -pubout -out pub.pem"],
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise UsageError(f"{path}: keys of this kind cannot sign", fix="use Ed25519, ECDSA or RSA")
    return CryptoSigner(key)


def load_key(path: Path) -> SSlibKey:
    """Read a public key (PEM). Raises UsageError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
        return SSlibKey.from_crypto(key)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a public key that can be used",
            why=str(error).splitlines()[0],
            fix="openssl pkey -in key.pem -pubout -out pub.pem",
        ) from error


def statement(name: str, sha256: str, report: Mapping[str, Any], *, report_sha256: str) -> dict[str, Any]:
    """Return what is claimed of a wheel, from its build report. Raises PublishError when that is not one.

    Of a wheel that was cut out of somebody else's, that wheel is the only source.
    """
    if "sources" not in report and isinstance(report.get("slimmed_from"), Mapping):
        return _slim_statement(name, sha256, report, report_sha256=report_sha256)
    try:
        return {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": sha256}}],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {"recipe": report["recipe"]["name"], "archs": report["archs"]},
                    "internalParameters": {
                        "recipe_digest": report["recipe"]["digest"],
                        "torch": report["torch"],
                        "toolchain": report["toolchain"],
                        "patches": report["patches"],
                    },
                    "resolvedDependencies": [_material(row) for row in report["sources"]],
                },
                "runDetails": {
                    "builder": {"id": BUILDER},
                    "metadata": {"invocationId": report["build"]},
                    "byproducts": [{"name": f"{name}.report.json", "digest": {"sha256": report_sha256}}],
                },
            },
        }
    except (KeyError, TypeError) as error:
        raise PublishError(
            f"the report of {name} does not say how it was built",
            why=f"{error} is missing: it is not a report of `nox -s wheel`",
            fix="publish it without --sign-key",
        ) from error


def _slim_statement(name: str, sha256: str, report: Mapping[str, Any], *, report_sha256: str) -> dict[str, Any]:
    source = report["slimmed_from"]
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": SLIM_TYPE,
                "externalParameters": {"archs": report["archs"], "drop_empty": bool(report.get("drop_empty"))},
                "resolvedDependencies": [{"name": source["name"], "digest": {"sha256": source["sha256"]}}],
            },
            "runDetails": {
                "builder": {"id": BUILDER},
                "byproducts": [{"name": f"{name}.report.json", "digest": {"sha256": report_sha256}}],
            },
        },
    }


def _material(row: Mapping[str, Any]) -> dict[str, Any]:
    if "commit" in row:
        uri = f"git+{row['repository']}@{row['commit']}"
        return {"name": row["name"], "uri": uri, "digest": {"gitCommit": row["commit"]}}
    project, _, version = str(row["project"]).partition(" ")
    return {"name": row["name"], "uri": f"pkg:pypi/{project}@{version}", "digest": {"sha256": row["sha256"]}}


def sign(claim: Mapping[str, Any], signer: CryptoSigner) -> bytes:
    """Return the statement in a signed envelope, one line of JSON."""
    payload = json.dumps(claim, sort_keys=True).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    row = {**envelope.to_dict(), _DIGEST: hashlib.sha256(payload).hexdigest()}
    return json.dumps(row, sort_keys=True).encode() + b"\n"


def check(data: bytes, key: Key, *, name: str, sha256: str) -> dict[str, Any]:
    """Return the statement of an envelope that `key` signed about this wheel. Raises AuditError, each cause its own."""
    row, payload = _opened(data, name)
    keyids = [item.get("keyid") for item in row["signatures"]]
    if key.keyid not in keyids:
        raise _refused(name, "it is signed with another key", f"with {', '.join(map(str, keyids))}, not {key.keyid}")
    if row.get(_DIGEST) != hashlib.sha256(payload).hexdigest():
        raise _refused(
            name, "the statement was changed after it was signed", "it is not the one the envelope was made for"
        )
    try:
        Envelope.from_dict({field: row[field] for field in ("payload", "payloadType", "signatures")}).verify([key], 1)
    except (VerificationError, KeyError, ValueError, TypeError) as error:
        raise _refused(name, "the signature is wrong", "it was not made by this key over this statement") from error
    claim = _statement(payload, name)
    subjects = {item.get("digest", {}).get("sha256"): item.get("name") for item in claim["subject"]}
    if sha256 not in subjects:
        raise _refused(
            name,
            "the wheel is not the one that was signed",
            f"its sha256 is {sha256}, signed was {', '.join(map(str, subjects))}",
        )
    if subjects[sha256] != name:
        raise _refused(name, "the wheel was renamed", f"signed as {subjects[sha256]}")
    return claim


def _refused(name: str, what: str, why: str) -> AuditError:
    return AuditError(
        f"{name}: {what}", why=why, fix="do not install it; get wheel and provenance again from who built it"
    )


def _opened(data: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    """Return an envelope and its payload. Raises AuditError when it is none."""
    try:
        row = json.loads(data)
        payload = base64.b64decode(row["payload"], validate=True)
        signatures = row["signatures"]
        whole = isinstance(signatures, list) and all(isinstance(item, dict) for item in signatures) and signatures
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise _refused(name, "the provenance cannot be read", f"it is no DSSE envelope: {error}") from error
    if not whole or row.get("payloadType") != PAYLOAD_TYPE:
        raise _refused(name, "the provenance cannot be read", "it is no DSSE envelope of an in-toto statement")
    return row, payload


def _statement(payload: bytes, name: str) -> dict[str, Any]:
    try:
        claim = json.loads(payload)
        kind = (claim["_type"], claim["predicateType"])
        good = kind == (STATEMENT, PREDICATE) and all(isinstance(item, dict) for item in claim["subject"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refused(name, "the statement cannot be read", str(error)) from error
    if not good:
        raise _refused(name, "the statement is of another kind", f"{kind[1]}, not SLSA provenance v1")
    return dict(claim)
