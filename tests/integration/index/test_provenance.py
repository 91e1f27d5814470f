"""SBOM and provenance: made from a recipe and a report, checked by `nox -s verify`, every tampering told apart."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from scripts.commands import publish
from scripts.commands import slim as slim_command
from scripts.commands import verify as verify_command
from scripts.core.console import Console
from scripts.core.errors import AuditError, PublishError, UsageError
from scripts.core.files import file_sha256
from scripts.cuda.archs import parse_arch_list
from scripts.formats.sbom import Original, cut_sbom
from scripts.formats.wheel import open_wheel
from scripts.index import verify as index_verify
from scripts.index.provenance import check, load_key
from scripts.package.sbom import add_sbom, make_sbom
from scripts.recipe.files import load_recipe, recipe_names
from scripts.slim.wheel import slim_wheel
from tests.builds import put_report
from tests.fatbins import container, sass, shared_object
from tests.wheels import make_wheel

REPORT: dict[str, Any] = {
    "recipe": {"name": "quickstart", "digest": "d", "notice": ""},
    "archs": "9.0",
    "build": "key",
    "torch": {"version": "2.11.0", "cuda": "13.0"},
    "toolchain": {"key": "k", "python": "3.11.2", "host_compiler": "g++ 12", "cuda": "wheels", "packages": {}},
    "patches": [],
    "sources": [
        {"name": "source", "version": "0.20.1", "project": "vllm 0.20.1", "kind": "sdist", "sha256": "7" * 64},
        {"name": "cutlass", "version": "4.4.2", "repository": "https://x/c", "commit": "8" * 40},
    ],
}


def key_pair(folder: Path, name: str, *, private: Any = None, password: bytes = b"") -> tuple[Path, Path]:
    key = private or ed25519.Ed25519PrivateKey.generate()
    closed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(key.private_bytes(*form))
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


def wheel_with_sbom(folder: Path, version: str = "0.20.1+cu130") -> Path:
    recipe = load_recipe("quickstart")
    raw = make_wheel(folder, {"vllm/__init__.py": b"x = 1\n" * 50}, version=version)
    sbom = make_sbom(recipe, version, patches=[("vllm/a.patch", "0" * 64)], packages={"cmake": "3.31"})
    wheel = add_sbom(raw, sbom, folder / "final")
    put_report(wheel, **REPORT)
    return wheel


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a published wheel and the public key."""
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    private, public = key_pair(tmp_path, "key")
    wheel = wheel_with_sbom(tmp_path)
    publish.main([str(wheel), "--to", str(tmp_path / "index"), "--sign-key", str(private)], Console(quiet=True))
    return next((tmp_path / "index/files").rglob("*.whl")), public


def verify(*arguments: object) -> int:
    return verify_command.main([str(word) for word in arguments], Console(quiet=True))


def test_a_published_wheel_verifies_with_the_key_and_its_sources_are_told(
    signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wheel, public = signed
    assert verify(wheel, "--key", public, "--json", tmp_path / "v.json") == 0
    out = capsys.readouterr().out
    assert "pkg:pypi/vllm@0.20.1" in out
    assert f"git+https://x/c@{'8' * 40}" in out
    envelope = wheel.with_name(wheel.name + ".intoto.jsonl").read_text()
    assert len(envelope.splitlines()) == 1
    claim = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    [report] = claim["predicate"]["runDetails"]["byproducts"]
    assert report["digest"]["sha256"] == file_sha256(wheel.with_name(wheel.name + ".report.json"))
    assert claim["predicateType"] == "https://slsa.dev/provenance/v1"


def _payload(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def edit(row: dict[str, Any]) -> None:
        claim = json.loads(base64.b64decode(row["payload"]))
        change(claim)
        row["payload"] = base64.b64encode(json.dumps(claim).encode()).decode()

    return edit


def _flip(row: dict[str, Any]) -> None:
    raw = bytearray(base64.b64decode(row["signatures"][0]["sig"]))
    raw[3] ^= 1
    row["signatures"][0]["sig"] = base64.b64encode(bytes(raw)).decode()


def _flip_for_another(row: dict[str, Any]) -> None:
    _flip(row)
    row["signatures"][0]["keyid"] = "0" * 64


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_payload(lambda claim: claim["subject"][0]["digest"].update(sha256="0" * 64)), "the signature is wrong"),
        (_payload(lambda claim: claim.update(predicate={})), "the signature is wrong"),
        (_flip, "the signature is wrong"),
        (lambda row: row["signatures"][0].update(sig="%%%"), "the provenance cannot be read"),
        (_flip_for_another, "it is signed with another key"),
        (lambda row: row.update(payloadType="text/plain"), "the provenance cannot be read"),
        (lambda row: row.update(signatures=[]), "the provenance cannot be read"),
        (lambda row: row.update(payload="?"), "the provenance cannot be read"),
    ],
)
def test_a_tampered_envelope_fails_with_its_own_message(
    signed: tuple[Path, Path], edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    wheel, public = signed
    path = wheel.with_name(wheel.name + ".intoto.jsonl")
    row = json.loads(path.read_text())
    edit(row)
    path.write_text(json.dumps(row))
    with pytest.raises(AuditError, match=message):
        verify(wheel, "--key", public)


def test_a_tampered_wheel_another_key_and_a_renamed_wheel_fail_with_their_own_messages(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, public = signed
    with pytest.raises(AuditError, match="signed with another key"):
        verify(wheel, "--key", key_pair(tmp_path, "other")[1])
    other = wheel.with_name(wheel.name.replace("cu130", "cu131"))
    other.write_bytes(wheel.read_bytes())
    with pytest.raises(AuditError, match="renamed"):
        verify(other, "--key", public, "--provenance", wheel.with_name(wheel.name + ".intoto.jsonl"))
    with pytest.raises(AuditError, match=r"provenance .* cannot be read"):
        verify(other, "--key", public, "--provenance", tmp_path / "gone")
    data = bytearray(wheel.read_bytes())
    data[200] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(AuditError, match="the wheel is not the one that was signed"):
        verify(wheel, "--key", public)
    with pytest.raises(AuditError):
        verify(wheel)  # without a key RECORD or the archive tells


def test_a_wheel_that_was_never_signed_is_told_so_and_how_to_have_it_signed(tmp_path: Path) -> None:
    wheel = wheel_with_sbom(tmp_path)
    _, public = key_pair(tmp_path, "key")
    with pytest.raises(AuditError, match="has no signature here") as caught:
        verify(wheel, "--key", public)
    assert "ask the publisher to sign" in caught.value.fix[0]
    assert f"--sign-key PEM {wheel}" in caught.value.fix[1]
    beside = wheel.with_name(wheel.name + ".provenance")
    beside.write_text("{}")
    with pytest.raises(AuditError) as caught:
        verify(wheel, "--key", public)
    assert caught.value.fix[0] == f"take what is there: --provenance {beside}"
    for wrong in (tmp_path / "gone.pub", tmp_path / "key.pem"):  # not there; the private half
        with pytest.raises(UsageError, match="not a usable public key"):
            verify(wheel, "--key", wrong)


def test_an_sbom_that_is_missing_damaged_or_of_another_wheel_is_told(tmp_path: Path) -> None:
    plain = make_wheel(tmp_path, {"vllm/__init__.py": b""}, version="1.0+cu130")
    with pytest.raises(AuditError, match="has no SBOM") as caught:
        verify(plain)
    assert caught.value.fix[0] == "check the rest: --no-sbom"
    assert verify(plain, "--no-sbom") == 0
    sbom = make_sbom(load_recipe("quickstart"), "2.0+cu130", patches=[], packages={})
    with pytest.raises(AuditError, match="SBOM is of another wheel"):
        verify(add_sbom(plain, sbom, tmp_path / "a"))
    for bad in (b"{}", b"\xff", b'{"bomFormat": "CycloneDX"}', b"[" * 20_000):
        with pytest.raises(AuditError, match=r"SBOM is not CycloneDX 1\.6"):
            verify(add_sbom(plain, bad, tmp_path / "b"))
    with pytest.raises(AuditError, match="RECORD"):
        verify(make_wheel(tmp_path, {"vllm/x.py": b"1"}, record={"vllm/x.py": "sha256=x,1"}), "--no-sbom")
    with pytest.raises(UsageError):
        verify(tmp_path / "gone.whl")


@pytest.mark.parametrize("name", recipe_names())
def test_the_sbom_of_every_recipe_is_valid_names_all_that_is_compiled_in_and_never_varies(name: str) -> None:
    recipe = load_recipe(name)
    version = recipe.version(recipe.archs)
    packages = {"nvidia-cuda-nvcc": "13.0.88", "pip": "1"}
    first, second = (make_sbom(recipe, version, patches=[("p", "1" * 64)], packages=packages) for _ in range(2))
    assert first == second
    assert index_verify.schema_problem(first) == ""
    bom = json.loads(first)
    names = {item["name"] for item in bom["components"]}
    assert names == {"torch", "cuda-toolkit", "nvidia-cuda-nvcc", *recipe.needed_dependencies()}
    assert "timestamp" not in first.decode()
    assert "serialNumber" not in bom
    for dependency in recipe.needed_dependencies().values():
        pin = getattr(dependency.source, "commit", None) or getattr(dependency.source, "sha256", None)
        assert str(pin) in first.decode()
    original = Original("vllm-1-py3-none-any.whl", "5" * 64, "vllm", version, "9.0")
    slim = cut_sbom(first, "0.1+cu1.sm90", original)
    cut = json.loads(slim)
    assert index_verify.schema_problem(slim) == ""
    assert cut_sbom(None, "0.1+cu1.sm90", original) == cut_sbom(None, "0.1+cu1.sm90", original)
    assert cut["metadata"]["component"]["version"] == "0.1+cu1.sm90"
    assert cut["metadata"]["component"]["pedigree"]["ancestors"][0]["version"] == version


def test_a_slim_wheel_has_an_sbom_of_its_own(tmp_path: Path) -> None:
    library = shared_object(tmp_path / "x.so", {"a.cu": container(sass("90", "a"), sass("80", "b"))}).read_bytes()
    raw = make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="0.20.1+cu130")
    sbom = make_sbom(load_recipe("quickstart"), "0.20.1+cu130", patches=[], packages={})
    assert verify(slim_wheel(add_sbom(raw, sbom, tmp_path / "f"), parse_arch_list("9.0"), tmp_path / "out")) == 0


def test_a_slimmed_upstream_wheel_can_be_signed_and_its_sbom_names_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    private, public = key_pair(tmp_path, "key")
    library = shared_object(tmp_path / "x.so", {"a.cu": container(sass("90", "a"), sass("80", "b"))}).read_bytes()
    official = make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="0.15.1")
    slim = slim_wheel(official, parse_arch_list("9.0"), tmp_path / "out")
    with open_wheel(slim) as opened:
        bom = index_verify.check_sbom(opened)
    [ancestor] = bom["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor["version"] == "0.15.1"
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": file_sha256(official)}]
    command = [str(slim), "--to", str(tmp_path / "index"), "--no-audit", "--sign-key", str(private)]
    publish.main(command, Console(quiet=True))
    [there] = (tmp_path / "index/files").rglob("*.whl")
    assert verify(there, "--key", public, "--json", tmp_path / "v.json") == 0
    said = json.loads((tmp_path / "v.json").read_text())
    assert said["archs"] == "9.0"
    assert said["source"] == f"{official.name} {file_sha256(official)}"


@pytest.mark.parametrize("ours", [False, True])
def test_a_wheel_that_nox_slim_cut_is_signed_as_what_it_is_with_its_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    private, public = key_pair(tmp_path, "key")
    library = shared_object(tmp_path / "x.so", {"a.cu": container(sass("90", "a"), sass("80", "b"))}).read_bytes()
    fat = make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="0.15.1")
    if ours:
        put_report(fat, **REPORT)
    slim_command.main([str(fat), "--arch", "9.0", "--out", str(tmp_path / "out")], Console(quiet=True))
    [slim] = (tmp_path / "out").glob("*.whl")
    publish.main([str(slim), "--to", str(tmp_path / "index"), "--sign-key", str(private)], Console(quiet=True))
    [there] = (tmp_path / "index/files").rglob("*.whl")
    assert verify(there, "--key", public) == 0
    envelope = json.loads(there.with_name(there.name + ".intoto.jsonl").read_text())
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    definition = predicate["buildDefinition"]
    assert definition["buildType"] == "urn:wheelsmith:slim:v1"
    original, *sources = definition["resolvedDependencies"]
    assert original == {"name": fat.name, "digest": {"sha256": file_sha256(fat)}}
    assert [item["name"] for item in sources] == (["source", "cutlass"] if ours else [])
    [report] = predicate["runDetails"]["byproducts"]
    assert report["digest"]["sha256"] == file_sha256(there.with_name(there.name + ".report.json"))


@pytest.mark.parametrize("kind", ["cosign", "bundle", "two lines", "attestation", "rsa", "url alphabet", "no keyid"])
def test_envelopes_of_other_tools_are_taken(tmp_path: Path, kind: str) -> None:
    wheel = wheel_with_sbom(tmp_path)
    key: Any = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    _, public = key_pair(tmp_path, "other", private=key)
    subject = [{"name": f"dist/{wheel.name}", "digest": {"sha256": file_sha256(wheel)}}]
    claim = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://example.org/anything/v3",
        "subject": subject,
        "predicate": {"buildDefinition": {"externalParameters": ["odd"], "resolvedDependencies": [7]}},
    }
    payload = json.dumps(claim).encode()
    message = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    if kind == "rsa":
        signature = key.sign(message, padding.PKCS1v15(), hashes.SHA256())  # openssl's and cosign's way
    else:
        signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    encode = base64.urlsafe_b64encode if kind == "url alphabet" else base64.b64encode
    rows = [{"sig": encode(signature).decode(), **({} if kind == "no keyid" else {"keyid": ""})}]
    envelope = {
        "payloadType": "application/vnd.in-toto+json",
        "payload": encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(b"another's").decode(), "keyid": "x"}, *rows],
    }
    text = json.dumps(envelope)
    if kind == "bundle":
        text = json.dumps({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope})
    if kind == "attestation":
        inner = {"statement": base64.b64encode(payload).decode(), "signature": base64.b64encode(signature).decode()}
        text = json.dumps({"version": 1, "verification_material": {}, "envelope": inner})
    if kind == "two lines":
        text = json.dumps({**envelope, "signatures": envelope["signatures"][:1]}) + "\n" + text + "\n"
    (tmp_path / "theirs.json").write_text(text)
    assert verify(wheel, "--key", public, "--provenance", tmp_path / "theirs.json") == 0
    with pytest.raises(AuditError, match="signed with another key"):
        verify(wheel, "--key", key_pair(tmp_path, "nobody")[1], "--provenance", tmp_path / "theirs.json")


def test_without_a_key_nothing_is_called_verified(
    signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    verify(signed[0], "--json", tmp_path / "v.json")
    said = capsys.readouterr()
    assert "NOT verified" in said.out
    assert json.loads((tmp_path / "v.json").read_text())["verified"] is False
    verify(signed[0], "--key", signed[1], "--json", tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text())["verified"] is True


def test_adding_the_sbom_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = make_wheel(tmp_path, {"vllm/__init__.py": b"1"}, version="1.0")
    first, second = (add_sbom(raw, b"{}", tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_keys_that_cannot_sign_or_verify_are_usage_errors(
    signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "final" / signed[0].name
    command = [str(wheel), "--to", str(tmp_path / "index2"), "--sign-key"]
    locked, _ = key_pair(tmp_path, "locked", password=b"pass")
    strange, _ = key_pair(tmp_path, "dsa", private=dsa.generate_private_key(2048))
    (tmp_path / "junk").write_text("junk")
    for path in (locked, strange, tmp_path / "junk", tmp_path / "gone"):
        with pytest.raises(UsageError):
            publish.main([*command, str(path)], Console(quiet=True))
    for path in (tmp_path / "junk", tmp_path / "gone"):
        with pytest.raises(UsageError):
            load_key(path)
    monkeypatch.setenv("WHEELSMITH_KEY_PASSWORD", "pass")
    assert publish.main([*command, str(locked)], Console(quiet=True)) == 0
    monkeypatch.delenv("WHEELSMITH_KEY_PASSWORD")
    private, public = key_pair(tmp_path, "ec", private=ec.generate_private_key(ec.SECP256R1()))
    publish.main([*command[:2], str(tmp_path / "index3"), "--sign-key", str(private)], Console(quiet=True))
    assert verify(next((tmp_path / "index3/files").rglob("*.whl")), "--key", public) == 0


def test_a_wheel_without_a_build_report_gets_no_provenance(signed: tuple[Path, Path], tmp_path: Path) -> None:
    plain = make_wheel(tmp_path, {"vllm/x.py": b""}, version="3.0")
    key = tmp_path / "key.pem"
    with pytest.raises(PublishError, match="how it was built"):
        publish.main(
            [str(plain), "--to", str(tmp_path / "i"), "--no-audit", "--sign-key", str(key)], Console(quiet=True)
        )


@given(
    st.one_of(
        st.binary(max_size=300), st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
    )
)
def test_any_bytes_as_an_envelope_are_refused(data: bytes) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(AuditError):
        check(data, key, name="x.whl", sha256="0" * 64)
