"""The runtime image without building one: pre-checks, command lines, explanations, report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import subprocess
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from packaging.licenses import canonicalize_license_expression
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from scripts.audit.collect import audit_wheel
from scripts.audit.models import AuditReport
from scripts.commands import runtime_image
from scripts.core.cache import Cache
from scripts.core.console import Console
from scripts.core.errors import ImageError, UsageError
from scripts.core.paths import ROOT
from scripts.downloads.access import Access
from scripts.downloads.indexes import Indexes
from scripts.downloads.mirrors import parse_mirrors
from scripts.image import build as image_build
from scripts.image import context as context_module
from scripts.image.base import debian_base, mmdebstrap_words, parse_debian, reachable
from scripts.image.checks import Facts, Installed, Result, check_image, inside, read_facts, stopped_cleanly
from scripts.image.choice import ENGINES, find_engine
from scripts.image.context import (
    ENCODINGS,
    Base,
    WheelFacts,
    check_base,
    find_lock,
    find_wheel,
    have_encodings,
    make_context,
    read_wheel,
    write_secrets,
)
from scripts.image.engine import Engine, Layer, Plan, Program, StepClock, explained
from scripts.image.report import ImageReport, Phase, as_json, file_stem, show
from scripts.image.sbom import image_sbom, licence_label, spdx
from scripts.index.provenance import KeyPair
from scripts.toolchain.locks import runtime_options
from tests.accesses import make_access
from tests.fatbins import container, sass, shared_object
from tests.wheels import make_wheel

BOOKWORM = Base((3, 11), "2.36", "x86_64")


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "python": (3, 11),
        "glibc": "2.36",
        "machine": "x86_64",
        "headers": True,
        "python_packages": (
            Installed("torch", "2.9.1", 900, "", ("BSD-3-Clause",), "a" * 64),
            Installed("Jinja2", "3.1.6", 100, "", ("License :: OSI Approved :: BSD License",), "b" * 64),
        ),
        "debian_packages": (Installed("libc6", "2.36-9", 4096, "amd64", ("LGPL-2.1+", "GFDL-1.3"), "c" * 64),),
        "setuid": ("/bin/su",),
        "writable": (),
        "caches": (),
        "secrets": (),
        "compiler_files": (),
    }
    return Facts(**{**values, **changes})


def wheel_facts(path: Path = Path("vllm-0.15.1+cu128.sm86-cp38-abi3-manylinux_2_31_x86_64.whl")) -> WheelFacts:
    return WheelFacts(path, "0.15.1+cu128.sm86", "ab" * 32, 10, "vllm-0.15.1-cu128", "12.0", "525.60.13", "2.9.1", {})


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `docker`, `podman` and `buildah` on the path that note their arguments and answer from files."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "podman", "buildah"):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n'
            f'for word in "$@"; do\n'
            f'  if [ -e "{tmp_path}/fail-$word" ]; then cat "{tmp_path}/fail-$word"; exit 1; fi\ndone\n'
            f'if [ -e "{tmp_path}/answer-$1" ]; then cat "{tmp_path}/answer-$1"; fi\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def engine(folder: Path, name: str) -> Engine:
    return ENGINES[name](folder / "image.log", make_access(Cache.open(folder / "cache")))


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_the_newest_wheel_is_taken_and_a_missing_one_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no wheel"):
        find_wheel(None, wheelhouse=tmp_path)
    with pytest.raises(ImageError, match="absent"):
        find_wheel(tmp_path / "absent.whl")
    old, new = make_wheel(tmp_path, {}), make_wheel(tmp_path, {}, version="0.15.2")
    os.utime(old, (1, 1))
    assert find_wheel(None, wheelhouse=tmp_path) == new
    assert ImageError.exit_code == 11


def test_the_lowest_driver_of_a_wheel_is_read_from_its_gpu_code(tmp_path: Path) -> None:
    library = shared_object(tmp_path / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    found = read_wheel(make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="0.15.1+cu128.sm86"))
    assert (found.cuda, found.driver) == ("12.0", "525.60.13")  # SASS of CUDA 12 for 8.6: minor version compatibility
    assert found.unpacked > len(library)


def test_a_wheel_is_audited_once_for_its_driver_and_for_every_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited: list[Path] = []

    def counting(path: Path, *words: Any, **more: Any) -> AuditReport:
        audited.append(path)
        return audit_wheel(path, *words, **more)

    monkeypatch.setattr(context_module, "audit_wheel", counting)
    library = shared_object(tmp_path / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    found = read_wheel(make_wheel(tmp_path, {"vllm/_C.abi3.so": library}, version="0.15.1+cu128.sm86"))
    assert len(audited) == 1
    assert {number: row["ok"] for number, row in found.gpus["gpus"].items() if number in {"8.0", "8.6", "8.9"}} == {
        "8.0": False,
        "8.6": True,
        "8.9": True,
    }
    assert (found.gpus["cuda"], found.gpus["version"]) == ("12.0", "0.15.1+cu128.sm86")


def test_what_is_installed_is_held_against_the_audited_wheel(stand_in: Path) -> None:
    library = shared_object(stand_in / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    members = {"vllm/_C.abi3.so": library, "vllm/__init__.py": b"1\n"}
    wheel = make_wheel(stand_in, members, version="0.15.1+cu128.sm86")
    site = stand_in / "image" / "opt" / "vllm" / "lib" / "python3.11" / "site-packages"
    program = stand_in / "bin" / "docker"
    program.write_text(f'#!/bin/sh\nif [ "$1" = cp ]; then cp -r "{stand_in}/image/${{2#*:}}" "$3"; else echo c1; fi\n')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "vllm" / "more.pyc").write_bytes(b"bytecode")
    words = (engine(stand_in, "docker"), "x:1", facts(), wheel_facts(wheel))
    assert image_build.installed_as_audited(*words).ok
    (site / "vllm" / "_C.abi3.so").write_bytes(library[:-1] + b"x")
    found = image_build.installed_as_audited(*words)
    assert (found.ok, found.said) == (False, "not so: vllm/_C.abi3.so")
    (site / "vllm" / "_C.abi3.so").write_bytes(library)
    (site / "vllm" / "__init__.py").unlink()
    assert not image_build.installed_as_audited(*words).ok


def test_a_wheel_that_is_not_what_its_record_says_is_refused(tmp_path: Path) -> None:
    library = shared_object(tmp_path / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    wheel = make_wheel(
        tmp_path, {"vllm/_C.abi3.so": library}, version="0.15.1+cu128.sm86", record={"vllm/_C.abi3.so": "sha256=x,1"}
    )
    with pytest.raises(ImageError, match="is not what its RECORD says"):
        read_wheel(wheel)


def test_wheels_that_no_gpu_runs_or_that_are_none_are_image_errors(tmp_path: Path) -> None:
    broken = tmp_path / "vllm-0.15.1-cp38-abi3-manylinux_2_31_x86_64.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(ImageError):
        read_wheel(broken)
    with pytest.raises(ImageError, match="none of its GPUs"):
        read_wheel(make_wheel(tmp_path, {}, version="0.15.1+cu128.sm86"))
    library = shared_object(tmp_path / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    other = make_wheel(tmp_path, {"x/_C.abi3.so": library}, name="other", version="1+sm86")
    with pytest.raises(ImageError, match="is not vLLM"):
        read_wheel(other)


@pytest.mark.parametrize(
    ("tags", "base", "words"),
    [
        ("cp312-cp312-manylinux_2_31_x86_64", BOOKWORM, "not for Python 3.11"),
        ("cp313-abi3-manylinux_2_31_x86_64", BOOKWORM, "not for Python 3.11"),
        ("cp38-abi3-manylinux_2_41_x86_64", BOOKWORM, "needs glibc 2.41 and the base has 2.36"),
        ("cp38-abi3-manylinux_2_31_x86_64", Base((3, 12), "", "x86_64"), "none (musl?)"),
        ("cp38-abi3-manylinux_2_31_aarch64", BOOKWORM, "not for x86_64"),
    ],
)
def test_a_wheel_that_the_base_cannot_run_is_refused_before_the_build(
    tmp_path: Path, tags: str, base: Base, words: str
) -> None:
    with pytest.raises(ImageError) as caught:
        check_base(make_wheel(tmp_path, {}, tags=tags), base)
    assert words in caught.value.what


def test_a_wheel_that_fits_passes_and_requires_python_counts(tmp_path: Path) -> None:
    check_base(make_wheel(tmp_path, {}), BOOKWORM)
    check_base(make_wheel(tmp_path, {}, tags="cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"), BOOKWORM)
    metadata = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nRequires-Python: >=3.12\n"
    with pytest.raises(ImageError, match=r"not for Python 3\.11"):
        check_base(make_wheel(tmp_path, {}, metadata=metadata), BOOKWORM)


def test_requirements_are_those_of_the_wheels_version_and_must_have_hashes(tmp_path: Path) -> None:
    assert find_lock("0.15.1+cu129.sm86", None).name == "vllm-0.15.1.txt"
    with pytest.raises(ImageError, match=r"no locked requirements for vLLM 9\.9"):
        find_lock("9.9+cu128", None)
    bare = tmp_path / "r.txt"
    bare.write_text("torch==2.9.1\n")
    with pytest.raises(ImageError, match="pins no hashes"):
        find_lock("9.9", bare)


def test_the_shipped_locks_hold_torch_and_the_sdk_that_belong_together() -> None:
    lock, worker = find_lock("0.15.1", None).read_text(), (find_lock("0.15.1", None).parent / "worker.txt").read_text()
    pins = dict(line.split(" ")[0].split("==") for line in lock.splitlines() if "==" in line[:60] and line[0] != " ")
    assert pins["torch"] == "2.9.1"
    assert "vllm" not in pins
    for line in worker.splitlines():
        name, _, version = line.partition(" ")[0].partition("==")
        if version and name in pins:
            assert pins[name] == version, name


def test_encodings_from_a_folder_are_checked(tmp_path: Path, cache: Cache) -> None:
    for name in ENCODINGS:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(ImageError, match="is not the o200k_base"):
        have_encodings(tmp_path, make_access(cache, indexes=Indexes()))


def test_offline_nothing_is_fetched_for_an_image(stand_in: Path, cache: Cache) -> None:
    access = make_access(cache, indexes=Indexes(), offline=True)
    with pytest.raises(ImageError, match="vocabularies of gpt-oss could not be fetched") as caught:
        have_encodings(None, access)
    assert caught.value.why == "--offline forbids downloads"
    debian = reachable(parse_debian("debootstrap"), access, wanted="debootstrap")
    (stand_in / "fail-inspect").write_text("no such image")
    (stand_in / "bin" / "mmdebstrap").write_text("#!/bin/sh\n")
    (stand_in / "bin" / "mmdebstrap").chmod(0o755)
    with pytest.raises(ImageError, match=f"{debian.snapshot} is not in the cache"):
        debian_base(engine(stand_in, "buildah"), debian, access)


def test_the_context_holds_what_the_dockerfile_takes_and_is_removed(tmp_path: Path, cache: Cache) -> None:
    wheel, vocabulary = make_wheel(tmp_path, {}), tmp_path / "v"
    vocabulary.write_text("v")
    facts = dataclasses.replace(wheel_facts(wheel), gpus={"gpus": {}})
    with make_context(cache, facts, find_lock("0.15.1", None), {"o200k_base.tiktoken": vocabulary}) as context:
        names = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()}
        assert {"Dockerfile.runtime", "build/uv", "build/install.sh", "build/trim.py", "worker.txt"} <= names
        assert {f"requirements-{i}.txt" for i in (1, 2, 3, 4)} <= names
        assert f"wheel/{wheel.name}" in names
        assert json.loads((context / "image" / "gpus.json").read_text()) == {"gpus": {}}
        assert {"image/entrypoint.sh", "worker/handler.py", "encodings/o200k_base.tiktoken"} <= names
        assert not any("__pycache__" in name for name in names)
        assert stat.S_IMODE((context / "image" / "health.py").stat().st_mode) == 0o755
    assert not context.exists()


def test_credentials_of_an_index_are_in_a_secret_file_only(tmp_path: Path, stand_in: Path, cache: Cache) -> None:
    indexes = Indexes(index_url="https://me:geheim@index.example/simple")
    secrets = write_secrets(tmp_path, make_access(cache, indexes=indexes))
    assert "geheim" in secrets["index"].read_text()
    assert stat.S_IMODE(secrets["index"].stat().st_mode) == 0o600
    engine(stand_in, "buildah").build(Plan(tmp_path, "runtime", "localhost/x:1", {"A": "b"}, secrets, {"l": "m"}, 7))
    build = next(line for line in calls(stand_in) if " bud " in line)
    assert "geheim" not in build
    assert "--isolation chroot --layers --force-rm --format docker --timestamp 7 --build-arg A=b" in build
    assert "--label l=m --target runtime --tag localhost/x:1" in build


@pytest.mark.parametrize(
    ("name", "words"),
    [("docker", "docker build --build-arg SOURCE_DATE_EPOCH=0"), ("podman", "podman build --format docker")],
)
def test_each_engine_is_spoken_to_in_its_own_words(stand_in: Path, name: str, words: str) -> None:
    engine(stand_in, name).build(Plan(stand_in, "runtime", "x:1", {}))
    assert any(line.startswith(words) for line in calls(stand_in))


def test_a_build_that_fails_is_explained_and_leaves_no_containers(stand_in: Path) -> None:
    (stand_in / "fail-bud").write_text("write /x: no space left on device\n")
    (stand_in / "answer-containers").write_text("abc\n")
    with pytest.raises(ImageError) as caught:
        engine(stand_in, "buildah").build(Plan(stand_in, "runtime", "x:1", {}))
    assert caught.value.why == "no space left on the filesystem of the layers"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("error: Failed to fetch: `https://u:p@index/simple`", "cannot be reached"),
        ("invalid peer certificate: UnknownIssuer", "certificate is not trusted"),
        ("Hash mismatch for torch", "other bytes"),
        ("/bin/sh: 1: python3: not found", "no python3"),
        ("something else", "the engine failed"),
    ],
)
def test_failures_of_a_build_are_named(tmp_path: Path, text: str, why: str) -> None:
    error = explained("building", text, tmp_path / "log")
    assert why in error.why
    assert "u:p" not in error.detail


def test_an_engine_is_found_or_its_absence_explained(
    stand_in: Path, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_engine("auto", stand_in / "log", access).name == "docker"
    (stand_in / "fail-info").write_text("Cannot connect to the daemon\n")
    with pytest.raises(ImageError, match="buildah cannot build") as caught:
        find_engine("buildah", stand_in / "log", access)
    assert "Cannot connect to the daemon" in caught.value.why
    monkeypatch.setenv("PATH", str(stand_in / "empty"))
    with pytest.raises(ImageError, match="no engine can build"):
        find_engine("auto", stand_in / "log", access)
    with pytest.raises(UsageError):
        find_engine("kaniko", stand_in / "log", access)


def test_a_container_engine_runs_checks_without_network_and_read_only_when_asked(stand_in: Path) -> None:
    script = stand_in / "s.py"
    script.write_text("")
    engine(stand_in, "podman").run("x:1", Program(["python3", "-"], script, "12345", read_only=True))
    assert calls(stand_in)[-1] == (
        "podman run --rm -i --network none --user 12345 --entrypoint python3"
        " --read-only --tmpfs /tmp --tmpfs /cache x:1 -"
    )


def test_layers_are_listed_with_the_base_first(stand_in: Path) -> None:
    (stand_in / "answer-history").write_text("30\tRUN b\n0\tENV x\n20\tRUN a\n")
    assert engine(stand_in, "docker").layers("x:1") == [Layer(20, "RUN a"), Layer(30, "RUN b")]


def test_a_base_without_python_is_refused(stand_in: Path) -> None:
    (stand_in / "fail-run").write_text('exec: "python3": executable file not found in $PATH\n')
    with pytest.raises(ImageError, match="has no Python that runs"):
        read_facts(engine(stand_in, "docker"), "alpine:3")


def told(**changes: Any) -> str:
    data = {
        "python": [3, 11], "glibc": "2.36", "machine": "x86_64", "headers": True,
        "python_packages": [["torch", "2.9.1", 5, ["BSD"], "a"]],
        "debian_packages": [["libc6", "2.36", "amd64", "4", ["GPL-2+"], "c"]],
        "setuid": [], "writable": [], "caches": [], "secrets": [], "compiler_files": [], **changes,
    }  # fmt: skip
    return json.dumps(data) + '\n{"check": "a", "ok": true, "said": "fine"}\n'


def test_what_an_image_holds_beyond_its_base_fails_its_check(stand_in: Path, console: Console) -> None:
    more = {"setuid": ["/bin/su", "/opt/x"], "writable": ["/opt"], "secrets": ["/root/.netrc"]}
    (stand_in / "answer-run").write_text(told(**more, compiler_files=["/x/libcudart_static.a"]).split("\n")[0])
    (stand_in / "answer-history").write_text("4000000000\tRUN all\n")
    found, results = check_image(engine(stand_in, "docker"), "x:1", base=facts(), console=console)
    assert found.debian_packages == (Installed("libc6", "2.36", 4096, "amd64", ("GPL-2+",), "c"),)
    failed = {result.check: result.said for result in results if not result.ok}
    assert failed["no setuid files beyond the base's"] == "/opt/x"
    assert failed["no directories of root that others may write"] == "/opt"
    assert failed["no secrets in files or variables"] == "/root/.netrc"
    assert failed["no static archives or headers that only compilers need"] == "/x/libcudart_static.a"
    assert failed["each layer is below 4.0 GB"] == "largest 4.0 GB"
    _, again = check_image(engine(stand_in, "docker"), "x:1", base=facts(), console=console, jit=True)
    assert not [item for item in again if "compilers need" in item.check and not item.ok]
    with pytest.raises(ImageError, match="checks of the image failed"):
        stopped_cleanly(results)


def test_checks_that_do_not_run_to_their_end_have_failed(stand_in: Path) -> None:
    (stand_in / "fail-run").write_text('{"check": "a", "ok": true, "said": "fine"}\nSegmentation fault\n')
    first, last = inside(engine(stand_in, "docker"), "x:1", title="t", user="1", read_only=False)
    assert first == Result("a (t)", ok=True, said="fine")
    assert not last.ok
    assert "Segmentation fault" in last.said
    stopped_cleanly([first])


def image_report(tag: str = "localhost/vllm:1") -> ImageReport:
    layers = [Layer(1000, "/bin/sh -c #(nop) ADD base"), Layer(100, "RUN uv")]
    checks = [Result("a", ok=True, said="fine")]
    return ImageReport(
        tag, "runtime", "debian", "sha256:1", "buildah", wheel_facts(), facts(), layers, checks, 1.0, 1_700_000_000
    )


def test_the_size_table_says_what_the_image_weighs_over_its_wheels(capsys: pytest.CaptureFixture[str]) -> None:
    report = image_report()
    show(report, Console())
    out = capsys.readouterr().out
    assert "1.100 of its wheels' 1.0 kB" in out
    assert "torch 2.9.1" in out
    assert as_json(report)["ratio"] == 1.1


def test_the_sbom_names_every_package_with_licence_and_hash_and_is_the_same_twice() -> None:
    hashes = {"torch": ["d" * 64], "jinja2": ["e" * 64, "f" * 64]}
    bill = json.loads(image_sbom(image_report(), hashes=hashes))
    rows = {item["purl"]: item for item in bill["components"]}
    assert set(rows) == {"pkg:pypi/torch@2.9.1", "pkg:pypi/jinja2@3.1.6", "pkg:deb/debian/libc6@2.36-9?arch=amd64"}
    assert rows["pkg:pypi/torch@2.9.1"]["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert rows["pkg:pypi/jinja2@3.1.6"]["licenses"] == [{"license": {"name": "BSD License"}}]
    names = {item["license"]["name"] for item in rows["pkg:deb/debian/libc6@2.36-9?arch=amd64"]["licenses"]}
    assert names == {"LGPL-2.1-or-later", "GFDL-1.3"}
    assert all(row["hashes"][0]["alg"] == "SHA-256" for row in rows.values())
    allowed = rows["pkg:pypi/jinja2@3.1.6"]["externalReferences"][0]["hashes"]
    assert {item["content"] for item in allowed} == {"e" * 64, "f" * 64}
    assert bill["metadata"]["component"]["type"] == "container"
    assert image_sbom(image_report(), hashes=hashes) == image_sbom(image_report(), hashes=hashes)
    assert str(file_stem("localhost/vllm:1+a b")) == "localhost_vllm_1+a_b"


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ("License :: OSI Approved :: Apache Software License", "Apache-2.0"),
        ("License :: OSI Approved :: BSD License", ""),
        ("apache-2.0 or bsd-2-clause", "Apache-2.0 OR BSD-2-Clause"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("public domain, mostly", ""),
    ],
)
def test_a_package_s_word_for_its_licence_is_spdx_or_nothing(said: str, expression: str) -> None:
    assert spdx(said) == expression


def test_the_licence_label_is_one_spdx_expression_of_all_that_is_inside() -> None:
    label = licence_label(image_report())
    assert label == "BSD-3-Clause AND LicenseRef-Debian-copyright-files AND LicenseRef-see-SBOM"
    assert canonicalize_license_expression(label) == label


def test_an_attestation_of_the_sbom_is_a_dsse_envelope_about_the_image(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    report = dataclasses.replace(image_report(), image_id="1" * 64)
    bill, signed = runtime_image.write_bill(
        report, tmp_path, find_lock("0.15.1", None), KeyPair(CryptoSigner(key), key.public_key())
    )
    row = json.loads(signed.read_text())
    envelope = Envelope.from_dict({name: row[name] for name in ("payload", "payloadType", "signatures")})
    envelope.verify([SSlibKey.from_crypto(key.public_key())], 1)
    claim = json.loads(envelope.payload)
    assert claim["subject"] == [{"name": report.tag, "digest": {"sha256": "1" * 64}}]
    assert claim["predicate"] == json.loads(bill.read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "runpot"], "Perhaps you meant 'runpod'?"),
        (["--tag", "vllm:latest"], "says nothing"),
        (["--push", "host:5000/vllm"], "says nothing"),
        (["--target", "runtime-jit"], "belong together"),
        (["--engin", "docker"], "Perhaps you meant '--engine'?"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(console: Console, words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        runtime_image.main(words, console)
    assert said in caught.value.what


def test_a_disk_that_cannot_hold_the_layers_is_refused(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_in / "answer-info").write_text(json.dumps({"store": {"GraphRoot": str(stand_in / "a" / "b")}}))
    image_build.check_disk(engine(stand_in, "buildah"), stand_in, known=True)
    monkeypatch.setattr(image_build, "DISK", 1e18)
    with pytest.raises(ImageError, match="are free"):
        image_build.check_disk(engine(stand_in, "buildah"), stand_in, known=False)
    monkeypatch.setattr(image_build, "DISK", 0)
    monkeypatch.setattr(image_build, "SPARE", 1e18)
    image_build.check_disk(engine(stand_in, "docker"), stand_in, known=False)
    with pytest.raises(ImageError, match="are free"):
        image_build.check_disk(engine(stand_in, "buildah"), stand_in, known=False)


def test_a_base_from_a_registry_is_named_by_its_digest_and_mounted_files_by_theirs(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("one==1 --hash=sha256:1\n")
    given = image_build.build_arguments(wheel_facts(), lock, base="python:3.12-slim-bookworm", digest="sha256:12")
    assert given["BASE_IMAGE"] == "python:3.12-slim-bookworm@sha256:12"
    assert given["NVIDIA_REQUIRE_CUDA"] == "cuda>=12.0"
    assert given["REQUIREMENTS_4_SHA256"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert given["REQUIREMENTS_1_SHA256"] == hashlib.sha256(b"").hexdigest()
    dockerfile = (ROOT / "Dockerfile.runtime").read_text()
    assert all(f"ARG {name}" in dockerfile for name in given)
    assert f"ARG BASE_IMAGE={runtime_image.DEFAULT_BASE}\n" in dockerfile
    local = image_build.build_arguments(wheel_facts(), lock, base="localhost/b:1", digest="sha256:12")
    assert local["BASE_IMAGE"] == "localhost/b:1"


def test_labels_tell_where_the_image_comes_from() -> None:
    found = image_build.labels(wheel_facts(), base="b:1", digest="sha256:12", recipe=None, stamp=0)
    assert found["wheelsmith.recipe"] == "vllm-0.15.1-cu128"
    assert found["wheelsmith.driver.minimum"] == "525.60.13"
    assert found["org.opencontainers.image.version"] == wheel_facts().version
    assert found["org.opencontainers.image.base.name"] == "b:1"
    assert found["org.opencontainers.image.base.digest"] == "sha256:12"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert found.get("org.opencontainers.image.revision", "").removesuffix("-dirty") == head.strip()
    assert found["org.opencontainers.image.created"] == "1970-01-01T00:00:00+00:00"


def test_a_debian_base_that_is_there_is_not_made_again(stand_in: Path, access: Access) -> None:
    debian = parse_debian("debootstrap@20260101T000000Z")

    def make() -> str:
        return debian_base(engine(stand_in, "buildah"), debian, access)

    name = make()
    assert name.startswith("localhost/wheelsmith-base:bookworm-20260101t000000z-")
    (stand_in / "fail-inspect").write_text("no such image")
    program = stand_in / "bin" / "mmdebstrap"
    program.write_text("#!/bin/sh\necho 'E: Temporary failure resolving deb.example' ; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(ImageError, match="mmdebstrap failed") as caught:
        make()
    assert "cannot be reached" in caught.value.why
    program.write_text('#!/bin/sh\nfor word; do case "$word" in *base.tar) echo tar > "$word";; esac; done\n')
    (stand_in / "answer-from").write_text("c1\n")
    assert make() == name
    assert any(f"commit --quiet --format docker --timestamp 0 c1 {name}" in line for line in calls(stand_in))


def test_a_base_of_debian_is_pinned_by_the_date_of_a_snapshot() -> None:
    pinned = parse_debian("debootstrap")
    assert re.fullmatch(r"20\d{6}T\d{6}Z", pinned.snapshot)
    mirrors = parse_mirrors(f"{pinned.archive}=http://mirror.example/debian/")
    assert pinned.sources(mirrors) == [
        f"deb http://mirror.example/debian/archive/debian/{pinned.snapshot} bookworm main",
        f"deb http://mirror.example/debian/archive/debian-security/{pinned.snapshot} bookworm-security main",
    ]
    words = mmdebstrap_words(pinned, "base.tar", mirrors)
    assert '--aptopt=Acquire::Check-Valid-Until "false"' in words
    assert words[-4:] == ["bookworm", "base.tar", *pinned.sources(mirrors)]
    assert mmdebstrap_words(parse_debian("debootstrap@now"), "base.tar", mirrors)[-2:] == ["bookworm", "base.tar"]
    with pytest.raises(UsageError, match="must not need a password"):
        pinned.sources(parse_mirrors(f"{pinned.archive}=http://me:geheim@mirror.example/debian/"))
    with pytest.raises(UsageError, match="not the date of a snapshot"):
        parse_debian("debootstrap@yesterday")


def test_an_archive_that_cannot_be_reached_is_an_error_only_for_a_date_that_was_asked_for(
    tmp_path: Path, cache: Cache, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(wanted: str, port: int) -> str:
        mirrors = parse_mirrors(f"https://snapshot.debian.org/=http://127.0.0.1:{port}/")
        access = make_access(cache, console, mirrors=mirrors, indexes=Indexes())
        return reachable(parse_debian(wanted), access, wanted=wanted).snapshot

    date = "20260101T000000Z"
    with pytest.raises(ImageError, match=rf"snapshot of Debian {date} could not be fetched") as caught:
        ask(f"debootstrap@{date}", 9)
    assert "127.0.0.1:9/archive/debian" in caught.value.why
    assert ask("debootstrap", 9) == "now"
    assert "is not pinned" in capsys.readouterr().err
    release = tmp_path / "archive" / "debian" / date / "dists" / "bookworm" / "InRelease"
    release.parent.mkdir(parents=True)
    release.write_text("-----BEGIN PGP SIGNED MESSAGE-----\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert ask(f"debootstrap@{date}", server.server_port) == date
        with pytest.raises(ImageError) as caught:
            ask("debootstrap@20250101T000000Z", server.server_port)
        assert "404" in caught.value.why
        server.shutdown()


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://me:geheim@git.example/a/b.git", "https://git.example/a/b.git"),
        ("git@git.example:a/b.git", "ssh://git.example/a/b.git"),
        ("ssh://git@git.example/a/b", "ssh://git.example/a/b"),
        ("/work/main", ""),
        ("file:///work/main", ""),
        ("", ""),
    ],
)
def test_the_source_label_is_a_place_to_look_at_and_never_a_secret_or_a_folder(remote: str, shown: str) -> None:
    assert image_build.public_url(remote) == shown


def test_locks_of_the_image_say_themselves_what_they_resolve_against(tmp_path: Path) -> None:
    source = tmp_path / "worker.in"
    source.write_text("# as of: 2026-02-20\n# constraints: vllm-0.15.1.txt\nrunpod\n")
    constraints = tmp_path / "vllm-0.15.1.txt"
    assert runtime_options(source) == [
        "--no-emit-package", "vllm", "--exclude-newer", "2026-02-20", "--constraints", constraints,
    ]  # fmt: skip


def buildah_store(folder: Path) -> None:
    """Let the stand-in answer as buildah does, for an image of two layers."""
    place = folder / "graph" / "overlay-layers"
    place.mkdir(parents=True)
    (place / "layers.json").write_text(json.dumps([{"diff-digest": "a", "diff-size": 7}, {"diff-digest": "b"}]))
    (folder / "answer-info").write_text(
        json.dumps({"store": {"GraphRoot": str(folder / "graph"), "GraphDriverName": "overlay"}})
    )
    (folder / "answer-inspect").write_text(
        json.dumps(
            {
                "FromImageDigest": "sha256:12",
                "Docker": {
                    "history": [{"created_by": "A"}, {"empty_layer": True}, {"created_by": "B"}],
                    "rootfs": {"diff_ids": ["a", "b"]},
                },
            }
        )
    )
    (folder / "answer-from").write_text("c1\n")
    (folder / "answer-mount").write_text(f"{folder}\n")


def test_buildahs_store_tells_layers_digest_and_folder(stand_in: Path) -> None:
    buildah_store(stand_in)
    made = engine(stand_in, "buildah")
    assert made.layers("x:1") == [Layer(7, "A"), Layer(0, "B")]
    assert made.digest("x:1") == "sha256:12"
    assert made.storage() == stand_in / "graph"
    with made.folder("x:1", "/bin") as folder:
        assert folder == stand_in / "bin"
    assert calls(stand_in)[-1] == "buildah rm c1"


def test_buildah_runs_in_a_container_that_is_removed(stand_in: Path) -> None:
    buildah_store(stand_in)
    script = stand_in / "s.py"
    script.write_text("")
    (stand_in / "answer-run").write_text("said")
    found = engine(stand_in, "buildah").run("x:1", Program(["python3", "-"], script, "0"))
    assert found == (0, "said")
    assert calls(stand_in)[-2:] == ["buildah run --isolation chroot --user 0 c1 -- python3 -", "buildah rm c1"]


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_images_are_imported_named_pushed_and_unnamed(stand_in: Path, name: str) -> None:
    buildah_store(stand_in)
    made = engine(stand_in, name)
    made.import_tar(stand_in / "base.tar", "b:1")
    made.tag("b:1", "c:1")
    made.push("c:1", "registry.example/c:1")
    made.untag("c:1", "b:1")
    said = calls(stand_in)
    assert said[-1] == (f"{name} untag c:1" if name == "podman" else f"{name} rmi c:1")
    assert any(line.startswith(f"{name} push") and "registry.example/c:1" in line for line in said)
    assert (f"{name} tag b:1 c:1" == said[-2]) is (name == "buildah")


def test_a_container_engine_copies_a_folder_out(stand_in: Path) -> None:
    (stand_in / "answer-create").write_text("c1\n")
    (stand_in / "answer-info").write_text("/var/lib/docker\n")
    made = engine(stand_in, "docker")
    with made.folder("x:1", "/opt/vllm") as folder:
        assert folder.name == "vllm"
    assert calls(stand_in)[-1] == "docker rm c1"
    assert made.storage() == Path("/var/lib/docker")


@pytest.mark.parametrize("ok", [True, False])
def test_the_tag_is_given_when_all_checks_have_passed_and_never_else(
    stand_in: Path,
    monkeypatch: pytest.MonkeyPatch,
    ok: bool,  # noqa: FBT001
) -> None:
    library = shared_object(stand_in / "_C.so", {"k": container(sass("86", "k"))}).read_bytes()
    wheel = make_wheel(stand_in, {"vllm/_C.abi3.so": library}, version="0.15.1+cu128.sm86")
    (stand_in / "answer-image").write_text('[{"RepoDigests": ["b@sha256:12"]}]')
    (stand_in / "answer-history").write_text("20\tRUN a\n")
    (stand_in / "answer-info").write_text(f"{stand_in}\n")
    monkeypatch.setattr(image_build, "read_facts", lambda *_: facts())
    monkeypatch.setattr(image_build, "check_image", lambda *_, **__: (facts(), [Result("a", ok, "said")]))
    monkeypatch.setattr(image_build, "installed_as_audited", lambda *_: Result("b", ok=True, said=""))
    monkeypatch.setattr(image_build, "DISK_AGAIN", 0)
    words = ["--wheel", str(wheel), "--engine", "docker", "--tag", "localhost/t:1", "--push", "registry.example/t:1"]
    words += ["--out", str(stand_in / "out"), "--cache", str(stand_in / "c"), "--json", str(stand_in / "report.json")]
    if ok:
        assert runtime_image.main(words, Console(quiet=True)) == 0
        assert json.loads((stand_in / "report.json").read_text())["total"] == 20
        assert (stand_in / "out" / "localhost_t_1.cdx.json").is_file()
        assert calls(stand_in)[-1] == "docker push registry.example/t:1"
    else:
        with pytest.raises(ImageError, match="1 of 2 checks"):
            runtime_image.main(words, Console(quiet=True))
    tagged = [line for line in calls(stand_in) if "--tag localhost/t:1" in line]
    assert bool(tagged) is ok
    if ok:
        assert "--label org.opencontainers.image.licenses=" in tagged[0]
        assert "--label wheelsmith.hazards=none known" in next(
            line for line in calls(stand_in) if "--target runtime" in line
        )
    assert any(line.startswith("docker rmi localhost/wheelsmith-unfinished:") for line in calls(stand_in))


def test_the_build_log_tells_the_time_at_each_step_and_how_long_each_took(tmp_path: Path) -> None:
    log = tmp_path / "image.log"
    log.write_text("STEP 9/9: of an earlier build\n")
    clock = StepClock(log)
    with log.open("ab") as file:
        file.write(b"[1/2] STEP 1/2: FROM x\nnoise\n[1/2] STEP 2/2: RUN lo")
    clock.look()
    assert "FROM x" in clock.line()
    with log.open("ab") as file:
        file.write(b"ng\n")
    steps = clock.finish()
    assert [step for step, _ in steps] == ["[1/2] STEP 1/2: FROM x", "[1/2] STEP 2/2: RUN long"]
    text = log.read_text()
    assert text.count(" after the start: [1/2] STEP") == 2
    assert text.count("wheelsmith: 0 s in [1/2] STEP") == 2


def test_the_report_tells_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    report = dataclasses.replace(image_report(), phases=(Phase("build", 125.0, 61.0),), steps=(("STEP 1/1: RUN", 9.0),))
    show(report, Console())
    assert re.search(r"build +2 min 05 s +1 min 01 s", capsys.readouterr().out)
    assert as_json(report)["steps"] == (("STEP 1/1: RUN", 9.0),)
