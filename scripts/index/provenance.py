"""Provenance beside a wheel, `NAME.whl.intoto.jsonl`: in-toto statements in DSSE envelopes, one per line of JSON.

We write SLSA v1, signed with a key file: no network and no service, and who has the public key can check it for ever.
We read what other tools write: envelopes of any in-toto statement about the wheel, with or without a key id, in the
base64 of either alphabet; Sigstore bundles; PEP 740 attestations. See docs/publishing.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from scripts.core.errors import AuditError, UsageError
from scripts.index.entry import same_wheel

SUFFIX = ".intoto.jsonl"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_SIZE = 16 << 20  # bytes of a file of envelopes that is read into memory
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_EC_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True)
class Signed:
    """A payload and one signature over it."""

    payload: bytes
    kind: str
    """Payload type: what the signature covers beside the payload."""
    signature: bytes
    keyid: str
    """What the signer called the key: a hint that proves nothing."""


@dataclass(frozen=True)
class KeyPair:
    """A private key that signs, and the public one that checks."""

    signer: CryptoSigner
    public: PublicKey


def load_signer(path: Path, password: str = "") -> KeyPair:
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
            f"{path} is not a usable private key",
            why=str(error).splitlines()[0],
            fix=["openssl genpkey -algorithm ed25519 -out key.pem", "openssl pkey -in key.pem -pubout -out pub.pem"],
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise UsageError(f"{path}: keys of this kind cannot sign", fix="use Ed25519, ECDSA or RSA")
    return KeyPair(CryptoSigner(key), key.public_key())


def load_key(path: Path) -> PublicKey:
    """Read a public key (PEM: Ed25519, ECDSA, RSA). Raises UsageError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a usable public key",
            why=(error.strerror if isinstance(error, OSError) else "") or str(error).splitlines()[0],
            fix="--key takes the public half of the key that signed: openssl pkey -in key.pem -pubout -out pub.pem",
        ) from error
    if not isinstance(key, PublicKey):
        raise UsageError(f"{path}: keys of this kind are not checked", fix="use Ed25519, ECDSA or RSA")
    return key


def key_id(key: PublicKey) -> str:
    """Return the name that our signatures have of a key: a digest of it."""
    return str(SSlibKey.from_crypto(key).keyid)


def sign(claim: Mapping[str, Any], keys: KeyPair) -> bytes:
    """Return the statement in a signed envelope, one line of JSON, with the fields of DSSE and no others."""
    envelope = Envelope(json.dumps(claim, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(keys.signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode() + b"\n"


def is_signed(data: bytes, claim: Mapping[str, Any], key: PublicKey) -> bool:
    """Tell whether a file of envelopes has this very statement with a right signature of this key."""
    try:
        found = list(signatures(data, "it"))
    except AuditError:
        return False
    wanted = json.dumps(claim, sort_keys=True).encode()
    return any(one.payload == wanted and made_by(key, one) for one in found)


def check(data: bytes, key: PublicKey, *, name: str, sha256: str) -> dict[str, Any]:
    """Return a statement that `key` signed about this wheel. Raises AuditError, each cause its own."""
    found = list(signatures(data, name))
    right = [one for one in found if made_by(key, one)]
    if not right:
        own = key_id(key)
        if any(one.keyid == own for one in found):
            raise _refused(name, "the signature is wrong", "statement or signature was changed after it was signed")
        others = ", ".join(sorted({one.keyid or "a key without name" for one in found}))
        raise _refused(name, "it is signed with another key", f"with {others}, not {own}; or it was changed")
    claims = [_statement(one, name) for one in right]
    about = [claim for claim in claims if _names_of(claim, sha256)]
    if not about:
        signed = ", ".join(str(item["digest"].get("sha256")) for claim in claims for item in claim["subject"])
        raise _refused(name, "the wheel is not the one that was signed", f"its sha256 is {sha256}, signed was {signed}")
    names = [text for claim in about for text in _names_of(claim, sha256)]
    wheels = [text.rsplit("/", 1)[-1] for text in names if text.endswith(".whl")]
    if wheels and not any(same_wheel(text, name) for text in wheels):
        raise _refused(name, "the wheel was renamed", f"signed as {', '.join(wheels)}")
    return about[-1]


def signatures(data: bytes, name: str) -> Iterator[Signed]:
    """Yield all signatures of envelopes, bundles and attestations, one JSON or one per line. Raises AuditError."""
    try:
        rows = [json.loads(data)]
    except (ValueError, RecursionError):
        rows = _lines(data, name)
    found = False
    for row in rows:
        for envelope in _envelopes(row):
            for one in _signatures(envelope, name):
                found = True
                yield one
    if not found:
        raise _unreadable(name, "there is no DSSE envelope in it")


def _lines(data: bytes, name: str) -> list[Any]:
    try:
        return [json.loads(line) for line in data.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, f"it is no DSSE envelope: {error}") from error


def _envelopes(row: Any) -> Iterator[Mapping[str, Any]]:
    """Find the envelopes in what tools write around them."""
    if not isinstance(row, dict):
        return
    if isinstance(row.get("dsseEnvelope"), dict):  # a Sigstore bundle
        yield row["dsseEnvelope"]
    elif isinstance(row.get("envelope"), dict):  # a PEP 740 attestation
        inner = row["envelope"]
        signature = {"sig": inner.get("signature")}
        yield {"payload": inner.get("statement"), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}
    elif isinstance(row.get("attestation_bundles"), list):  # a PEP 740 provenance
        for bundle in row["attestation_bundles"]:
            for attestation in (bundle.get("attestations") or []) if isinstance(bundle, dict) else []:
                yield from _envelopes(attestation)
    else:
        yield row


def _signatures(envelope: Mapping[str, Any], name: str) -> Iterator[Signed]:
    rows = envelope.get("signatures")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise _unreadable(name, "it is no DSSE envelope of an in-toto statement")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _unreadable(name, "its signatures are no list")
    for row in rows:
        try:
            payload, signature = unbase64(envelope["payload"]), unbase64(row["sig"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise _unreadable(name, f"payload or signature is no base64: {error}") from error
        yield Signed(payload, PAYLOAD_TYPE, signature, str(row.get("keyid") or ""))


def unbase64(text: str) -> bytes:
    """Read base64 of the standard alphabet or the one for URLs, as DSSE allows. Raises ValueError."""
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def made_by(key: PublicKey, one: Signed) -> bool:
    """Tell whether a key made a signature, whatever the envelope calls the key."""
    kind = one.kind.encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(one.payload), one.payload)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(one.signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(one.signature, message, ec.ECDSA(_EC_HASHES.get(key.curve.name, hashes.SHA256())))
        else:
            return _made_by_rsa(key, one.signature, message)
    except InvalidSignature:
        return False
    return True


def _made_by_rsa(key: rsa.RSAPublicKey, signature: bytes, message: bytes) -> bool:
    """Try PSS, as securesystemslib signs, and PKCS #1, as openssl and cosign do."""
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.AUTO)
    for scheme in (pss, padding.PKCS1v15()):
        try:
            key.verify(signature, message, scheme, hashes.SHA256())
        except InvalidSignature:
            continue
        return True
    return False


def _statement(one: Signed, name: str) -> dict[str, Any]:
    try:
        claim = json.loads(one.payload)
        good = claim["_type"] in _STATEMENTS and isinstance(claim["predicateType"], str)
        good = good and all(isinstance(item["digest"], dict) for item in claim["subject"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refused(name, "the statement cannot be read", f"{type(error).__name__}: {error}") from error
    if not good:
        raise _refused(name, "the statement cannot be read", "it is no in-toto statement")
    return dict(claim)


def _names_of(claim: Mapping[str, Any], sha256: str) -> list[str]:
    return [str(item.get("name") or "") for item in claim["subject"] if item["digest"].get("sha256") == sha256]


def _unreadable(name: str, why: str) -> AuditError:
    return _refused(name, "the provenance cannot be read", why)


def _refused(name: str, what: str, why: str) -> AuditError:
    return AuditError(
        f"{name}: {what}", why=why, fix="do not install it; get wheel and provenance again from who built it"
    )
