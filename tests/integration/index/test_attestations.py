"""PEP 740: what lies beside a wheel is the simple API's provenance; Sigstore's tools read what we write."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.commands import publish, slim, verify
from scripts.core.console import Console
from scripts.core.errors import AuditError, PublishError
from scripts.core.files import file_sha256
from scripts.index.attestations import bundle, check_provenance
from tests.integration.audit.test_official_wheel import wheel as official
from tests.integration.index.test_provenance import key_pair, wheel_with_sbom
from tests.integration.index_servers import tool
from tests.integration.upload_servers import CACHE

__all__ = ["official"]
READERS = ("sigstore==4.5.1", "pypi-attestations==0.0.30", "in-toto-attestation==0.9.3")
_SOURCE, _WORKFLOW = "https://github.com/team/vllm-wheels", ".github/workflows/release.yml"


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a certificate with what Sigstore's authority writes about a workflow's identity, signed by nobody."""
    claims = {
        8: "https://token.actions.githubusercontent.com",
        12: _SOURCE,
        18: f"{_SOURCE}/{_WORKFLOW}@refs/heads/main",
    }
    name = x509.Name([])
    when = dt.datetime(2026, 11, 25, tzinfo=dt.timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(7).not_valid_before(when).not_valid_after(when + dt.timedelta(minutes=10))
    for number, text in claims.items():
        oid = x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}")
        value = b"\x0c" + bytes([len(text)]) + text.encode()
        made = made.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def attestation(name: str, sha256: str) -> bytes:
    """Return an attestation in the form of PEP 740, as a publishing workflow leaves it; no log has seen it."""
    key = ec.generate_private_key(ec.SECP256R1())
    statement = json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": sha256}}],
            "predicateType": "https://docs.pypi.org/attestations/publish/v1",
            "predicate": None,
        }
    ).encode()
    kind = b"application/vnd.in-toto+json"
    signature = key.sign(
        b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(statement), statement), ec.ECDSA(hashes.SHA256())
    )
    envelope = {
        "statement": base64.b64encode(statement).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    material = {
        "certificate": base64.b64encode(_certificate(key)).decode(),
        "transparency_entries": [{"logIndex": "1"}],
    }
    return json.dumps({"version": 1, "verification_material": material, "envelope": envelope}).encode()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    private, _ = key_pair(tmp_path, "key")
    wheel = wheel_with_sbom(tmp_path)
    wheel.with_name(wheel.name + ".publish.attestation").write_bytes(attestation(wheel.name, file_sha256(wheel)))
    publish.main([str(wheel), "--to", str(tmp_path / "index"), "--sign-key", str(private)], Console(quiet=True))
    return next((tmp_path / "index/files").rglob("*.whl"))


def test_an_attestation_beside_a_wheel_becomes_the_provenance_of_its_page(published: Path, tmp_path: Path) -> None:
    provenance = json.loads(published.with_name(published.name + ".provenance").read_text())
    [found] = provenance["attestation_bundles"]
    assert found["publisher"] == {"kind": "GitHub", "repository": "team/vllm-wheels", "workflow": "release.yml"}
    page = tmp_path / "index/simple/vllm/index.json"
    [file] = json.loads(page.read_text())["files"]
    assert (page.parent / file["provenance"].replace("%2B", "+")).resolve() == published.with_name(
        published.name + ".provenance"
    )
    html = (tmp_path / "index/simple/vllm/index.html").read_text()
    assert f'data-provenance="{file["provenance"]}"' in html


def test_an_attestation_of_another_wheel_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    wheel = wheel_with_sbom(tmp_path)
    beside = wheel.with_name(wheel.name + ".publish.attestation")
    good = json.loads(attestation(wheel.name, file_sha256(wheel)))
    for bad in (
        attestation(wheel.name, "0" * 64),
        attestation("other-1-py3-none-any.whl", file_sha256(wheel)),
        b"{}",
        b"x",
        json.dumps({**good, "verification_material": {**good["verification_material"], "certificate": ""}}).encode(),
        json.dumps(
            {**good, "verification_material": {**good["verification_material"], "certificate": "AAAA"}}
        ).encode(),
    ):
        beside.write_bytes(bad)
        with pytest.raises((PublishError, AuditError)):
            publish.main([str(wheel), "--to", str(tmp_path / "index")], Console(quiet=True))
        assert not (tmp_path / "index" / "index.html").exists()


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["version", "attestation_bundles", "attestations", "publisher", "kind", "envelope"]), x
            )
        ),
    )
)
def test_any_json_as_provenance_is_refused(value: object) -> None:
    for call in (
        lambda: check_provenance(json.dumps(value).encode(), "x-1-py3-none-any.whl", "0" * 64),
        lambda: bundle([json.dumps(value).encode()], "x-1-py3-none-any.whl", "0" * 64),
    ):
        with pytest.raises((PublishError, AuditError)):
            call()


# Run by a Python that has the readers: they must take our files as they are.
READ = """
import json, sys
from pathlib import Path
from google.protobuf import json_format
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from pypi_attestations import Attestation, Provenance
from securesystemslib.dsse import Envelope as Dsse
from securesystemslib.signer import SSlibKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sigstore.dsse import Envelope

wheel, public = Path(sys.argv[1]), Path(sys.argv[2])
line = wheel.with_name(wheel.name + ".intoto.jsonl").read_bytes()
envelope = Envelope._from_json(line)
assert sorted(json.loads(envelope.to_json())) == sorted(json.loads(line)) == ["payload", "payloadType", "signatures"]
payload = Dsse.from_dict(json.loads(line)).payload
Dsse.from_dict(json.loads(line)).verify([SSlibKey.from_crypto(load_pem_public_key(public.read_bytes()))], 1)
key = load_pem_public_key(public.read_bytes())
key.verify(envelope.signature, envelope.pae())
statement = statement_pb2.Statement()
json_format.Parse(payload, statement)
Statement.copy_from_pb(statement).validate()
predicate = provenance_pb2.Provenance()
json_format.Parse(json.dumps(json.loads(payload)["predicate"]), predicate)
assert predicate.build_definition.build_type and predicate.run_details.builder.id
provenance = Provenance.model_validate_json(wheel.with_name(wheel.name + ".provenance").read_bytes())
[bundle] = provenance.attestation_bundles
assert bundle.publisher.kind == "GitHub" and bundle.publisher.repository == "team/vllm-wheels"
assert bundle.attestations[0].statement["subject"][0]["name"] == wheel.name
assert bundle.attestations[0].certificate_claims
print(statement.predicate_type)
"""


def readers() -> Path:
    """Return the Python of an environment with Sigstore's, in-toto's and PyPI's readers, made once."""
    folder = CACHE / f"readers-{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([tool("uv"), "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        packages = [*READERS, "securesystemslib[crypto]"]
        subprocess.run([tool("uv"), "pip", "install", "-q", "--python", python, *packages], check=True)
        (folder / "made").touch()
    return python


@pytest.mark.servers
@pytest.mark.large
def test_sigstore_in_toto_and_pypi_attestations_read_what_is_published(published: Path, tmp_path: Path) -> None:
    assert read_by_others(published, tmp_path) == "https://slsa.dev/provenance/v1"


def read_by_others(wheel: Path, folder: Path) -> str:
    """Let sigstore, in-toto and pypi-attestations read what lies beside a wheel, signed with `folder`/key.pub."""
    command = [str(readers()), "-c", READ, str(wheel), str(folder / "key.pub")]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.large
def test_the_official_wheel_slimmed_is_signed_published_verified_and_read_by_others(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    private, public = key_pair(tmp_path, "key")
    console = Console(quiet=True)
    slim.main([str(official), "--arch", "8.6", "--out", str(tmp_path / "slim")], console)
    [wheel] = (tmp_path / "slim").glob("*.whl")
    wheel.with_name(wheel.name + ".publish.attestation").write_bytes(attestation(wheel.name, file_sha256(wheel)))
    publish.main([str(wheel), "--to", str(tmp_path / "index"), "--sign-key", str(private)], console)
    [there] = (tmp_path / "index/files").rglob("*.whl")
    bill = json.loads(there.with_name(there.name + ".cdx.json").read_text())
    [ancestor] = bill["metadata"]["component"]["pedigree"]["ancestors"]
    assert (ancestor["version"], ancestor["hashes"][0]["content"]) == ("0.15.1", file_sha256(official))
    assert verify.main([str(there), "--key", str(public), "--json", str(tmp_path / "said.json")], console) == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["archs"], said["source"]) == ("8.6", f"{official.name} {file_sha256(official)}")
    assert read_by_others(there, tmp_path) == "https://slsa.dev/provenance/v1"
